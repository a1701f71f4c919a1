"""Runs side by side: what they measured, where they are comparable, and in what they are shown to differ.

Results are paired by the folder below the run, the task, the metric and the family of conditions
(`depthlens.analysis.run_families`). Runs are compared only where every setting that decides a score is the same
(`depthlens.analysis.run_settings`); what differs is listed and nothing is tested there. Each run is compared with the
first run of the same settings, or, for stages of training, with the one before it, on the documents that both have.
Tests are in `depthlens.analysis.run_differences`. Verdicts stand side by side (`depthlens.analysis.run_verdicts`).

A loss that is critical in one run and not in another is no difference: only tested differences are called so. A run
that is at chance on a metric has nothing to lose there, and nothing is concluded from it. Losses by condition are
compared only between models with as many layers (and heads); other models are compared by relative depth.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from depthlens.analysis import run_differences, run_sentences, run_settings, run_verdicts
from depthlens.analysis.findings import Finding
from depthlens.analysis.run_families import WHOLE, Family, Key, Pair, Run, families, pair, same_parts
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError

BASELINES = [
    *Key._fields[:3], "run", "model", "n", "baseline", "ci_low", "ci_high", "chance", "at_chance", "group", "reference",
    "documents", "difference", "difference_low", "difference_high", "p_adjusted", "shown",
]  # fmt: skip
PROFILES = [
    *Key._fields, "run", "group", "condition", "layer", "head", "depth", "n", "loss", "ci_low", "ci_high", "share",
    "share_low", "share_high", "p_adjusted", "critical", "at_chance",
]  # fmt: skip
CENTRES = [
    *Key._fields, "run", "group", "measure", "n", "value", "ci_low", "ci_high", "why", "reference",
    "difference", "difference_low", "difference_high", "p_adjusted", "shown",
]  # fmt: skip


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Finding):
    """Runs side by side. A difference is always that of ``run`` minus ``reference``.

    Rows are matched by ``place`` (the folder below the run), ``task``, ``metric`` and ``parts`` (the family of
    conditions, such as ``layers`` or ``heads@mean``). Runs with the same ``group`` have the same settings.

    Attributes:
        settings: One row a setting and run; see `depthlens.analysis.run_settings.table`.
        baselines: One row a run, task and metric: the whole model's score with its 95% interval, chance, and its
            difference (``p_adjusted`` by Bonferroni over the pairs of runs).
        profiles: One row a run and condition: loss in the metric's unit, ``share`` of the score above the floor, both
            with 95% intervals, ``depth`` (layer / (n_layers - 1)), and whether the condition is critical.
        differences: One row a condition, pair of runs and ``scale`` (``score`` or ``above floor``); ``shown`` where
            ``p_adjusted`` is below 0.05. Intervals are of one condition.
        centres: One row a run, family over depth and ``measure``: ``centre of mass`` as a share of depth, and the share
            of all losses that each third of the layers holds.
        verdicts: One row a run and part of a claim; see `depthlens.analysis.run_verdicts`.
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
        UserError: fewer than two runs, results that cannot be read together, or runs with nothing in common.
    """
    if len(runs) < 2:
        raise UserError(f"{len(runs)} runs; a comparison needs two or more")
    of_key: dict[Key, dict[str, Family]] = {}
    for run in runs:
        for key, family in families(run):
            of_key.setdefault(key, {})[run.name] = family
    if not any(len(found) > 1 for found in of_key.values()) and not run_verdicts.in_common(runs):
        measured = "; ".join(f"{run.name} has {_measured(run, of_key)}" for run in runs)
        raise UserError(f"the runs have no task and metric in common ({measured}); compare runs of the same tasks")
    rows: dict[str, list] = defaultdict(list)
    notes = _only_some(runs, of_key)
    for key, found in of_key.items():
        groups = _groups(found)
        pairs = [pair(found[a], found[b]) for a, b in _pairs(groups, stages)]
        whole = groups if key.parts == WHOLE else _groups(of_key[key._replace(parts=WHOLE)])
        if key.parts == WHOLE or any(whole[name] != group for name, group in groups.items()):
            notes += _other_settings(key, found, groups)
        notes += _limits(key, found, pairs)
        pairs = [one for one in pairs if one.paired]
        if key.parts == WHOLE:
            rows["baselines"] += _baselines(key, found, groups, pairs)
        else:
            rows["profiles"] += [_profile(key, family, groups[name]) for name, family in found.items()]
            for one in pairs:
                if same_parts(one.own, one.reference):
                    rows["differences"] += run_differences.losses(key, one, len(pairs))
            if key.over_depth:
                rows["centres"] += _centres(key, found, groups, pairs)
    settings = run_settings.table(_settings(runs))
    found_tables = {
        "settings": settings,
        "baselines": pd.DataFrame(rows["baselines"], columns=BASELINES),
        "profiles": _joined(rows["profiles"], PROFILES),
        "differences": _joined(rows["differences"], run_differences.DIFFERENCES),
        "centres": pd.DataFrame(rows["centres"], columns=CENTRES),
        "verdicts": run_verdicts.table(runs),
    }
    record: dict[str, Any] = {
        "made_by": "compare",
        "runs": [run.name for run in runs],
        "paths": [run.path for run in runs],
    }
    record |= {"models": _models(runs), "stages": stages}
    notes = list(dict.fromkeys(notes))
    lines = list(run_sentences.sentences(found_tables))
    return Comparison(**found_tables, notes=notes, sentences=lines, record=record)


def _measured(run: Run, of_key: Mapping[Key, Mapping[str, Family]]) -> str:
    names = [str(key) for key, found in of_key.items() if run.name in found and key.parts == WHOLE]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "verdicts alone"


def _models(runs: Sequence[Run]) -> dict[str, list[str]]:
    return {run.name: sorted({str(m) for r in run.results.values() for m in r.docs["model"].unique()}) for run in runs}


def _joined(tables: Sequence[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=list(columns))


def _settings(runs: Sequence[Run]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    """Settings of each run by place and task, of the first metric of the task."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for run in runs:
        for place, result in run.results.items():
            for task, rows in result.docs.groupby("task", sort=False):
                named = run_settings.settings(result, str(task), str(rows["metric"].iloc[0]))
                found.setdefault((place, str(task)), {})[run.name] = named
    return found


