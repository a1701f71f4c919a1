"""The results of several runs, taken apart into families of conditions that can be compared between runs.

A family is what one run measured of one task and metric on parts of one kind, removed in one way: ``layers``,
``layers[1:]``, ``attn@mean``, ``heads``, or ``other conditions`` for blocks, lists and everything that is not one part.
Two runs have the same documents where these have the same hash, or, where hashes are not known, the same number in a
task whose files and version are the same (`depthlens.analysis.questions.identities`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from depthlens.ablations import WORDS, parse_condition
from depthlens.analysis import run_settings, stats
from depthlens.analysis.results import Result
from depthlens.analysis.scores import Scores, scores_of
from depthlens.errors import UserError, one_line

OTHER, WHOLE = "other conditions", "whole model"
OVER_DEPTH = ("layers", "attn", "mlp")  # one part a layer: these have a profile over depth
MIN_SHARED = 2  # documents


class Key(NamedTuple):
    """What is compared between runs.

    Attributes:
        place: Folder of the results below that of the run; "" where it is the run's own, or the only one.
        task: Name of the task.
        metric: Name of the metric.
        parts: Kind of part and way of removing it; `WHOLE` for the model with nothing removed.
    """

    place: str
    task: str
    metric: str
    parts: str

    @property
    def over_depth(self) -> bool:
        """Whether each layer of the model has one such part."""
        return self.parts.partition("[")[0].partition("@")[0] in OVER_DEPTH

    def __str__(self) -> str:
        name = f"{self.task} {self.metric.removesuffix(',none')}"
        name = f"{self.place}: {name}" if self.place else name
        return name if self.parts == WHOLE else f"{name}, {self.parts}"


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
class Family:
    """Scores of one run under the conditions of one family.

    Attributes:
        run: Name of the run.
        baseline: What `depthlens.Result.baselines` has of the metric, by column.
        conditions: Their texts. Shape [condition].
        profile: The scores; ``layers`` is -1 where a condition is not of one layer.
        heads: The head or KV group of each condition, -1 without one. Shape [condition].
        min_effect: The smallest change that is called an effect.
        losses: The rows of `depthlens.Result.losses` of these conditions, in this order.
        critical: Whether each condition is critical, as `depthlens.Result.critical` has it. Shape [condition].
        n_heads: Of the model; None where it is not known.
        deciding: See `depthlens.analysis.run_settings.deciding`.
    """

    run: str
    baseline: Mapping[str, Any]
    conditions: tuple[str, ...]
    profile: Scores
    heads: np.ndarray
    min_effect: float
    losses: pd.DataFrame
    critical: np.ndarray
    n_heads: int | None
    deciding: Mapping[str, Any]

    @property
    def has_room(self) -> bool:
        """Whether the whole model scores above a floor, so that losses are shares of something."""
        p = self.profile
        return p.floor is not None and not p.at_chance and bool(p.base.mean() > p.floor)

    def of(self, conditions: Sequence[str], documents: Sequence[str]) -> Family:
        """The same with some conditions and documents, in the order that is given."""
        at = [self.conditions.index(c) for c in conditions]
        row = {name: i for i, name in enumerate(self.profile.documents)}
        rows = [row[name] for name in documents]
        p = self.profile
        profile = replace(
            p,
            values=p.values[np.ix_(rows, at)],
            base=p.base[rows],
            layers=p.layers[at],
            documents=tuple(documents),
            units=tuple(p.units[i] for i in rows),
        )
        losses = self.losses.iloc[at].reset_index(drop=True)
        return replace(
            self,
            conditions=tuple(conditions),
            profile=profile,
            heads=self.heads[at],
            losses=losses,
            critical=self.critical[at],
        )


def families(run: Run) -> Iterator[tuple[Key, Family]]:
    """Every family of a run.

    Raises:
        UserError: a result of several models, or one whose tables do not fit together; it names the run and the folder.
    """
    for place, result in run.results.items():
        where = f"run {run.name!r}" + (f", {place}" if place else "")
        if len(models := result.docs["model"].unique()) > 1:
            raise UserError(f"{where}: it has models {', '.join(models)}; compare one with select(models=...)")
        try:
            losses, baselines, _ = result.losses(), result.baselines, result.n_layers
        except UserError as error:
            raise UserError(f"{where}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # a record or table that was edited
            fault = f"{where}: its table and record do not fit together ({one_line(error)})"
            raise UserError(f"{fault}; make it again") from error
        for base in baselines.itertuples(index=False):
            named = run_settings.settings(result, base.task, base.metric)
            of_metric = losses[(losses["task"] == base.task) & (losses["metric"] == base.metric)]
            groups = of_metric.groupby(of_metric["condition"].map(parts_of), sort=False)
            for parts, rows in [(WHOLE, of_metric.head(0)), *groups]:
                family = _family(run.name, result, base, _by_place(rows), named)
                yield Key(place, base.task, base.metric, parts), family


def parts_of(condition: str) -> str:
    """The family of a condition, in the words that a sweep takes: ``layers[1:]``, ``heads@mean``; or `OTHER`."""
    ablations = parse_condition(condition).ablations
    if len(ablations) != 1 or ablations[0].site not in WORDS:
        return OTHER
    return WORDS[ablations[0].site] + ablations[0].suffix


def _by_place(losses: pd.DataFrame) -> pd.DataFrame:
    """Conditions of one part each by layer and head, others as they are."""
    ablations = [parse_condition(c).ablations for c in losses["condition"]]
    places = [(a[0].layer, a[0].index) if len(a) == 1 else (0, 0) for a in ablations]
    return losses.iloc[sorted(range(len(losses)), key=places.__getitem__)].reset_index(drop=True)


def _family(run: str, result: Result, base: Any, losses: pd.DataFrame, named: Mapping[str, Any]) -> Family:
    info = result.metric_info(base.task, base.metric)
    conditions = tuple(losses["condition"])
    parsed = [parse_condition(c) for c in conditions]
    single = [c.ablations[0] if len(c.ablations) == 1 else None for c in parsed]
    layers = np.array([-1 if a is None else a.layer for a in single], dtype=int)
    label = f"{base.task} {base.metric.removesuffix(',none')}"
    shown = (losses["p_adjusted"] < stats.ALPHA) & (losses["loss"] > losses["min_effect"]) & ~losses["at_chance"]
    deciding = run_settings.deciding(
        named, donor=any(c.uses("donor") for c in parsed), reference=any(c.uses("mean") for c in parsed)
    )
    return Family(
        run=run,
        baseline=base._asdict(),
        conditions=conditions,
        profile=scores_of(result, base, label, conditions, layers),
        heads=np.array([-1 if a is None else a.index for a in single], dtype=int),
        min_effect=float(info["min_effect"]),
        losses=losses,
        critical=shown.to_numpy(dtype=bool),
        n_heads=((result.record.get("model") or {}).get("dims") or {}).get("n_heads"),
        deciding=deciding,
    )


def same_parts(own: Family, reference: Family) -> bool:
    """Whether a condition means the same part of both models: as many layers, and for heads as many of them."""
    if own.profile.n_layers != reference.profile.n_layers:
        return False
    return own.n_heads == reference.n_heads or not (own.heads >= 0).any()


class Pair(NamedTuple):
    """Two runs of one family, with the conditions and documents that are compared.

    Attributes:
        own: The run, with the conditions that both have.
        reference: The run that it is compared with, with these conditions in the same order. Where both are of models
            of other shapes, each keeps its own conditions.
        paired: Whether both hold the same documents in the same order; others are not compared.
        documents: In words, how the documents of both are related.
    """

    own: Family
    reference: Family
    paired: bool
    documents: str


def pair(own: Family, reference: Family) -> Pair:
    """Two families with equal settings, over the conditions that both have, or over all where models differ in shape.

    Documents are paired where those of one run are all among those of the other, and the others are then left out.
    """
    ids, others = own.profile.documents, reference.profile.documents
    theirs = set(others)
    shared = [name for name in ids if name in theirs]
    conditions = [own.conditions, reference.conditions]
    if same_parts(own, reference):
        conditions = [tuple(c for c in own.conditions if c in set(reference.conditions))] * 2
    paired = len(shared) == min(len(ids), len(others)) and len(shared) >= MIN_SHARED
    if not paired:
        words = f"different documents ({len(shared)} are of both)" if shared else "different documents"
        known = [
            not any(name.startswith(f"{f.profile.task}:") for name in f.profile.documents) for f in (own, reference)
        ]
        if known[0] != known[1]:
            words = "documents that cannot be matched, because a result does not say which they are"
        return Pair(own.of(conditions[0], ids), reference.of(conditions[1], others), False, words)
    words = "the same documents" if len(ids) == len(others) else f"the {len(shared)} documents that both have"
    return Pair(own.of(conditions[0], shared), reference.of(conditions[1], shared), True, words)
