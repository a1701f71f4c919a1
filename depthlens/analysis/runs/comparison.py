"""Runs side by side: what they measured, where they are comparable, and in what they are shown to differ.

What two runs measured is matched by `KEY`: the folder below the run, the task, the metric, and the kind of part. Each
run is compared with the first, or, for stages of training, with the one before it, where every setting that decides a
score is the same (`depthlens.analysis.runs.settings`); what differs is listed, and nothing is tested there. Runs are
compared on the documents that both have: those with the same hash, or, where hashes are not known, with the same number
(`depthlens.analysis.result.questions`).

A difference is tested as a difference, paired by question (`depthlens.analysis.numbers.means`): scores of whole models; losses
by condition, in the metric's unit and as shares of the score above the floor, with step-down maxT over the kind of
part; the centre of mass of all losses. Several runs are several tests: every p-value is multiplied by the number of
pairs of runs (Bonferroni). Nats are at most 1 a document. A loss or a claim that is shown in one run and not in another
is no difference. A run at chance has nothing to lose, and nothing is concluded from it. Losses by condition are
compared only between models with as many layers (and heads); other models are compared by relative depth.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis.result import answers as changed_answers
from depthlens.analysis.result import documents
from depthlens.analysis.runs import settings as run_settings
from depthlens.analysis.result.findings import Finding
from depthlens.analysis.result.tables import joined
from depthlens.analysis.result.losses import AT_CHANCE, Losses
from depthlens.analysis.result.profiles import one_model
from depthlens.analysis.numbers.means import Mean, max_t
from depthlens.analysis.result.folder import mismatches
from depthlens.analysis.result.results import Result
from depthlens.analysis.numbers.stats import ALPHA, BASELINE
from depthlens.errors import UserError

KEY = ["place", "task", "metric", "parts"]
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
ANSWERS = ["place", "run", "compared_with", *changed_answers.COLUMNS]
VERDICTS = [
    "place", "claim", "part", "what", "run", "claim_state", "state", "effect", "ci_low", "ci_high", "matters",
    "claimed", "unit", "n", "tasks", "why", "sentence",
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class Run:
    """What is compared: the results of one model, and the verdicts on it.

    Attributes:
        name: Of the run, unlike that of every other.
        results: By the folder that they are in, below the run's own.
        verdicts: Parts of claims, by the folder of the results that they are of; the columns are those of
            `depthlens.claims.Verdicts.parts`.
        path: The run's folder; "" for a result in memory.
    """

    name: str
    results: Mapping[str, Result]
    verdicts: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    path: str = ""


@dataclass(frozen=True, eq=False)
class Measured:
    """What one run measured under one key.

    Attributes:
        run: Name of the run.
        parts: The kind of part, or `WHOLE`.
        rows: One a condition, or the baseline's: the columns of `VALUES` that are known, and ``min_effect``.
        losses: A column for each row; none of a whole model.
        shape: Layers of the model, and its heads where conditions are of heads.
        deciding: See `depthlens.analysis.runs.run_settings.deciding`.
    """

    run: str
    parts: str
    rows: pd.DataFrame
    losses: Losses
    shape: tuple[int, int | None]
    deciding: Mapping[str, Any]

    def of(self, documents: Sequence[str], conditions: pd.Index) -> Measured:
        """The same with some documents and conditions, in the order that is given."""
        at, rows = self.rows.index.get_indexer(conditions), pd.Index(self.losses.documents).get_indexer(documents)
        losses = self.losses.select(slice(0) if self.parts == WHOLE else at, documents=rows.tolist())
        return replace(self, rows=self.rows.iloc[at], losses=losses)

    def derived(self) -> dict[str, Mean]:
        """What follows from the losses, by measure; NaN where there is nothing to lose, or losses cannot be placed."""
        s, found = self.losses, dict[str, Mean]()
        if self.parts != WHOLE and s.floor is not None:
            judged = not s.at_chance and s.base.mean() > s.floor
            found[SHARE] = s.relative() if judged else s.mean() * np.nan
        if re.split(r"[\[@]", self.parts)[0] in OVER_DEPTH:
            found[CENTRE] = s.centre * (np.nan if s.unplaced else 1.0)
        return found


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Finding):
    """Runs side by side. A difference is always that of ``run`` minus ``reference``.

    Rows are matched by ``place`` (the folder below the run), ``task``, ``metric`` and ``parts`` (the kind of part and
    the way of removing it, such as ``layers`` or ``heads@mean``; ``whole model``). Runs with the same ``group`` have
    the same settings.

    Attributes:
        table: One row a run, ``measure`` and condition: ``value`` and its 95% interval, of n documents; ``reference``
            ("" if there is none) and the difference from it on ``n_paired`` documents of both, with its 95% interval,
            ``p_adjusted`` and whether it is ``shown`` (below 0.05). The measures are ``score`` (of the whole model);
            ``loss`` of a condition in the metric's unit, and ``share of score above floor``, with ``depth`` (layer /
            (n_layers - 1)) and ``critical``; ``centre of mass`` of the losses as a share of depth. ``why`` nothing can
            be judged.
        settings: One row a setting and run; see `depthlens.analysis.runs.run_settings.table`.
        answers: One row a document on which a run's whole model answers otherwise than that of ``compared_with``, with
            the columns of `depthlens.Result.answers`; ``baseline_answer`` is that of ``compared_with``.
        verdicts: One row a run and part of a claim, with the estimate that decides the part.
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
    settings: pd.DataFrame
    answers: pd.DataFrame
    verdicts: pd.DataFrame
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


