"""Whether different ways of removing the same parts agree on which parts matter.

A part can be skipped, set to zero, replaced by its mean or by what another prompt gives, or disturbed by noise, with or
without the first token. A finding about the part should not depend on the way. The test is Spearman's correlation of
the parts' losses under two ways (modes), as in `depthlens.analysis.rank_correlations`. Hase et al. 2021 (arXiv
2106.00786) and Zhang and Nanda 2024 (arXiv 2309.16042) show why modes differ: some take the model further from its
training distribution than others.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis import questions
from depthlens.analysis.rank_correlations import COLUMNS, correlate, in_words
from depthlens.analysis.scores import labels
from depthlens.analysis.stats import changes
from depthlens.analysis.tables import DescribedTable, record_of

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

Place = tuple[int, int]  # layer, and the index of a head, KV group or expert (-1 for other parts)


def mode_agreement(result: Result, *, seed: int = 0) -> DescribedTable:
    """How alike two modes rank the same parts by what their removal costs, for every two modes of a sweep.

    Both losses come from the same documents. The p-value therefore compares different documents, so that a document
    which is lost under every mode makes no agreement.

    Args:
        result: A sweep that holds the same single parts under several modes, e.g. ``layers,layers[1:],layers@mean`` or
            ``heads,heads@resample``. Conditions of several parts are not compared.
        seed: Of halves and permutations.

    Returns:
        One row a task (and metric, and model) that is not at chance, kind of part and pair of modes: task, parts, mode,
        other (such as ``skip``, ``skip[1:]``, ``mean``, ``noise3``), and the columns of
        `depthlens.analysis.rank_correlations` over the parts that both have. It is described by one sentence each.
        Where no two modes have a part in common, there are no rows, and the sentence says so.
    """
    arguments.result(result)
    modes = _by_mode(list(dict.fromkeys(result.docs["condition"])))
    pairs = [
        (site, a, b, sorted(first.keys() & second.keys()))
        for site, found in modes.items()
        for (a, first), (b, second) in itertools.combinations(found.items(), 2)
    ]
    pairs = [pair for pair in pairs if pair[3]]
    names, several = labels(result), result.docs["model"].nunique() > 1
    rows, lines = [], []
    if not pairs:
        known = ", ".join(f"{mode} of {site}" for site, found in modes.items() for mode in found) or "no single parts"
        lines.append(f"The result has {known}: no two modes have parts in common, so that none can be compared.")
    for base in result.baselines.itertuples() if pairs else ():
        label = f"{names[base.task, base.metric]} of {base.model}" if several else names[base.task, base.metric]
        if base.at_chance:
            lines.append(f"{label}: at chance, cannot judge (n = {base.n}).")
            continue
        losses = result.document_losses(base.task, base.metric, base.model)
        units = questions.units(result, base.task).loc[losses.index]
        for site, a, b, places in pairs:
            chosen = ([modes[site][mode][at] for at in places] for mode in (a, b))
            first, second = (changes(base.metric, losses[names].to_numpy(), units).added for names in chosen)
            found = correlate(first, second, np.array([layer for layer, _ in places]), seed=seed)
            rows.append((label, site, a, b, *found.row()))
            lines.append(f"{label}: {found.n_parts} {site} by {a} and by {b}: {in_words(found)}.")
    table = pd.DataFrame(rows, columns=["task", "parts", "mode", "other", *COLUMNS])
    return DescribedTable(table, lines, record_of("mode_agreement", result, seed_of_halves=seed))


def _by_mode(conditions: list[str]) -> dict[str, dict[str, dict[Place, str]]]:
    """The conditions that are one part each, by kind of part, mode and place."""
    found: dict[str, dict[str, dict[Place, str]]] = {}
    for text in conditions:
        parts = parse_condition(text).ablations
        if len(parts) == 1 and parts[0].site in WORDS:
            (part,) = parts
            mode = f"{part.mode}{part.seed or ''}" + (f"[{part.start}:]" if part.start else "")
            found.setdefault(WORDS[part.site], {}).setdefault(mode, {})[part.layer, part.index] = text
    return found
