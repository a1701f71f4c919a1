"""Runs side by side: what they measured, where they are comparable, and in what they are shown to differ.

What two runs measured is matched by `KEY`: the folder below the run, the task, the metric, and the kind of part. Runs
are compared only where every setting that decides a score is the same (`depthlens.analysis.run_settings`); what differs
is listed, and nothing is tested there. Each run is compared with the first run of the same settings, or, for stages of
training, with the one before it, on the documents that both have: those with the same hash, or, where hashes are not
known, with the same number (`depthlens.analysis.questions.identities`).

A difference is tested as a difference, paired by question (`depthlens.analysis.means`): scores of whole models; losses
by condition, in the metric's unit and as shares of the score above the floor, with step-down maxT over the kind of
part; the centre of mass and the thirds' shares of all losses. Several runs are several tests: every p-value is
multiplied by the number of pairs of runs, and those of thirds by three, too (Bonferroni). Nats are at most 1
a document. A loss or a claim that is shown in one run and not in another is no difference. A run at
chance has nothing to lose, and nothing is concluded from it. Losses by condition are compared only between models with
as many layers (and heads); other models are compared by relative depth.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis import run_settings, stats
from depthlens.analysis.findings import Finding, joined
from depthlens.analysis.means import Mean, max_t
from depthlens.analysis.results import Result
from depthlens.analysis.scores import THIRDS, Scores, layer_third, one_model, scores_of
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError

KEY = ["place", "task", "metric", "parts"]
SCORE, ABOVE_FLOOR = "score", "above floor"
CENTRE = "centre of mass"
OTHER, WHOLE = "other conditions", "whole model"
OVER_DEPTH = ("layers", "attn", "mlp")  # one part a layer
FEWEST = 2  # documents that are compared
NAMED = 6  # conditions in a sentence
TEST = ["difference", "difference_low", "difference_high", "p_adjusted", "shown"]
NO_TEST = {"reference": "", "documents": "", **dict.fromkeys(TEST[:-1], math.nan), "shown": False}
BASELINES = [
    *KEY[:3], "run", "model", "n", "baseline", "ci_low", "ci_high", "chance", "at_chance", "group", "reference",
    "documents", *TEST,
]  # fmt: skip
PROFILES = [
    *KEY, "run", "group", "condition", "layer", "head", "depth", "n", "loss", "ci_low", "ci_high", "share", "share_low",
    "share_high", "p_adjusted", "critical", "at_chance",
]  # fmt: skip
DIFFERENCES = [
    *KEY, "condition", "layer", "head", "run", "reference", "n", "scale", "loss", "reference_loss", "difference",
    "ci_low", "ci_high", "p_adjusted", "shown",
]  # fmt: skip
CENTRES = [*KEY, "run", "group", "measure", "n", "value", "ci_low", "ci_high", "why", "reference", "documents", *TEST]
COLUMNS = {"baselines": BASELINES, "profiles": PROFILES, "differences": DIFFERENCES, "centres": CENTRES}
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
        baseline: The row of `depthlens.Result.baselines`.
        losses: Rows of `depthlens.Result.losses`, one a condition, by layer and head; none of the whole model.
        scores: A column for each row of ``losses``; ``layers`` is -1 where a condition is not of one part.
        shape: Layers of the model, and its heads where conditions are of heads.
        deciding: See `depthlens.analysis.run_settings.deciding`.
    """

    run: str
    baseline: Mapping[str, Any]
    losses: pd.DataFrame
    scores: Scores
    shape: tuple[int, int | None]
    deciding: Mapping[str, Any]

    @property
    def has_room(self) -> bool:
        """Whether the whole model scores above a floor, so that losses are shares of something."""
        s = self.scores
        return s.floor is not None and not s.at_chance and bool(s.base.mean() > s.floor)

    def of(self, conditions: Sequence[str], documents: Sequence[str]) -> Measured:
        """The same with some conditions and documents, in the order that is given."""
        at = pd.Index(self.losses["condition"]).get_indexer(pd.Index(conditions))
        rows = pd.Index(self.scores.documents).get_indexer(pd.Index(documents))
        scores = self.scores.of(documents=rows.tolist(), conditions=at)
        return replace(self, scores=scores, losses=self.losses.iloc[at].reset_index(drop=True))