def compare_runs(runs: Sequence[Run], *, stages: bool = False) -> Comparison:
    """Compare runs; see the module's docstring.

    Args:
        runs: Two or more, with names of their own.
        stages: Whether they are stages of training in order: each is compared with the one before it.

    Raises:
        UserError: a result of several models, or runs with nothing in common.
    """
    measured: dict[tuple[str, ...], dict[str, Measured]] = {}
    for run in runs:
        for key, one in _measured(run):
            measured.setdefault(key, {})[run.name] = one
    judged = [place for run in runs for place in run.verdicts]
    if not any(len(by_run) > 1 for by_run in measured.values()) and len(set(judged)) == len(judged):
        raise UserError("no two runs have a task and metric in common; compare two or more of the same tasks")
    values: list[pd.DataFrame] = []
    tests: list[pd.DataFrame] = []
    notes: list[str] = []
    for key, by_run in measured.items():
        if len(by_run) < (len(runs) if key[3] == WHOLE else len(measured[*key[:3], WHOLE])):
            notes.append(f"only {' and '.join(by_run)} has {_name(*key)}")
        every, about = list(by_run.values()), dict(zip(KEY, key, strict=True))
        found = [_matched(own, every[i if stages else 0]) for i, own in enumerate(every[1:])]
        notes += [f"{key[0]}: {key[1]}: {limit}".removeprefix(": ") for _, limits in found for limit in limits]
        groups, pairs = [one.deciding for one in every], [pair for some, _ in found for pair in some]
        values += [_values(one).assign(group=groups.index(one.deciding), **about) for one in every]
        tests += [test.assign(**about) for pair in pairs for test in _tests(*pair, len(pairs))]
    table = joined(values, VALUES).merge(joined(tests, TESTS), how="left", on=TESTS[: TESTS.index("reference")])
    table = table.fillna({"reference": "", "n_paired": 0, "shown": False})
    table = table.infer_objects().astype({"layer": "Int64", "head": "Int64", "n_paired": int, "shown": bool})
    settings = run_settings.table({run.name: run.results for run in runs})
    parts = [t.assign(place=place, run=run.name) for run in runs for place, t in run.verdicts.items()]
    verdicts = joined(parts, VERDICTS).drop_duplicates(["place", "run", "claim", "part"])
    verdicts = verdicts.sort_values("place", kind="stable", ignore_index=True)
    models = {run.name: sorted({m for r in run.results.values() for m in r.docs["model"].unique()}) for run in runs}
    record: dict[str, Any] = {"made_by": "compare", "runs": list(models), "models": models, "stages": stages}
    record["paths"] = [run.path for run in runs]
    sentences = list(_sentences(settings, table))
    answers = joined(list(_answers(table, {run.name: run for run in runs})), ANSWERS)
    return Comparison(table, settings, answers, verdicts, list(dict.fromkeys(notes)), sentences, record)