# -- which runs are compared ---------------------------------------------------------------------------


def _groups(found: Mapping[str, Family]) -> dict[str, int]:
    """Runs with the same settings have the same number, from 1 in the order of the runs."""
    kinds: list[Mapping[str, Any]] = []
    for family in found.values():
        if family.deciding not in kinds:
            kinds.append(family.deciding)
    return {name: kinds.index(family.deciding) + 1 for name, family in found.items()}


def _pairs(groups: Mapping[str, int], stages: bool) -> Iterator[tuple[str, str]]:
    """A run and what it is compared with: the first run of its group, or for stages the one before."""
    for number in dict.fromkeys(groups.values()):
        members = [name for name, group in groups.items() if group == number]
        for i, name in enumerate(members[1:]):
            yield name, members[i if stages else 0]


def _only_some(runs: Sequence[Run], of_key: Mapping[Key, Mapping[str, Family]]) -> list[str]:
    """What only some of the runs have."""
    missing: dict[tuple[str, ...], list[Key]] = {}
    for key, found in of_key.items():
        whole = of_key.get(key._replace(parts=WHOLE), {})
        if len(found) < len(whole if key.parts != WHOLE else runs):
            missing.setdefault(tuple(found), []).append(key)
    return [f"only {' and '.join(names)} has {'; '.join(map(str, keys))}" for names, keys in missing.items()]


def _where(key: Key) -> str:
    where = f"{key.place}: {key.task}" if key.place else key.task
    return where if key.parts == WHOLE else f"{where}, {key.parts}"


def _other_settings(key: Key, found: Mapping[str, Family], groups: Mapping[str, int]) -> Iterator[str]:
    """The settings that keep runs from being compared."""
    first = next(iter(found))
    for number in range(2, max(groups.values()) + 1):
        members = [name for name, group in groups.items() if group == number]
        differs = "; ".join(run_settings.mismatches(found[first].deciding, found[members[0]].deciding))
        names = f"{' and '.join(members)} not compared with {first}"
        yield f"{_where(key)}: {names}, whose settings differ ({first} first): {differs}"


