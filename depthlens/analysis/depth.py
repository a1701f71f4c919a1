"""What a layer sweep says about depth: losses by depth third, centres of mass, agreement of two tasks' profiles.

Intervals and p-values are of `depthlens.analysis.means`: tasks that ask the same questions are paired by question. A
share or a centre of mass needs 100 units (questions; subjects of a group). Tasks at chance are left out, because they
have nothing to lose. A loss in nats is at most 1 a document.

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
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from depthlens.analysis.interval_text import bounds
from depthlens.analysis.means import Mean, max_t
from depthlens.analysis.rank_correlations import COLUMNS, correlate, in_words
from depthlens.analysis.scores import THIRDS, Scores, labels, layer_scores, paired_scores, scores_of
from depthlens.analysis.stats import ALPHA
from depthlens.analysis.tables import DescribedTable, record_of
from depthlens.errors import unknown
from depthlens.metrics import metric_unit

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

SCALES = ("score", "above_chance", "importance")
ABOVE_FLOOR = "of the score above the floor"


def third_losses(profile: Scores, scale: str) -> Mean:
    """Loss in each depth third on one of `SCALES`. Shape [3].

    Raises:
        UserError: an unknown scale, or a metric that has no chance level to fall to.
    """
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    inside = (profile.thirds[:, None] == np.arange(3)).astype(float)  # [layer, third]
    if scale == "importance":
        return profile.share(inside)
    weights = inside / inside.sum(0)
    return profile.mean_loss(weights) if scale == "score" else profile.relative_loss(weights)


def loss_by_third(result: Result, *, scale: str = "above_chance") -> pd.DataFrame:
    """Loss of removing one layer of each depth third: the mean, or for ``importance`` the third's share of all losses.

    Args:
        result: A layer sweep.
        scale: One of `SCALES`.

    Returns:
        One row a task that can be judged and third: task, third, loss, ci_low, ci_high.

    Raises:
        UserError: the result has no single-layer conditions, or the scale does not fit a metric.
    """
    rows = []
    for profile in layer_scores(result):
        if not profile.unusable(scale):
            found = third_losses(profile, scale)
            rows += [(profile.label, *row) for row in zip(THIRDS, found.value, *found.interval(), strict=True)]
    return pd.DataFrame(rows, columns=["task", "third", "loss", "ci_low", "ci_high"])


def describe_first_third(result: Result) -> list[str]:
    """One sentence a task: how much of its losses the first third of the layers holds (claim C3)."""
    shares = loss_by_third(result, scale="importance")
    lines = []
    for row in shares[shares["third"] == THIRDS[0]].itertuples():
        amount = f"**{row.loss:.0%}** [{row.ci_low:.0%}, {row.ci_high:.0%}]"
        side = "more than half" if row.ci_low > 0.5 else "less than half" if row.ci_high < 0.5 else "not provably half"
        lines.append(f"{row.task}: the first third of the layers holds {amount} of its losses, {side}.")
    return lines


def centre_of_mass(result: Result) -> DescribedTable:
    """How deep a task's losses are: the centre of mass of every task's profile, as a share of the model's depth.

    docs/methods.md has how often the interval covers the truth in simulations, which `benchmarks/coverage.py` repeats.

    Args:
        result: A layer sweep.

    Returns:
        One row a task: task, n, centre, ci_low, ci_high, unplaced ("" or why there is no centre). It is described
        by one sentence a task, and then one for every two tasks on which is deeper.

    Raises:
        UserError: the result has no single-layer conditions.
    """
    rows, lines = [], []
    for profile in layer_scores(result):
        n = len(profile.documents)
        if profile.unplaced:
            rows.append((profile.label, n, np.nan, np.nan, np.nan, profile.unplaced))
            lines.append(f"{profile.label}: {profile.unplaced}, cannot judge (n = {n}).")
            continue
        value, low, high = (float(x) for x in (profile.centre.value, *profile.centre.interval()))
        rows.append((profile.label, n, value, low, high, ""))
        place = f"**{value:.2f}** {bounds(low, high)} of the model's depth (n = {n})"
        lines.append(f"{profile.label}: its losses centre at {place}.")
    for row in centre_differences(result).itertuples():
        gap = f"{row.difference:+.3f} {bounds(row.ci_low, row.ci_high, '+.3f')} of depth"
        if row.ci_low > 0 or row.ci_high < 0:
            side = "deeper" if row.difference > 0 else "less deep"
            lines.append(f"The losses of {row.task} are **{side}** than those of {row.other}: {gap}.")
        else:
            lines.append(f"The losses of {row.task} and of {row.other} are not proven to differ in depth: {gap}.")
    table = pd.DataFrame(rows, columns=["task", "n", "centre", "ci_low", "ci_high", "unplaced"])
    return DescribedTable(table, lines, record_of("centre_of_mass", result))


def centre_differences(result: Result) -> pd.DataFrame:
    """How much deeper the losses of one task are than those of another, for every two tasks with a centre of mass.

    Returns:
        One row a pair: task, other, difference (task minus other, as a share of depth), ci_low, ci_high.

    Raises:
        UserError: see `centre_of_mass`.
    """
    rows = []
    for a, b in itertools.combinations([p for p in layer_scores(result) if not p.unplaced], 2):
        gap = a.centre - b.centre
        rows.append((a.label, b.label, *(float(x) for x in (gap.value, *gap.interval()))))
    return pd.DataFrame(rows, columns=["task", "other", "difference", "ci_low", "ci_high"])


def rank_agreement(result: Result, other: Result | None = None, *, seed: int = 0) -> DescribedTable:
    """Whether two layer profiles rank the layers alike: every two tasks of a model, or every task of two models.

    Noise pulls the correlation towards zero, so it is to be read against its ceiling; see
    `depthlens.analysis.rank_correlations` for this and for the p-value. That a base model and
    its fine-tuned one rank the layers alike is what Nepal et al. 2025 (arXiv 2506.22638) found.

    Args:
        result: A layer sweep.
        other: A layer sweep of another model with the same tasks and documents; each task is then compared with itself.
        seed: Of the halves.

    Returns:
        One row a pair that can be judged: task, other (both with the model where there are two), and the columns of
        `depthlens.analysis.rank_correlations`. It is described by one sentence a pair.

    Raises:
        UserError: see `loss_by_third`; fewer than three layers; or two sweeps that do not match.
    """
    if other is None:
        usable = [(p, p.label) for p in layer_scores(result) if not p.at_chance]
        pairs = list(itertools.combinations(usable, 2))
    else:
        models = paired_scores(result, other)
        usable_pairs = [pair for pair in models if not (pair[0].at_chance or pair[1].at_chance)]
        pairs = [((a, f"{a.label} of {a.model}"), (b, f"{b.label} of {b.model}")) for a, b in usable_pairs]
    rows, lines = [], []
    for (a, name), (b, rival) in pairs:
        shared = np.intersect1d(a.layers, b.layers)
        first, second = (p.loss[:, np.isin(p.layers, shared)] for p in (a, b))
        found = correlate(first, second, shared, seed=seed)
        rows.append((name, rival, *found.row()))
        lines.append(f"Layers by {name} and by {rival}: {in_words(found)}.")
    lines = lines or ["Fewer than two profiles can be judged, so no two can be compared."]
    results = [result] if other is None else [result, other]
    table = pd.DataFrame(rows, columns=["task", "other", *COLUMNS])
    return DescribedTable(table, lines, record_of("rank_agreement", *results, seed_of_halves=seed))


def critical_by_task(result: Result) -> dict[str, list[str]]:
    """Conditions that are critical, for each task that can be judged, in order of depth.

    The keys have the metric's name where a task has several.
    """
    names = labels(result)
    pairs = {(row.task, row.metric) for row in result.baselines.itertuples() if not row.at_chance}
    critical: dict[str, list[str]] = {name: [] for pair, name in names.items() if pair in pairs}
    if pairs:
        for row in result.select_pairs(pairs).critical().itertuples():
            critical[names[row.task, row.metric]].append(row.condition)
    return critical


def critical_overlap(result: Result) -> DescribedTable:
    """Which conditions are critical under both of two tasks, and which are shown to cost more under one of them.

    That a condition is critical under one task alone does not show that the tasks differ. The difference of its two
    losses is tested instead, by step-down maxT over all conditions that both tasks have: of relative losses, ``loss /
    (baseline - floor)``, where both tasks have a floor, and in the metric's own unit where both have the same metric
    without one. The floor is what a broken model scores: chance among options, 0 for a written answer. Where the two
    differ, a difference has to show with the lower one for both, too: else equal answers would differ by their floors.

    Args:
        result: A sweep.

    Returns:
        In `table` one row a pair of tasks that can be judged: task, other, both (critical under both), more_task and
        more_other (shown to cost more there, and critical there), not_shown (critical under one alone, but no
        difference is shown), scale (what was compared; "" where the losses have no common scale, and no difference can
        be shown).
        Conditions are texts, ``none`` if empty. `describe` begins with the pair that differs most.
    """

    def text(conditions: list[str]) -> str:
        return ", ".join(conditions) or "none"

    rows, counts, lines = [], [], []
    pairs = {label: pair for pair, label in labels(result).items()}
    for (task, a), (other, b) in itertools.combinations(critical_by_task(result).items(), 2):
        more, less, scale = _shown_differences(result, pairs[task], pairs[other])
        more_task, more_other = [c for c in a if c in more], [c for c in b if c in less]
        alone = [*(c for c in a if c not in b), *(c for c in b if c not in a)]
        not_shown = [c for c in alone if c not in more_task and c not in more_other]
        both = [c for c in a if c in b]
        rows.append((task, other, *map(text, (both, more_task, more_other, not_shown)), scale))
        side = (more_task, task, other) if len(more_task) >= len(more_other) else (more_other, other, task)
        counts.append((len(more_task) + len(more_other), *side))
        lines.append(
            f"Critical under both {task} and {other}: {text(both)}; shown to cost more under {task}: "
            f"{text(more_task)}; under {other}: {text(more_other)}; critical under one, but not shown to differ: "
            + text(not_shown)
            + (f" (losses as shares {scale})." if scale == ABOVE_FLOOR else ".")
        )
    if counts:
        n, most, task, other = max(counts, key=lambda count: count[0])
        rest = f", and {n - len(most)} under {other}" if n > len(most) else ""
        shown = f"**{len(most)} {removed_parts(most)}** are shown to cost more under {task} than under {other}"
        nothing = "No condition is shown to cost more under one of the tasks than under another."
        lines.insert(0, f"{shown} ({text(most)}){rest}." if n else nothing)
    table = pd.DataFrame(rows, columns=["task", "other", "both", "more_task", "more_other", "not_shown", "scale"])
    lines = lines or ["Fewer than two tasks can be judged, so no two can be compared."]
    return DescribedTable(table, lines, record_of("critical_overlap", result))


def _shown_differences(
    result: Result, first: tuple[str, str], second: tuple[str, str]
) -> tuple[list[str], list[str], str]:
    """Conditions that cost more under the first of two (task, metric), those under the second, and the scale."""
    of = [result.document_losses(*pair) for pair in (first, second)]
    names = [name for name in of[0] if name in of[1]]
    rows = {(row.task, row.metric): row for row in result.baselines.itertuples()}
    a, b = (scores_of(result, rows[pair], "", names, np.zeros(len(names))) for pair in (first, second))
    if a.floor is not None and b.floor is not None:
        scale, lower = ABOVE_FLOOR, min(a.floor, b.floor)
        floors = dict.fromkeys([(a.floor, b.floor), (lower, lower)])
        gaps = [replace(a, floor=x).relative_loss() - replace(b, floor=y).relative_loss() for x, y in floors]
    elif a.metric == b.metric:
        scale, gaps = metric_unit(a.metric) or f"of {a.metric}", [a.mean_loss() - b.mean_loss()]
    else:
        return [], [], ""
    sides = np.array([np.where(max_t(gap) < ALPHA, np.sign(gap.value), 0) for gap in gaps])  # [floors, condition]
    more, less = ([names[i] for i in np.flatnonzero((sides == side).all(0))] for side in (1, -1))
    return more, less, scale


def describe_critical(result: Result) -> list[str]:
    """One sentence a task: how many conditions are critical, which, and what the whole model scores."""
    critical, names, losses = critical_by_task(result), labels(result), result.losses()
    sentences = []
    for row in result.baselines.itertuples():
        label = names[row.task, row.metric]
        score = f"{row.metric} {row.baseline:.2f} {bounds(row.ci_low, row.ci_high)} with nothing removed, n = {row.n}"
        if row.at_chance:
            sentences.append(f"{label}: at chance, cannot judge ({score}).")
            continue
        conditions = critical[label]
        every = list(losses.loc[losses["task"] == row.task, "condition"].unique())
        rest = [c for c in every if c not in conditions]
        which = f"all but {', '.join(rest)}" if 0 < len(rest) < len(conditions) / 4 else ", ".join(conditions) or "none"
        count = f"**{len(conditions)} of {len(every)}** {removed_parts(every)} proved critical ({which})"
        sentences.append(f"{label}: {count}; {score}.")
    return sentences


def removed_parts(conditions: Sequence[str]) -> str:
    """What conditions remove, one each: ``layers``, ``heads``, or ``conditions`` where it is neither."""
    for form, word in ((r"L\d+", "layers"), (r"L\d+\.H\d+", "heads")):
        if all(re.fullmatch(form, condition) for condition in conditions):
            return word
    return "conditions"