def _answers(table: pd.DataFrame, runs: Mapping[str, Run]) -> Iterator[pd.DataFrame]:
    """The documents that whole models answer differently, of every two that are compared."""
    compared = table[(table["measure"] == SCORE) & (table["reference"] != "")]
    for (place, task, name, other), rows in compared.groupby(["place", "task", "run", "reference"], sort=False):
        own, whole = (runs[one].results[place] for one in (name, other))
        metric = documents.headline(task, list(rows["metric"]))
        found = changed_answers.of_task(own, task, metric, BASELINE, whole)
        found = found[found["answer"] != found["baseline_answer"]]
        yield found.assign(place=place, run=name, compared_with=other)


def _name(place: str, task: str, metric: str, parts: str) -> str:
    name = f"{place}: {task}" if place else task
    return f"{name} {metric.removesuffix(',none')}" + ("" if parts == WHOLE else f", {parts}")


def _measured(run: Run) -> Iterator[tuple[tuple[str, ...], Measured]]:
    """Everything that a run measured, by the values of `KEY`."""
    for place, result in run.results.items():
        one_model(result)
        ends = {"loss": "value", "loss_low": "ci_low", "loss_high": "ci_high"}
        table = result.loss_table.drop(columns=ends.values()).rename(columns=ends)
        whole = result.baselines.rename(columns={"baseline": "value"}).assign(condition=BASELINE, critical=False)
        every = pd.concat([whole, table]).sort_values(["layer", "head"], kind="stable", na_position="first")
        every["parts"] = every["condition"].map(_kind)
        n_heads = (result.record.get("model") or {}).get("dims", {}).get("n_heads")
        for key, rows in every.groupby(["task", "metric", "parts"], sort=False):
            losses = result.losses(*key[:2]).select(slice(0) if key[2] == WHOLE else list(rows["condition"]))
            shape = result.n_layers, n_heads if rows["condition"].str.contains(r"\.[HKE]").any() else None
            deciding = run_settings.deciding(run_settings.settings(result, *key[:2]), rows["condition"])
            rows = rows.set_index("condition", drop=False)
            yield (place, *key), Measured(run.name, key[2], rows, losses, shape, deciding)


def _kind(condition: str) -> str:
    """The kind of part in the words of a sweep, such as ``layers[1:]`` or ``heads@mean``.

    Blocks, lists and everything else that is not one part are `OTHER`.
    """
    if condition == BASELINE:
        return WHOLE
    first, *more = parse_condition(condition).ablations
    return OTHER if more or first.site not in WORDS else WORDS[first.site] + first.suffix


def _matched(own: Measured, reference: Measured) -> tuple[list[tuple[Measured, Measured]], list[str]]:
    """Two runs on the documents of the smaller one, with the same conditions if these are comparable.

    Returns:
        The two, if they can be compared, and what limits the comparison.
    """
    both, names = (own, reference), f"{own.run} and {reference.run}"
    if differs := mismatches(reference.deciding, own.deciding):
        fault = f"{own.run} not compared with {reference.run}, whose settings differ ({reference.run} first)"
        return [], [f"{fault}: {'; '.join(differs)}"]
    sizes, known = [len(one.losses.documents) for one in both], set(reference.losses.documents)
    shared, limits = [name for name in own.losses.documents if name in known], list[str]()
    if len(shared) < max(FEWEST, min(sizes)):
        return [], [f"{names} have different documents ({len(shared)} are of both), so that they are not compared"]
    if sizes[0] != sizes[1]:
        limits.append(f"{names} are compared on the {len(shared)} documents that both have")
    conditions = [one.rows.index for one in both]
    if own.shape != reference.shape:
        limits.append(f"the models of {names} have other shapes, so that no loss is compared part by part")
    else:
        n, conditions = max(map(len, conditions)), [conditions[0].intersection(conditions[1], sort=False)] * 2
        if len(conditions[0]) < n:
            limits.append(f"{names} have {len(conditions[0])} of {n} conditions in common")
    return [(own.of(shared, conditions[0]), reference.of(shared, conditions[1]))], limits