Pair = tuple[Measured, Measured, str]  # a run, what it is compared with, and on which documents


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Finding):
    """Runs side by side. A difference is always that of ``run`` minus ``reference``.

    Rows are matched by ``place`` (the folder below the run), ``task``, ``metric`` and ``parts`` (the kind of part and
    the way of removing it, such as ``layers`` or ``heads@mean``). Runs with the same ``group`` have the same settings.

    Attributes:
        settings: One row a setting and run; see `depthlens.analysis.run_settings.table`.
        baselines: One row a run, task and metric: the whole model's score with its 95% interval, chance, and its
            difference (``p_adjusted`` by Bonferroni over the pairs of runs).
        profiles: One row a run and condition: loss in the metric's unit, ``share`` of the score above the floor, both
            with 95% intervals, ``depth`` (layer / (n_layers - 1)), and whether the condition is critical.
        differences: One row a condition, pair of runs and ``scale`` (``score`` or ``above floor``); ``shown`` where
            ``p_adjusted`` is below 0.05. Intervals are of one condition.
        centres: One row a run, kind of part over depth and ``measure``: ``centre of mass`` as a share of depth, and the
            share of all losses that each third of the layers holds; ``why`` there is no value.
        verdicts: One row a run and part of a claim, with the estimate that decides the part.
        notes: What was not compared, and why.
        sentences: See `describe`.
        record: Runs, models, and whether the runs are stages.
    """

    settings: pd.DataFrame
    baselines: pd.DataFrame
    profiles: pd.DataFrame
    differences: pd.DataFrame
    centres: pd.DataFrame
    verdicts: pd.DataFrame
    notes: Sequence[str]
    sentences: Sequence[str]
    record: dict[str, Any]

    @property
    def runs(self) -> list[str]:
        """Names of the runs, in the order that they were given."""
        return list(self.record["runs"])

    @property
    def stages(self) -> bool:
        """Whether the runs are stages of training, each compared with the one before it."""
        return bool(self.record["stages"])

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
    rows: dict[str, list[pd.DataFrame]] = {name: [] for name in COLUMNS}
    notes: list[str] = []
    for key, by_run in measured.items():
        if len(by_run) < (len(runs) if key[3] == WHOLE else len(measured[*key[:3], WHOLE])):
            notes.append(f"only {' and '.join(by_run)} has {_name(*key)}")
        pairs, groups, limits = _pairs(by_run, stages)
        notes += [f"{key[0]}: {key[1]}: {limit}".removeprefix(": ") for limit in limits]
        for name, table in _tables(key[3], by_run, pairs):
            about = dict(zip(KEY, key, strict=True))
            rows[name].append(table.assign(**about, group=table["run"].map(groups)))
    tables = {name: joined(rows[name], columns) for name, columns in COLUMNS.items()}
    tables |= {"settings": run_settings.table({run.name: run.results for run in runs}), "verdicts": _verdicts(runs)}
    models = {run.name: sorted({m for r in run.results.values() for m in r.docs["model"].unique()}) for run in runs}
    record: dict[str, Any] = {"made_by": "compare", "runs": list(models), "models": models, "stages": stages}
    record["paths"] = [run.path for run in runs]
    return Comparison(**tables, notes=list(dict.fromkeys(notes)), sentences=list(_sentences(tables)), record=record)


def _name(place: str, task: str, metric: str, parts: str) -> str:
    name = f"{place}: {task}" if place else task
    return f"{name} {metric.removesuffix(',none')}" + ("" if parts == WHOLE else f", {parts}")


