"""Do two rankings of a model's parts agree: of two tasks, models or modes, of two head sweeps, or of two detectors?

Losses are measured on documents, so that the noise of a correlation is known: `agreement` is a table of
`depthlens.analysis.numbers.ranks`, with ceiling and p-value.

**Modes.** A part can be skipped, set to zero, replaced by its mean or by what another prompt gives, or disturbed by
noise, with or without the first token. A finding about the part should not depend on the way. Hase et al. 2021 (arXiv
2106.00786) and Zhang and Nanda 2024 (arXiv 2309.16042) show why modes differ: some take the model further from its
training distribution than others.

**Numbers.** Whether a cheap number of each layer predicts what removing the layer costs. Limit: the first layer changes
the residual stream most and costs most in nearly every model. It alone can make a correlation.

**Detectors** give each head one score. Two scores can correlate over all heads because both are high in the same
layers, although within a layer they pick different heads. `detector_agreement` therefore permutes the heads of each
layer, and compares both statistics, Spearman's correlation over heads and the number of heads that two lists of k
share, with their values under these permutations::

    p = (1 + number of permutations with a value at least as large) / (1 + number of permutations)

All tests of one table are one family (Bonferroni). Limits: sampling noise of a score lowers a correlation. Detectors
that are measured on the same needles share that noise. Agreement does not say that either detector finds what matters:
two that look at attention agree on a decoy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis.heads.effects import head_conditions
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.ranks import COLUMNS, pairwise, ranks, within_layers
from depthlens.analysis.numbers.stats import ALPHA, BASELINE
from depthlens.analysis.result.losses import Losses
from depthlens.analysis.result.profiles import by_layer, paired
from depthlens.analysis.result.results import Result
from depthlens.analysis.result.tables import DescribedTable
from depthlens.errors import UserError, blaming

Place = tuple[int, int]  # layer, and the index of a head or KV group (-1 for other parts)
Tables = dict[str, pd.DataFrame]  # by name: what every unit adds to the loss of each part
# what rows of one origin share, with their tables; columns before those of a correlation, each with its entry of a row;
# what is said of a row; and what is said where there is none
Compared = tuple[list[tuple[dict[str, str], Tables]], dict[str, str], str, str]
N_PERMUTATIONS = 9999
OF_DETECTORS = [
    "a", "b", "n_heads", "spearman", "expected_spearman", "p_spearman", "p_spearman_adjusted",
    "n_shared", "expected_shared", "p_shared", "p_shared_adjusted", "heads",
]  # fmt: skip
DETECTORS = (
    "{a} and {b} {verdict}: rho = {spearman:.2f} over {n_heads} heads (by layers alone {expected_spearman:.2g}, p = "
    "{p_spearman_adjusted:.2g}), {n_shared} of the first {k} shared (by layers alone {expected_shared:.2g}, p = "
    "{p_shared_adjusted:.2g})."
)


def agreement(a: Result, b: Result | pd.DataFrame | None = None, *, seed: int = 0) -> DescribedTable:
    """Whether removal ranks a model's parts alike: in two modes, tasks or sweeps, or as the numbers of a table do.

    - A sweep that removes the same single parts in several modes, such as ``layers,layers@mean``: every two modes of a
      task. The p-value compares different documents, so that one which is lost under every mode makes no agreement.
    - Any other sweep of layers or heads: every two tasks.
    - Two layer sweeps, of two models with the same tasks and documents: each task with itself. Nepal et al. 2025
      (arXiv 2506.22638) found that a base model and its fine-tuned one rank the layers alike.
    - Two head sweeps, such as exact and by attribution: each task and metric that both have. The p-value says whether
      they agree within layers, beyond what their profiles over depth explain.
    - A layer sweep and a table: each column, such as of `depthlens.Geometry.predictors`, with the losses. It
      counts as known, so that the ceiling is the square root of the losses' reliability.

    Args:
        a: A sweep of layers or heads.
        b: Another, or a table with one row a layer: ``layer``, and one column a predictor.
        seed: Of halves and permutations.

    Returns:
        One row a pair: task (and parts, mode, other such as ``skip[1:]`` or ``noise3``; other; metric; or predictor),
        and the columns of `depthlens.analysis.numbers.ranks` over the parts that both have. Tasks at chance have no
        rows, but of two head sweeps. It is described by one sentence a pair.

    Raises:
        UserError: conditions that are not one a layer or one a head; or two sweeps that do not match.
        KeyError: a removed layer that the table lacks.

    Example:
        >>> modes = dl.condition_sweep(lens, "organism_one_hop", ["layers", "layers[1:]"], limit=12)
        >>> dl.agreement(modes).table[["task", "parts", "mode", "other"]]
                       task   parts  mode     other
        0  organism_one_hop  layers  skip  skip[1:]
        >>> dl.agreement(both).table[["task", "other"]]
                       task             other
        0  organism_one_hop  organism_two_hop
        >>> dl.agreement(heads, estimated).table[["task", "metric"]]
                       task          metric
        0  organism_one_hop  answer_logprob
        1  organism_two_hop  answer_logprob
        >>> dl.agreement(result, geometry.predictors()).table["predictor"].tolist()
        ['block_influence', 'angular_distance', 'entropy_drop']
    """
    if isinstance(b, pd.DataFrame):
        cases, columns, said, none = _of_numbers(a, b)
    elif b is not None and _removes_heads(a):
        cases, columns, said, none = _of_heads(a, b)
    elif b is None and (modes := _by_mode(a)):
        cases, columns, said, none = _of_modes(a, modes)
    else:
        cases, columns, said, none = _of_tasks(a, b)
    rows = [about | row for about, tables in cases for row in pairwise(tables, seed=seed)]
    lines = [said.format_map(row) for row in rows] or [none]
    rows = [row | {name: row[entry] for name, entry in columns.items()} for row in rows]
    results, names = [a, b] if isinstance(b, Result) else [a], [*columns, *COLUMNS]
    return DescribedTable.of("agreement", *results, rows=rows, columns=names, lines=lines, seed_of_halves=seed)


def _of_modes(result: Result, modes: Mapping[str, Mapping[str, Mapping[Place, str]]]) -> Compared:
    cases = []
    for losses in (each for each in result.every_losses.values() if not each.at_chance):
        for site, found in modes.items():
            tables = {mode: _by_place(losses, conditions) for mode, conditions in found.items()}
            cases.append(({"task": losses.label, "parts": site}, tables))
    said = "{task}: {n_parts} {parts} by {a} and by {b}: {words}."
    none = "No task that is not at chance has parts that were removed in two modes, so that none can be compared."
    return cases, {"task": "task", "parts": "parts", "mode": "a", "other": "b"}, said, none


def _of_tasks(a: Result, b: Result | None) -> Compared:
    heads = b is None and _removes_heads(a)
    if b is not None:
        pairs = [pair for pair in paired(a, b) if not any(s.at_chance for s in pair)]
        groups = [{f"{s.label} of {s.model}": _by_layer(s) for s in pair} for pair in pairs]
    elif heads:
        every = a.every_losses.values()
        groups = [{s.label: _by_place(s, head_conditions(a, s.task)) for s in every if not s.at_chance}]
    else:
        groups = [{s.label: _by_layer(s) for s in by_layer(a) if not s.at_chance}]
    said = f"{'Heads' if heads else 'Layers'} by {{a}} and by {{b}}: {{words}}."
    none = "Fewer than two profiles can be judged, so no two can be compared."
    return [({}, tables) for tables in groups], {"task": "a", "other": "b"}, said, none


def _of_heads(a: Result, b: Result) -> Compared:
    own, rival = a.every_losses, b.every_losses
    cases = []
    for task, metric in sorted(own.keys() & rival.keys()):
        both = (a, own[task, metric]), (b, rival[task, metric])
        tables = [_by_place(losses, head_conditions(result, task)) for result, losses in both]
        cases.append(({"task": task, "metric": metric}, dict(zip("ab", tables, strict=True))))
    none = "The two sweeps have no task, metric and head in common."
    return cases, {"task": "task", "metric": "metric"}, "{task}, {metric}: heads by the two sweeps: {words}.", none


def _of_numbers(result: Result, predictors: pd.DataFrame) -> Compared:
    cases = []
    for losses in (losses for losses in by_layer(result) if not losses.at_chance):
        known = predictors.set_index("layer").loc[losses.layers]
        cases += [({"task": losses.label}, {"loss": _by_layer(losses), name: known[[name]].T}) for name in known]
    none = "No task can be judged, so it cannot be said whether anything predicts its losses."
    return cases, {"task": "task", "predictor": "b"}, "{task}: a layer's loss and its {b}: {words}.", none


def _removes_heads(result: Result) -> bool:
    """Whether every condition of a sweep is of a head."""
    heads = result.docs.loc[result.docs["condition"] != BASELINE, "head"]
    return bool(len(heads) and heads.notna().all())


def _by_mode(result: Result) -> dict[str, dict[str, dict[Place, str]]]:
    """The conditions that are one part each, by kind of part, mode and place, where two modes have a part in common."""
    found: dict[str, dict[str, dict[Place, str]]] = {}
    for text in dict.fromkeys(result.docs["condition"]):
        parts = parse_condition(text).ablations
        if len(parts) == 1 and parts[0].site in WORDS:
            (part,) = parts
            mode = part.manner + (f"[{part.start}:]" if part.start else "")
            found.setdefault(WORDS[part.site], {}).setdefault(mode, {})[part.layer, part.index] = text
    shared = {site for site, of in found.items() for a, b in combinations(of.values(), 2) if a.keys() & b.keys()}
    return {site: of for site, of in found.items() if site in shared}


def _by_layer(losses: Losses) -> pd.DataFrame:
    """What every unit adds to the loss of each layer."""
    return pd.DataFrame(losses.mean().added, columns=losses.layers)


def _by_place(losses: Losses, conditions: Mapping[Any, str]) -> pd.DataFrame:
    """What every unit adds to the loss of each part, by its place."""
    conditions = dict(sorted(conditions.items()))
    added = losses.select(list(conditions.values())).mean().added
    return pd.DataFrame(added, columns=pd.MultiIndex.from_tuples(conditions))


def detector_agreement(
    scores: Mapping[str, HeadScores | str | Path], *, k: int = 10, n_permutations: int = N_PERMUTATIONS, seed: int = 0
) -> DescribedTable:
    """Whether detectors rank the same heads of a layer first: Spearman's correlation and shared top k, by permutation.

    Args:
        scores: Two or more scores of the heads of one model, by name. A score that falls as a head matters more must
            be negated before. A file has what others published of the model's heads, as JSON: ``{"16-19": 0.9}`` with
            a score, or a list of scores, for each layer and head, or ``["L16.H19", ...]``, highest first.
        k: Length of the lists of highest heads.
        n_permutations: Permutations of the heads within their layers. The smallest p-value is 1 / (1 + this number),
            before it is multiplied by the number of tests.
        seed: Seed of the permutations.

    Returns:
        One row a pair: a, b, n_heads (that have both scores), spearman, expected_spearman (mean over the permutations:
        what the layers alone explain), p_spearman (one-sided), p_spearman_adjusted (Bonferroni over both tests of all
        pairs), n_shared (heads on both lists of k), expected_shared, p_shared, p_shared_adjusted, heads (those shared).
        Two of which one scores all heads that both have alike have no row, and a sentence says so.

    Raises:
        UserError: scores of different shapes, a ``k`` that does not fit, or a file that has no heads of the model.

    Example:
        >>> found = dl.detector_agreement({"copying": copying, "removal": scores}, k=2, n_permutations=99)
        >>> found.table[["a", "b", "n_heads", "n_shared"]]
                a        b  n_heads  n_shared
        0  copying  removal       24         1
    """
    n_permutations = arguments.whole("n_permutations", n_permutations, 99)
    rng = np.random.default_rng(arguments.check(seed=seed)["seed"])
    rows, lines = [], []
    measured = next((one for one in scores.values() if isinstance(one, HeadScores)), None)
    if measured is None:
        raise UserError(f"scores {[*scores]}: all are files; give the scores of a model, too")
    known = {name: one if isinstance(one, HeadScores) else published(one, measured) for name, one in scores.items()}
    for (a, one), (b, other) in combinations(known.items(), 2):
        if row := _pair(one, other, k, n_permutations, rng):
            rows.append({"a": a, "b": b, **row})
        else:
            lines.append(f"{a} and {b}: one of them scores all heads alike, which ranks none.")
    for row, name in product(rows, ("p_spearman", "p_shared")):
        row[f"{name}_adjusted"] = min(1.0, 2 * len(rows) * row[name])
    record = {"model": measured.record.get("model", {}), "k": k, "n_permutations": n_permutations}
    record |= {"detectors": {n: s.name for n, s in known.items()}, "n": {n: s.n for n, s in known.items()}}
    record["seed"] = seed
    lines = [_sentence(row, k) for row in rows] + lines
    return DescribedTable.of("detector_agreement", rows=rows, columns=OF_DETECTORS, lines=lines, **record)


def published(file: str | Path, measured: HeadScores) -> HeadScores:
    """Scores in a file (see `detector_agreement`) of the model whose heads were measured.

    The files of Retrieval_Head (Wu et al. 2024), for example, have a list of scores for each head. Heads that a list of
    heads lacks come after those that it has.
    """
    form = 'give JSON such as {"16-19": 0.9} or ["L16.H19"]'
    with blaming(f"heads of {str(file)!r} cannot be read", form, (OSError, ValueError, TypeError, AttributeError)):
        read = json.loads(Path(file).read_text(encoding="utf-8"))
        scores = {head: len(read) - i for i, head in enumerate(read)} if isinstance(read, list) else read
        values = {re.sub("[LH]", "", head).replace(".", "-"): float(np.mean(of)) for head, of in scores.items()}
    frame = measured.frame.assign(low=np.nan, high=np.nan, in_top=np.nan)
    places = [f"{layer}-{head}" for layer, head in zip(frame["layer"], frame["head"], strict=True)]
    if not np.isfinite([*values.values()]).any():
        raise UserError(f"{str(file)!r} has no scores; {form}")
    if foreign := values.keys() - places:
        raise UserError(f"{str(file)!r} has {len(foreign)} heads that the model lacks, such as {min(foreign)}; {form}")
    missing = 0.0 if isinstance(read, list) else np.nan
    frame["value"] = [values.get(place, missing) for place in places]
    return replace(measured, name=Path(file).name, unit="", frame=frame, n=1, record={})


def _pair(one: HeadScores, other: HeadScores, k: int, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Both statistics of one pair, and what they are under ``n`` permutations; {} where a score ranks no head."""
    if one.values.shape != other.values.shape:
        raise UserError(f"scores have shapes {one.values.shape} and {other.values.shape}; give two of one model")
    scored = np.isfinite(one.values) & np.isfinite(other.values)
    layers, heads = np.nonzero(scored)
    k = arguments.whole("k", k, 1, max(len(heads) - 1, 1), fix=f" ({len(heads)} heads have both scores)")
    tops = [replace(s, frame=s.frame[scored.ravel()]).top(k) for s in (one, other)]
    own, rival = (ranks(s.values[scored]) for s in (one, other))
    if not own.any() or not rival.any():
        return {}
    first, second = (np.array([head in top for head in zip(layers, heads, strict=True)]) for top in tops)
    orders = within_layers(layers, n, rng)
    row: dict[str, Any] = {"n_heads": len(heads), "spearman": own @ rival, "n_shared": (first & second).sum()}
    for name, seen, drawn in (
        ("spearman", row["spearman"], rival[orders] @ own),
        ("shared", row["n_shared"], second[orders] @ first.astype(float)),
    ):
        row[f"expected_{name}"] = drawn.mean()
        row[f"p_{name}"] = (1 + (drawn >= seen - 1e-9).sum()) / (1 + n)  # values that differ by rounding are equal
    return row | {"heads": ", ".join(f"L{layers[i]}.H{heads[i]}" for i in np.flatnonzero(first & second))}


def _sentence(row: dict[str, Any], k: int) -> str:
    tests = {"ranks": row["p_spearman_adjusted"], "first heads": row["p_shared_adjusted"]}
    shown = [name for name, p in tests.items() if p < ALPHA]
    verdict = f"agree within layers in their {' and '.join(shown)}" if shown else "do not provably agree within layers"
    return DETECTORS.format(verdict=verdict, k=k, **row)