def _values(one: Measured) -> pd.DataFrame:
    """What a run measured: one row a measure and condition."""
    s, whole = one.losses, one.parts == WHOLE
    depth = np.nan if whole else np.where(s.layers < 0, np.nan, s.depth)
    rows = one.rows.assign(measure=SCORE if whole else LOSS, depth=depth, why=AT_CHANCE if s.at_chance else "")
    of_centre = {"measure": CENTRE, "condition": "", "critical": False, "why": s.unplaced}
    found = [rows]
    for measure, mean in one.derived().items():
        own = pd.DataFrame([of_centre]) if measure == CENTRE else rows.assign(measure=measure)
        found.append(own.assign(**mean.columns("value")))
    return pd.concat(found).reindex(columns=VALUES).assign(run=one.run, n=len(s.documents))


def _tests(own: Measured, reference: Measured, n_pairs: int) -> Iterator[pd.DataFrame]:
    """Differences of what a run and its reference measured, as far as they are comparable."""
    a, b = own.losses, reference.losses
    same_shape, partial = own.shape == reference.shape, any(len({*s.layers}) < s.n_layers for s in (a, b))
    judged = same_shape and not (a.at_chance or b.at_chance) and len(set(a.units)) >= FEWEST
    if own.parts == WHOLE:
        gaps = {SCORE: a.gain_over(b) * a.sign}
    else:
        found, others = ({LOSS: one.losses.mean(), **one.derived()} for one in (own, reference))
        common = [measure for measure in found if measure in others and (judged or measure == CENTRE)]
        gaps = {measure: found[measure] - others[measure] for measure in common}
    for measure, gap in gaps.items():
        of_parts = measure in (LOSS, SHARE)
        if measure == CENTRE and (len(a.layers) < 2 or (partial and not same_shape)):
            gap = gap * np.nan
        p = np.minimum(n_pairs * (max_t(gap) if of_parts else gap.p()), 1.0)
        p = np.where(np.isnan(gap.value), np.nan, p)
        columns = dict(zip(TEST, map(np.atleast_1d, (gap.value, *gap.interval(), p, p < ALPHA)), strict=True))
        if measure == LOSS:
            columns["shown"] &= np.abs(gap.value) > own.rows["min_effect"].to_numpy()
        names = "" if measure == CENTRE else own.rows.index
        about = {"run": own.run, "reference": reference.run, "n_paired": len(a.base)}
        yield pd.DataFrame({"measure": measure, "condition": names, **columns}).assign(**about)


# -- sentences -----------------------------------------------------------------------------------------

SETTINGS = "The runs differ in {names}, which **decide scores**; they are compared where these are equal."
SAME_SETTINGS = "No setting that decides scores differs between the runs."
SAID = {SCORE: ("the score", "the losses"), CENTRE: ("the centre of mass of the losses", "the place of the losses")}
IDLE = "{name}: cannot judge {losses} of {run} ({why})."
DIFFERENCE = (
    "{name}: {what} of {run} is {value:.2f}, a difference of {difference:+.3f} [{difference_low:+.3f}, "
    "{difference_high:+.3f}] from {reference} that is {verdict} (p = {p_adjusted:.2g}, n = {n_paired})."
)
LOSSES = "{name}: {count} losses are shown to differ between {run} and {reference} ({measure}; largest: {largest})."


def _sentences(settings: pd.DataFrame, table: pd.DataFrame) -> Iterator[str]:
    """What the tables say; what is shown is bold."""
    differs = settings[~settings["equal"] & (settings["kind"] == run_settings.DECIDES)]["setting"].unique()
    yield SETTINGS.format(names=", ".join(differs)) if len(differs) else SAME_SETTINGS
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