def _verdicts(runs: Sequence[Run]) -> pd.DataFrame:
    """One row a place, run and part of a claim, with the estimate that decides the part."""
    found = [
        parts.drop_duplicates(["claim", "part"]).assign(place=place, run=run.name)
        for run in runs
        for place, parts in run.verdicts.items()
    ]
    return joined(found, VERDICTS).sort_values("place", kind="stable", ignore_index=True)


# -- what is compared ----------------------------------------------------------------------------------


def _measured(run: Run) -> Iterator[tuple[tuple[str, ...], Measured]]:
    """Everything that a run measured, by the values of `KEY`."""
    for place, result in run.results.items():
        one_model(result)
        losses, dims = result.losses(), (result.record.get("model") or {}).get("dims") or {}
        kinds = [_kind(condition) for condition in losses["condition"]]
        losses[["parts", "at", "number"]] = pd.DataFrame(kinds, losses.index, ["parts", "at", "number"])
        for base in result.baselines.itertuples(index=False):
            named = run_settings.settings(result, base.task, base.metric)
            of_metric = losses[(losses["task"] == base.task) & (losses["metric"] == base.metric)]
            for parts, rows in [(WHOLE, of_metric.head(0)), *of_metric.groupby("parts", sort=False)]:
                rows = rows.sort_values(["at", "number"], kind="stable", ignore_index=True)
                conditions, layers = rows["condition"], rows["at"].to_numpy(dtype=int)
                scores = scores_of(result, base, base.task, list(conditions), layers)
                n_heads = dims.get("n_heads") if conditions.str.contains(r"\.[HKE]").any() else None
                shape, deciding = (result.n_layers, n_heads), run_settings.deciding(named, conditions)
                one = Measured(run.name, base._asdict(), rows, scores, shape, deciding)
                yield (place, base.task, base.metric, parts), one


def _kind(condition: str) -> tuple[str, int, int]:
    """The kind of part in the words of a sweep (``layers[1:]``, ``heads@mean``), its layer and its number.

    Blocks, lists and everything else that is not one part are `OTHER`.
    """
    first, *more = parse_condition(condition).ablations
    if more or first.site not in WORDS:
        return OTHER, -1, -1
    return WORDS[first.site] + first.suffix, first.layer, first.index


def _pairs(by_run: Mapping[str, Measured], stages: bool) -> tuple[list[Pair], dict[str, int], list[str]]:
    """Runs and what they are compared with, numbers of groups of equal settings, and what limits the comparison.

    A run is compared with the first of the same settings, or for stages with the last before it.
    """
    pairs: list[Pair] = []
    groups: dict[str, int] = {}
    limits: list[str] = []
    for run, own in by_run.items():
        same = [name for name in groups if by_run[name].deciding == own.deciding]
        if same:
            pair, more = _pair(own, by_run[same[-1 if stages else 0]])
            pairs, limits = [*pairs, *pair], [*limits, *more]
        elif groups:
            first = next(iter(by_run.values()))
            differs = "; ".join(run_settings.mismatches(first.deciding, own.deciding))
            limits.append(f"{run} not compared with {first.run}, whose settings differ ({first.run} first): {differs}")
        groups[run] = groups[same[0]] if same else len({*groups.values()}) + 1
    return pairs, groups, limits


def _pair(own: Measured, reference: Measured) -> tuple[list[Pair], list[str]]:
    """A run and its reference on the documents of the smaller one, with the same conditions if these are comparable.

    Returns:
        The pair, none if they have other documents; and what limits the comparison.
    """
    names, both = f"{own.run} and {reference.run}", (own, reference)
    sizes, known = [len(one.scores.documents) for one in both], set(reference.scores.documents)
    shared = [name for name in own.scores.documents if name in known]
    if len(shared) < max(FEWEST, min(sizes)):
        return [], [f"{names} have different documents ({len(shared)} are of both), so that they are not compared"]
    documents, limits = "the same documents", []
    if sizes[0] != sizes[1]:
        documents = f"the {len(shared)} documents that both have"
        limits.append(f"{names} are compared on {documents}")
    conditions = [list(one.losses["condition"]) for one in both]
    if own.shape != reference.shape:
        limits.append(f"the models of {names} have other shapes, so that no loss is compared part by part")
    else:
        common = [name for name in conditions[0] if name in set(conditions[1])]
        if len(common) < max(map(len, conditions)):
            limits.append(f"{names} have {len(common)} of {max(map(len, conditions))} conditions in common")
        conditions = [common, common]
    return [(own.of(conditions[0], shared), reference.of(conditions[1], shared), documents)], limits