def _limits(key: Key, found: Mapping[str, Family], pairs: Sequence[Pair]) -> Iterator[str]:
    """What limits the comparison of pairs: other documents, other shapes, conditions of one alone."""
    where = _where(key)
    for own, reference, paired, documents in pairs:
        names = f"{own.run} and {reference.run}"
        if key.parts == WHOLE:
            if not paired:
                yield f"{where}: {names} have {documents}, so that they are not compared"
            elif len(documents) > len("the same documents"):
                yield f"{where}: {names} are compared on {documents}"
        elif not same_parts(own, reference):
            layers, heads = ([f.profile.n_layers for f in (own, reference)], [f.n_heads for f in (own, reference)])
            sizes, what = (layers, "layers") if layers[0] != layers[1] else (heads, "heads a layer")
            yield f"{where}: {names} have {sizes[0]} and {sizes[1]} {what}, so that no loss is compared part by part"
        elif few := [f for f in (own, reference) if len(f.conditions) < len(found[f.run].conditions)]:
            more = " and ".join(f.run for f in few)
            yield f"{where}: {names} have {len(own.conditions)} conditions in common; others of {more} are left out"


# -- rows of the tables --------------------------------------------------------------------------------


def _baselines(
    key: Key, found: Mapping[str, Family], groups: Mapping[str, int], pairs: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    compared: dict[str, dict[str, Any]] = {}
    for p in pairs:
        change = run_differences.whole_models(p)
        difference, low, high = (float(x) for x in (change.value, *change.interval()))
        p_value = min(1.0, float(change.p()) * len(pairs))
        compared[p.own.run] = {
            "reference": p.reference.run,
            "documents": p.documents,
            "difference": difference,
            "difference_low": low,
            "difference_high": high,
            "p_adjusted": p_value,
            "shown": p_value < ALPHA,
        }
    for name, family in found.items():
        row = {"place": key.place, "run": name, "group": groups[name], **family.baseline}
        blank = {"reference": "", "documents": "", "shown": False}
        yield {**dict.fromkeys(BASELINES, math.nan), **row, **blank, **compared.get(name, {})}


def _profile(key: Key, family: Family, group: int) -> pd.DataFrame:
    """The rows of `PROFILES` of one run and family."""
    losses, profile = family.losses, family.profile
    shares = np.full((3, len(losses)), np.nan)
    if family.has_room:
        found = profile.relative_loss()
        shares[:] = found.value, *found.interval()
    depth = np.where(profile.layers >= 0, profile.depth, np.nan)
    columns = {
        **key._asdict(),
        "run": family.run,
        "group": group,
        "condition": losses["condition"],
        "layer": losses["layer"],
        "head": losses["head"],
        "depth": depth,
        "n": losses["n"],
        "loss": losses["loss"],
        "ci_low": losses["loss_low"],
        "ci_high": losses["loss_high"],
        "share": shares[0],
        "share_low": shares[1],
        "share_high": shares[2],
        "p_adjusted": losses["p_adjusted"],
        "critical": family.critical,
        "at_chance": profile.at_chance,
    }
    return pd.DataFrame(columns)[PROFILES]


def _centres(
    key: Key, found: Mapping[str, Family], groups: Mapping[str, int], pairs: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    """The rows of `CENTRES` of one family."""
    compared = {p.own.run: (p.reference.run, run_differences.moved(p, len(pairs))) for p in pairs}
    for name, family in found.items():
        reference, moves = compared.get(name, ("", np.full((4, 4), np.nan)))
        for row, move in zip(run_differences.placed(family), moves, strict=True):
            numbers = dict(zip(("difference", "difference_low", "difference_high", "p_adjusted"), move, strict=True))
            about = {"reference": reference, "shown": bool(move[3] < ALPHA)}
            yield {**key._asdict(), "run": name, "group": groups[name], **row, **about, **numbers}
