"""Runs side by side: what they measured, where they are comparable, and in what they are shown to differ.

What two runs measured is matched by `KEY`: the task, the metric, and the kind of part. Each run is compared with the
first, or, for stages of training, with the one before it, where every setting that decides a
score is the same (`depthlens.analysis.runs.settings`); what differs is listed, and nothing is tested there. Runs are
compared on the documents that both have: those with the same hash, or, where hashes are not known, with the same number
(`depthlens.analysis.result.questions`).

A difference is tested as a difference, paired by question (`depthlens.analysis.numbers.means`): scores of whole models; losses
by condition, in the metric's unit and as shares of the score above the floor, with step-down maxT over the kind of
part; the centre of mass of all losses. Several runs are several tests: every p-value is multiplied by the number of
pairs of runs (Bonferroni). Nats are at most 1 a document. A loss that is shown in one run and not in another is no
difference. A run at chance has nothing to lose, and nothing is concluded from it. Losses by condition are
compared only between models with as many layers (and heads); other models are compared by relative depth.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis.result import answers as changed_answers
from depthlens.analysis.result import documents
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.tables import joined
from depthlens.analysis.result.losses import AT_CHANCE, Losses
from depthlens.analysis.runs.settings import deciding
from depthlens.analysis.numbers.means import Mean, max_t
from depthlens.analysis.result.folder import mismatches
from depthlens.analysis.result.results import Result
from depthlens.analysis.numbers.stats import ALPHA, BASELINE
from depthlens.errors import UserError

KEY = ["task", "metric", "parts"]
OTHER, WHOLE = "other conditions", "whole model"
OVER_DEPTH = ("layers", "attn", "mlp")  # one part a layer
SCORE, LOSS, SHARE, CENTRE = "score", "loss", "share of score above floor", "centre of mass"
FEWEST = 2  # documents that are compared
NAMED = 6  # conditions in a sentence
VALUES = [
    *KEY, "run", "group", "measure", "condition", "layer", "head", "depth", "n", "value", "ci_low", "ci_high",
    "critical", "why",
]  # fmt: skip
TEST = ["difference", "difference_low", "difference_high", "p_adjusted", "shown"]
TESTS = [*KEY, "run", "measure", "condition", "reference", "n_paired", *TEST]
ANSWERS = ["run", "compared_with", *changed_answers.COLUMNS]


class Measured(NamedTuple):
    """What one run measured under one key.

    Attributes:
        run: Name of the run.
        parts: The kind of part, or `WHOLE`.
        losses: Of the conditions of one kind, by layer and head; none of a whole model.
        critical: Whether each is critical, among all conditions of the task and metric.
        shape: Layers of the model, and its heads where conditions are of heads.
        deciding: See `depthlens.analysis.runs.settings.deciding`.
    """

    run: str
    parts: str
    losses: Losses
    critical: np.ndarray
    shape: tuple[int, int | None]
    deciding: Mapping[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Finding):
    """Runs side by side. A difference is always that of ``run`` minus ``reference``.

    Rows are matched by ``task``, ``metric`` and ``parts`` (the kind of part and the way of removing it, such as
    ``layers`` or ``heads@mean``; ``whole model``). Runs with the same ``group`` have the same settings.

    Attributes:
        table: One row a run, ``measure`` and condition: ``value`` and its 95% interval, of n documents; ``reference``
            ("" if there is none) and the difference from it on ``n_paired`` documents of both, with its 95% interval,
            ``p_adjusted`` and whether it is ``shown`` (below 0.05). The measures are ``score`` (of the whole model);
            ``loss`` of a condition in the metric's unit, and ``share of score above floor``, with ``depth`` (layer /
            (n_layers - 1)) and ``critical``; ``centre of mass`` of the losses as a share of depth. ``why`` nothing can
            be judged.
        answers: One row a document on which a run's whole model answers otherwise than that of ``compared_with``, with
            the columns of `depthlens.Result.answers`; ``baseline_answer`` is that of ``compared_with``.
        notes: What was not compared, and why.
        sentences: See `describe`.
        record: Runs, models, and whether the runs are stages.

    Example:
        >>> comparison.runs
        ['step1', 'step2']
        >>> comparison.of("centre of mass")["task"].unique().tolist()
        ['sums', 'words']
    """

    table: pd.DataFrame
    answers: pd.DataFrame
    notes: Sequence[str]
    sentences: Sequence[str]
    record: dict[str, Any]

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in the order that they were given."""
        return list(self.record["runs"])

    def of(self, *measures: str, compared: bool = False) -> pd.DataFrame:
        """The rows of some measures; only those with a difference where that is asked."""
        rows = self.table[self.table["measure"].isin(measures)]
        return rows[rows["reference"] != ""] if compared else rows

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: what was found, and what could not be compared."""
        return "", pd.DataFrame(), [*self.sentences, *(f"Note: {note}" for note in self.notes)]


def compare_runs(results: Mapping[str, Result], *, stages: bool = False) -> Comparison:
    """Compare runs; see the module's docstring.

    Args:
        results: By the name of each run.
        stages: Whether they are stages of training in order: each is compared with the one before it.

    Raises:
        UserError: runs with nothing in common.
    """
    measured: dict[tuple[str, ...], dict[str, Measured]] = {}
    for key, one in itertools.chain.from_iterable(map(_measured, results, results.values())):
        measured.setdefault(key, {})[one.run] = one
    if not any(len(runs) > 1 for runs in measured.values()):
        raise UserError("no two runs have a task and metric in common; compare two or more of the same tasks")
    values: list[pd.DataFrame] = []
    tests: list[pd.DataFrame] = []
    notes: list[str] = []
    for key, by_run in measured.items():
        if len(by_run) < (len(results) if key[2] == WHOLE else len(measured[*key[:2], WHOLE])):
            notes.append(f"only {' and '.join(by_run)} has {_name(*key)}")
        every, about = list(by_run.values()), dict(zip(KEY, key, strict=True))
        found = [_matched(own, every[i if stages else 0]) for i, own in enumerate(every[1:])]
        notes += [f"{key[0]}: {limit}" for _, limits in found for limit in limits]
        groups, pairs = [one.deciding for one in every], [pair for pair, _ in found if pair]
        values += [_values(one).assign(group=groups.index(one.deciding), **about) for one in every]
        tests += [test.assign(**about) for pair in pairs for test in _tests(*pair, len(pairs))]
    table = joined(values, VALUES).merge(joined(tests, TESTS), how="left", on=TESTS[: TESTS.index("reference")])
    table = table.fillna({"reference": "", "n_paired": 0, "shown": False})
    table = table.infer_objects().astype({"layer": "Int64", "head": "Int64", "n_paired": int, "shown": bool})
    models = {run: result.model for run, result in results.items()}
    record: dict[str, Any] = {"made_by": "compare", "runs": list(models), "models": models, "stages": stages}
    answers = joined(list(_answers(table, results)), ANSWERS)
    return Comparison(table, answers, list(dict.fromkeys(notes)), list(_sentences(table)), record)


def _answers(table: pd.DataFrame, results: Mapping[str, Result]) -> Iterator[pd.DataFrame]:
    """The documents that whole models answer differently, of every two that are compared."""
    compared = table[(table["measure"] == SCORE) & (table["reference"] != "")]
    for (task, name, other), rows in compared.groupby(["task", "run", "reference"], sort=False):
        metric = documents.headline(task, list(rows["metric"]))
        found = changed_answers.of_task(results[name], task, metric, BASELINE, results[other])
        found = found[found["answer"] != found["baseline_answer"]]
        yield found.assign(run=name, compared_with=other)


def _name(task: str, metric: str, parts: str) -> str:
    return f"{task} {metric.removesuffix(',none')}" + ("" if parts == WHOLE else f", {parts}")


def _measured(run: str, result: Result) -> list[tuple[tuple[str, ...], Measured]]:
    """Everything that a run measured, by the values of `KEY`; whole models come first."""
    found = []
    n_heads = (result.record.get("model") or {}).get("dims", {}).get("n_heads")
    for s in result.every_losses.values():
        critical, of_kind = s.critical(), dict[str, list[int]]({WHOLE: []})
        for at in np.lexsort((s.heads, s.layers)):
            of_kind.setdefault(_kind(s.conditions[at]), []).append(at)
        for parts, places in of_kind.items():
            losses = s.select(places)
            shape = result.n_layers, n_heads if re.search(r"\.[HKE]", " ".join(losses.conditions)) else None
            settings = deciding(result, s.task, s.metric, losses.conditions)
            found.append(((s.task, s.metric, parts), Measured(run, parts, losses, critical[places], shape, settings)))
    return sorted(found, key=lambda one: one[0][2] != WHOLE)


def _kind(condition: str) -> str:
    """The kind of part in the words of a sweep, such as ``layers[1:]`` or ``heads@mean``.

    Blocks, lists and everything else that is not one part are `OTHER`.
    """
    first, *more = parse_condition(condition).ablations
    return OTHER if more or first.site not in WORDS else WORDS[first.site] + first.suffix


def _matched(own: Measured, reference: Measured) -> tuple[tuple[Measured, Measured] | None, list[str]]:
    """Two runs on the documents of both, with the same conditions if these are comparable.

    Returns:
        The two, if they can be compared, and what limits the comparison.
    """
    both, a, b, limits = f"{own.run} and {reference.run}", own.losses, reference.losses, list[str]()
    if differs := mismatches(reference.deciding, own.deciding):
        fault = f"{own.run} not compared with {reference.run}, whose settings differ ({reference.run} first)"
        return None, [f"{fault}: {'; '.join(differs)}"]
    sizes, n_shared = (len(a.documents), len(b.documents)), len({*a.documents} & {*b.documents})
    if n_shared < max(FEWEST, min(sizes)):
        return None, [f"{both} have different documents ({n_shared} are of both), so that they are not compared"]
    if sizes[0] != sizes[1]:
        limits.append(f"{both} are compared on the {n_shared} documents that both have")
    if own.shape != reference.shape:
        limits.append(f"the models of {both} have other shapes, so that no loss is compared part by part")
    else:
        n, common = max(len(a.conditions), len(b.conditions)), [c for c in a.conditions if c in b.conditions]
        a, b = a.select(common), b.select(common)
        if len(common) < n:
            limits.append(f"{both} have {len(common)} of {n} conditions in common")
    a, b = a.join(b)
    return (own._replace(losses=a), reference._replace(losses=b)), limits


def _derived(s: Losses, parts: str) -> dict[str, Mean]:
    """What follows from losses, by measure; NaN where there is nothing to lose, or losses cannot be placed."""
    found = dict[str, Mean]()
    if s.floor is not None:
        found[SHARE] = s.relative() if not s.at_chance and s.base.mean() > s.floor else s.mean() * np.nan
    if re.split(r"[\[@]", parts)[0] in OVER_DEPTH:
        found[CENTRE] = s.centre * (np.nan if s.unplaced else 1.0)
    return found


def _values(one: Measured) -> pd.DataFrame:
    """What a run measured: one row a measure and condition."""
    s, why = one.losses, AT_CHANCE if one.losses.at_chance else ""
    rows = pd.DataFrame({"condition": s.conditions, "layer": s.layers, "head": s.heads, "depth": s.depth})
    places = rows[["layer", "head", "depth"]]
    rows = rows.assign(**places.where(places >= 0), critical=one.critical, why=why)
    single = pd.DataFrame([{"condition": "", "critical": False, "why": s.unplaced}])
    if one.parts == WHOLE:
        ends = dict(zip(("value", "ci_low", "ci_high"), s.whole[1:4], strict=True))
        found = [single.assign(measure=SCORE, condition=BASELINE, why=why, **ends)]
    else:
        means = {LOSS: s.mean(), **_derived(s, one.parts)}
        found = [(single if m == CENTRE else rows).assign(measure=m, **of.columns("value")) for m, of in means.items()]
    return pd.concat(found).reindex(columns=VALUES).assign(run=one.run, n=len(s.documents))


def _tests(own: Measured, reference: Measured, n_pairs: int) -> Iterator[pd.DataFrame]:
    """Differences of what a run and its reference measured, as far as they are comparable."""
    a, b, same = own.losses, reference.losses, own.shape == reference.shape
    partial = any(len({*s.layers}) < s.n_layers for s in (a, b))
    judged = same and not (a.at_chance or b.at_chance) and len(set(a.units)) >= FEWEST
    if own.parts == WHOLE:
        gaps = {SCORE: a.gain_over(b) * a.sign}
    else:
        found, others = ({LOSS: s.mean(), **_derived(s, own.parts)} for s in (a, b))
        common = [measure for measure in found if measure in others and (judged or measure == CENTRE)]
        gaps = {measure: found[measure] - others[measure] for measure in common}
    for measure, gap in gaps.items():
        if measure == CENTRE and (len(a.layers) < 2 or (partial and not same)):
            gap = gap * np.nan
        p = np.minimum(n_pairs * (max_t(gap) if measure in (LOSS, SHARE) else gap.p()), 1.0)
        p = np.where(np.isnan(gap.value), np.nan, p)
        columns = dict(zip(TEST, map(np.atleast_1d, (gap.value, *gap.interval(), p, p < ALPHA)), strict=True))
        if measure == LOSS:
            columns["shown"] &= np.abs(gap.value) > a.min_effect
        names = {SCORE: BASELINE, CENTRE: ""}.get(measure, list(a.conditions))
        about = {"run": own.run, "reference": reference.run, "n_paired": len(a.base)}
        yield pd.DataFrame({"measure": measure, "condition": names, **columns}).assign(**about)


# -- sentences -----------------------------------------------------------------------------------------

SAID = {SCORE: ("the score", "the losses"), CENTRE: ("the centre of mass of the losses", "the place of the losses")}
IDLE = "{name}: cannot judge {losses} of {run} ({why})."
DIFFERENCE = (
    "{name}: {what} of {run} is {value:.2f}, a difference of {difference:+.3f} [{difference_low:+.3f}, "
    "{difference_high:+.3f}] from {reference} that is {verdict} (p = {p_adjusted:.2g}, n = {n_paired})."
)
LOSSES = "{name}: {count} losses are shown to differ between {run} and {reference} ({measure}; largest: {largest})."


def _sentences(table: pd.DataFrame) -> Iterator[str]:
    """What the table says; what is shown is bold."""
    for row in table[table["measure"].isin(SAID)].to_dict("records"):
        about = row | dict(zip(("what", "losses"), SAID[row["measure"]], strict=True))
        about |= {"name": _name(*(row[c] for c in KEY)), "verdict": "**shown**" if row["shown"] else "not shown"}
        if row["why"] and (row["measure"], row["why"]) != (CENTRE, AT_CHANCE):  # that is said of the score
            yield IDLE.format_map(about)
        if not np.isnan(row["difference"]):
            yield DIFFERENCE.format_map(about)
    losses = table[table["measure"].isin([LOSS, SHARE]) & (table["reference"] != "")]
    for (*key, measure, run, reference), rows in losses.groupby([*KEY, "measure", "run", "reference"], sort=False):
        n_shown, ordered = rows["shown"].sum(), rows.sort_values("difference", key=lambda gaps: -gaps.abs())
        largest = ", ".join(f"{row.condition} {row.difference:+.2f}" for row in ordered.head(NAMED).itertuples())
        count = f"**{n_shown} of {len(rows)}**" if n_shown else f"none of {len(rows)}"
        about = {"run": run, "reference": reference, "measure": measure, "largest": largest}
        yield LOSSES.format(name=_name(*key), count=count, **about)