# -- rows of the tables --------------------------------------------------------------------------------


def _tables(parts: str, by_run: Mapping[str, Measured], pairs: Sequence[Pair]) -> Iterator[tuple[str, pd.DataFrame]]:
    """Rows of the tables, each with the name of its table."""
    whole = parts == WHOLE
    for one in () if whole else by_run.values():
        yield "profiles", _profile(one)
    for own, reference, _ in () if whole else pairs:
        for rows in _losses(own, reference, len(pairs)):
            yield "differences", rows
    if re.split(r"[\[@]", parts)[0] not in (WHOLE, *OVER_DEPTH):
        return
    tests: dict[str, dict[str, Any]] = {}
    n_tests = len(pairs) * np.array(1 if whole else [1, *[len(THIRDS)] * len(THIRDS)])
    for own, reference, documents in pairs:
        gap = _whole_models(own, reference) if whole else _moved(own, reference)
        tests[own.run] = {"reference": reference.run, "documents": documents, **_test(gap, gap.p() * n_tests)}
    for run, one in by_run.items():
        table = pd.DataFrame(one.baseline, index=[0]) if whole else _placed(one)
        yield "baselines" if whole else "centres", table.assign(run=run, **NO_TEST | tests.get(run, {}))


def _test(gap: Mean, p: np.ndarray) -> dict[str, np.ndarray]:
    """A difference, its interval, its corrected p-value, and whether it is shown."""
    p = np.where(np.isnan(gap.value), np.nan, np.minimum(p, 1.0))
    return dict(zip(TEST, map(np.atleast_1d, (gap.value, *gap.interval(), p, p < ALPHA)), strict=True))


def _whole_models(own: Measured, reference: Measured) -> Mean:
    """The score of the run's whole model minus that of the reference's, in the metric's unit."""
    a, b = own.scores, reference.scores
    return stats.changes(a.metric, a.sign * (a.base - b.base), a.units)


def _profile(one: Measured) -> pd.DataFrame:
    scores = one.scores
    share = scores.relative_loss() if one.has_room else scores.mean_loss() * np.nan
    columns = dict(zip(("share_low", "share_high"), share.interval(), strict=True))
    columns |= {"share": share.value, "depth": np.where(scores.layers >= 0, scores.depth, np.nan)}
    ends = {"loss_low": "ci_low", "loss_high": "ci_high"}
    return one.losses.drop(columns=[*ends.values()]).rename(columns=ends).assign(run=one.run, **columns)


def _losses(own: Measured, reference: Measured, n_pairs: int) -> Iterator[pd.DataFrame]:
    """How much more each condition costs the run than the reference, on every scale that there is."""
    a, b = own.scores, reference.scores
    if own.shape != reference.shape or a.at_chance or b.at_chance or own.losses.empty or len(set(a.units)) < FEWEST:
        return
    scales = {SCORE: (a.mean_loss(), b.mean_loss())}
    if own.has_room and reference.has_room:
        scales[ABOVE_FLOOR] = a.relative_loss(), b.relative_loss()
    for scale, (loss, reference_loss) in scales.items():
        gap = loss - reference_loss
        rows = own.losses[["condition", "layer", "head", "min_effect"]].assign(**_test(gap, max_t(gap) * n_pairs))
        if scale == SCORE:
            rows["shown"] &= rows["difference"].abs() > rows["min_effect"]
        rows = rows.rename(columns={"difference_low": "ci_low", "difference_high": "ci_high"})
        about = {"run": own.run, "reference": reference.run, "n": len(a.base), "scale": scale}
        yield rows.assign(loss=loss.value, reference_loss=reference_loss.value, **about)


