"""What a layer sweep says about depth: critical conditions, losses by depth third, and centres of mass.

Intervals and p-values are of `depthlens.analysis.numbers.means`: tasks that ask the same questions are paired by
question. A share or a centre of mass needs 100 units (questions; subjects of a group). Tasks at chance are left out,
because they have nothing to lose. A loss in nats is at most 1 a document.

Losses of several tasks can be compared on three scales:

* ``score``: in the metric's own unit. For two models on one task, not for two tasks.
* ``above_chance``: as a share of what the whole model scores above a broken one, which guesses among options and writes
  nothing right (`depthlens.tasks.prepared_task`); 0: nothing is lost, 1: the task falls to this floor. It says
  *how much* a removal costs. ``answer_logprob`` has no such share, because a log-likelihood has no floor.
* ``importance``: as a share of the summed loss of all removed layers, so that the thirds of a task add up to 1. It
  says *where* a task's losses are, for every metric, and so does the centre of mass. A removal that helps counts as a
  negative loss in both: counted as 0, the noise of layers that do nothing would draw every task to the middle.

Limits: where one early layer breaks the model altogether, it holds most of all loss; sweep or select the other layers
to see where the rest is. Losses of an easy and of a hard task may differ though a removal does the same to both.
"""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.analysis.numbers.stats import ALPHA
from depthlens.analysis.numbers.words import bounds, not_above_chance
from depthlens.analysis.result.losses import THIRDS
from depthlens.analysis.result.profiles import by_layer
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable, joined

SCALES = ("score", "above_chance", "importance")
INTERVAL = ["ci_low", "ci_high"]


def loss_by_third(result: Result, scale: str) -> pd.DataFrame:
    """See `depthlens.Result.loss_by_third`."""
    arguments.one_of(*SCALES)("scale", scale)
    tables = []
    for scores in by_layer(result):
        if scores.unplaced if scale == "importance" else scores.at_chance:
            continue
        inside = (scores.thirds[:, None] == np.arange(3)).astype(float)  # [layer, third]
        means = {"importance": scores.share, "score": scores.mean, "above_chance": scores.relative}
        loss = means[scale](inside if scale == "importance" else inside / inside.sum(0))
        tables.append(pd.DataFrame({"task": scores.label, "third": THIRDS, **loss.columns("loss")}))
    return joined(tables, ["task", "third", "loss", *INTERVAL])


def centre_of_mass(result: Result) -> DescribedTable:
    """See `depthlens.Result.centre_of_mass`."""
    rows, lines, every = [], [], by_layer(result)
    for scores in every:
        row = {"task": scores.label, "n": len(scores.documents), "unplaced": scores.unplaced}
        if scores.unplaced:
            said = "{unplaced}, cannot judge (n = {n})"
        else:
            row |= scores.centre.columns("centre")
            said = "its losses centre at **{centre:.2f}** [{ci_low:.2f}, {ci_high:.2f}] of the model's depth (n = {n})"
        rows.append(row)
        lines.append(f"{scores.label}: {said.format_map(row)}.")
    pairs = list(itertools.combinations([losses for losses in every if not losses.unplaced], 2))
    for a, b in pairs:
        gap = a.centre - b.centre
        low, high = map(float, gap.interval(1 - ALPHA / len(pairs)))  # together they hold in 95% of results
        side = "" if low <= 0 <= high else "**deeper** than" if gap.value > 0 else "**less deep** than"
        side = side or "not proven to be deeper or less deep than"
        amount = f"{gap.value:+.3f} {bounds(low, high, '+.3f')} of depth"
        lines.append(f"The losses of {a.label} are {side} those of {b.label}: {amount}.")
    columns = ["task", "n", "centre", *INTERVAL, "unplaced"]
    return DescribedTable.of("centre_of_mass", result, rows=rows, columns=columns, lines=lines)


def describe_critical(result: Result) -> list[str]:
    """One sentence a task: how many conditions are critical, which, and what the whole model scores."""
    sentences = []
    for row, losses in zip(result.baselines.itertuples(), result.every_losses.values(), strict=True):
        label, every = losses.label, losses.conditions
        score = f"{row.metric} {row.baseline:.2f} {bounds(row.ci_low, row.ci_high)} with nothing removed, n = {row.n}"
        if row.at_chance:
            sentences.append(f"{label}: {not_above_chance(row.n)}, cannot judge ({score}).")
            continue
        critical = list(itertools.compress(every, losses.critical()))
        rest = [c for c in every if c not in critical]
        which = ", ".join(critical)
        which = f"all but {', '.join(rest)}" if 0 < len(rest) < len(every) / 5 else which
        what = "layers" if all(re.fullmatch(r"L\d+", condition) for condition in every) else "conditions"
        count = f"**{len(critical)} of {len(every)}** {what} are critical{which and f' ({which})'}"
        sentences.append(f"{label}: {count}; {score}.")
    return sentences