def _places(scores: Scores) -> Mean:
    """Centre of mass and the thirds' shares of all losses, NaN where they cannot be placed. Shape [4]."""
    inside = (layer_third(scores.layers, scores.n_layers)[:, None] == np.arange(len(THIRDS))).astype(float)
    weights = inside if inside.any(0).all() else inside * np.nan
    found = scores.share(np.column_stack([scores.depth, weights]))
    return found * np.nan if scores.unplaced else found


def _placed(one: Measured) -> pd.DataFrame:
    found = _places(one.scores).columns("value")
    about = {"measure": [CENTRE, *THIRDS], "n": len(one.scores.documents), "why": one.scores.unplaced}
    return pd.DataFrame(about | found).drop(columns="p_value")


def _moved(own: Measured, reference: Measured) -> Mean:
    """Where the losses of the run are, minus where those of the reference are.

    NaN for models of other shapes, unless every layer of both was removed.
    """
    gap = _places(own.scores) - _places(reference.scores)
    partial = any(len(np.unique(one.scores.layers)) < one.shape[0] for one in (own, reference))
    return gap * np.nan if partial and own.shape != reference.shape else gap


# -- sentences -----------------------------------------------------------------------------------------

SETTINGS = "The runs differ in {names}, which **decide scores**; they are compared where these are equal."
SAME_SETTINGS = "No setting that decides scores differs between the runs."
IDLE = "{name}: cannot judge {losses} of {run} ({why})."
DIFFERENCE = (
    "{name}: {value_of} of {run} is {value:.2f}, a difference of {difference:+.3f} [{difference_low:+.3f}, "
    "{difference_high:+.3f}] from {reference} that is {verdict} (p = {p_adjusted:.2g}, n = {n}, {documents})."
)
LOSSES = "{name}: {count} losses are shown to differ between {run} and {reference} ({scale}; largest: {largest})."


def _sentences(tables: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """What the tables say; what is shown is bold."""
    settings, whole, centres = tables["settings"], tables["baselines"], tables["centres"]
    differs = settings[~settings["equal"] & (settings["kind"] == run_settings.DECIDES)]["setting"].unique()
    yield SETTINGS.format(names=", ".join(differs)) if len(differs) else SAME_SETTINGS
    why = np.where(whole["at_chance"].astype(bool), "**at chance**", "")
    whole = whole.assign(parts=WHOLE, value=whole["baseline"], why=why, value_of="the score", losses="the losses")
    centres = centres[centres["measure"] == CENTRE].assign(
        value_of="the centre of mass of the losses", losses="the place of the losses"
    )
    for row in [*whole.to_dict("records"), *centres.to_dict("records")]:
        name, verdict = _name(*(row[column] for column in KEY)), "**shown**" if row["shown"] else "not shown"
        if row["why"]:
            yield IDLE.format(name=name, **row)
        if not math.isnan(row["difference"]):
            yield DIFFERENCE.format(name=name, verdict=verdict, **row)
    for (*key, run, reference, scale), rows in tables["differences"].groupby(
        [*KEY, "run", "reference", "scale"], sort=False
    ):
        n_shown, ordered = rows["shown"].sum(), rows.sort_values("difference", key=lambda gaps: -gaps.abs())
        largest = ", ".join(f"{row.condition} {row.difference:+.2f}" for row in ordered.head(NAMED).itertuples())
        count = f"**{n_shown} of {len(rows)}**" if n_shown else f"none of {len(rows)}"
        about = {"run": run, "reference": reference, "scale": scale, "largest": largest}
        yield LOSSES.format(name=_name(*key), count=count, **about)
