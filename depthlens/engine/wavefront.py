"""The fast path: walk the layers once, all conditions together.

The clean row goes through the layers of one pack. A condition forks off it, or off the row of another condition, at the
first step of its route (`depthlens.ablations.routes`) that is its own, and all open rows go through the next layer
together. A row
that skips a layer waits while the others pass (one that skips it from a later position on passes with them, and then
gets back what it skips). Rows that pass layers again wait until the others are through, and go up once more together.
So each layer is visited once for all conditions, or twice, a single-layer sweep costs half its naive layer passes, and
only the positions that are asked for are unembedded. The scores are those of `depthlens.backends.torch`.

Rows that are edited at late positions only (patches) hold the tokens from there on. The tokens before are those of the
clean row at every layer, and so are their keys and values, so that the clean row walks before them.

Conditions that are too many to walk together walk in groups. The clean row walks with the first one and is kept
(`CleanRow`), so that the others fork off it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.ablations import BASELINE, Condition, routes
from depthlens.backends.row_edits import Means, RowEdits
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Layout, walking
from depthlens.models import in_force
from depthlens.models.lens import Lens
from depthlens.models.placement import moved
from depthlens.models.quantised import donor_layers

CLEAN = -1  # the clean row, where others are numbered by their conditions


@dataclass
class CleanRow:
    """The clean row of one pack as it was walked, for conditions that walk after it.

    Attributes:
        steps: Steps before which its residual stream is kept: those at which conditions fork off.
        inputs: Residual streams before these steps. Each of shape [pos, d_model].
        keys: Keys and values of the prefix, by layer, where rows that hold its last tokens only are to come. Each of
            shape [n_kv_heads, n_prefix, d].
        final: Final residual stream of the positions that were asked for, shape [position, d_model]; None until the row
            was walked.
    """

    steps: frozenset[int] = frozenset()
    inputs: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    final: Tensor | None = None

    def keep(self, n_prefix: int, layer: int, _: int, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values of the prefix, as those of all tokens pass; for `Layout`."""
        self.keys[layer] = key[:, :n_prefix].clone(), value[:, :n_prefix].clone()


def ways_of(lens: Lens, conditions: Sequence[Condition]) -> dict[int, routes.Route]:
    """The routes of conditions by number, and that of the clean row, with what is in force on the model."""
    entered = [one.condition for one in in_force.entered(lens.model)]
    numbered = [(CLEAN, BASELINE), *enumerate(conditions)]
    return {c: routes.of(condition, lens.dims.n_layers, entered) for c, condition in numbered}


def places(ways: Mapping[int, routes.Route]) -> set[tuple[int, int]]:
    """Where rows read keys and values: layers, and how often a row was there before."""
    return {(layer, way.visit(step)) for way in ways.values() for step, layer in enumerate(way.layers)}


def first_edited(condition: Condition) -> int:
    """The position from which on a condition edits its row; 0 for the baseline."""
    return min((a.start for a in condition.ablations), default=0)


def _n_shared(pack: Pack, conditions: Sequence[Condition], positions: Sequence[int]) -> int:
    """How many tokens of the prefix conditions share with the clean row at every layer; 0: too few to be left out."""
    first = min((first_edited(c) for c in conditions if c.ablations), default=0)
    n = min(first, pack.n_prefix, *positions)
    return n if n * len(conditions) > pack.n_tokens else 0


@dataclass
class Wavefront:
    """One walk of a pack under many conditions.

    Attributes:
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        batch_tokens: Rows go through a layer in chunks of at most so many tokens.
        pack: The prefix tree.
        conditions: Any number.
        positions: Flat indices whose final states are wanted.
        layout: A layout of the pack that keeps the keys and values it sees; None: nothing is kept.
        passed: Called after each layer with the number of tokens that have passed it.
        clean: The clean row of this pack, for the same positions: used where it was walked, else filled.
    """

    lens: Lens
    means: Means | None
    batch_tokens: int
    pack: Pack
    conditions: Sequence[Condition]
    positions: Sequence[int]
    layout: Layout | None = None
    passed: Callable[[int], None] = lambda n: None
    clean: CleanRow = field(default_factory=CleanRow)

    def __post_init__(self) -> None:
        self._ways = ways_of(self.lens, self.conditions)

    @torch.no_grad()
    def run(self) -> Float[Tensor, "condition position d_model"]:
        """Walk; returns the final residual streams, before the last norm."""
        arch, device, ways, pack, clean = self.lens.arch, self.lens.device, self._ways, self.pack, self.clean
        conditions, positions, layout = self.conditions, self.positions, self.layout
        n_clean, forks = len(ways[CLEAN].layers), routes.forks(ways)
        leaving: dict[tuple[int, int], list[int]] = {}
        for c in range(len(conditions)):
            leaving.setdefault(forks[c], []).append(c)
        before = 0 if layout or n_clean > self.lens.dims.n_layers else _n_shared(pack, conditions, positions)
        if before and not clean.keys:  # the clean row, which has the tokens before, walks first
            clean.final, clean.steps = None, clean.steps | {step for row, step in leaving if row == CLEAN}
            all_tokens = Layout(pack, device, partial(clean.keep, pack.n_prefix))
            replace(self, conditions=[BASELINE], layout=all_tokens).run()
        walked, at = clean.final is not None, torch.tensor([*positions]) - before
        layout = layout or Layout(pack, device, None, clean.keys, before)
        with RowEdits([BASELINE], self.lens).embeddings():
            x = arch.embed(layout.tokens)
        # residual streams by condition, each [pos, d_model]; none is written to
        rows: dict[int, Tensor] = {} if walked else {CLEAN: x}
        layout.rotary = arch.angles(x[None], layout.position_ids)

        def leave(row: int, step: int) -> None:
            """Rows leave another one before one of its steps."""
            if row == CLEAN and step in clean.steps and not walked:
                clean.inputs[step] = rows[CLEAN]
            for c in leaving.get((row, step), ()):
                rows[c] = clean.inputs[step][before:] if row == CLEAN and walked else rows[row]
                if step == 0 and conditions[c].ablations[0].site == "embed":  # the row reads another embedding
                    with RowEdits([conditions[c]], self.lens).embeddings():
                        rows[c] = arch.embed(layout.tokens[None])[0]

        for step in range(n_clean + 1) if walked else [0]:
            leave(CLEAN, step)
        # the last steps of rows, of which some positions are used, but where another row goes on from all of them
        needed = {*leaving, *((CLEAN, step) for step in clean.steps)}
        last = {c: len(way.layers) - 1 for c, way in ways.items() if (c, len(way.layers)) not in needed}
        starts = {c: fork.step for c, fork in forks.items()} | {CLEAN: n_clean if walked else 0}
        plan, donated = routes.schedule(ways, starts), donor_layers(conditions)
        with walking(self.lens.model):
            for layer, together in groupby(plan, lambda entry: entry[0]):
                device = self.lens.device_of(layer)
                layout.rotary = moved(layout.rotary, device)
                rows.update((c, moved(row, device)) for c, row in rows.items())
                donor = self.lens.donor if layer in donated else None
                with self.lens.resident(layer), donor.resident(layer) if donor else nullcontext():
                    for _, steps in together:
                        keep = moved(at, device) if steps.items() <= last.items() else None
                        self.passed(len(layout.tokens) * self._layer(rows, steps, layout, keep))
                        for c, step in steps.items():
                            leave(c, step + 1)
        clean.final = final = clean.final if walked and clean.final is not None else rows[CLEAN][moved(at, device)]
        at = moved(at, final.device)
        # a row that never leaves another one has its states
        mine = (c if c in rows else forks[c].row for c in range(len(conditions)))
        return torch.stack([final if c == CLEAN else moved(rows[c], final.device)[at] for c in mine])

    def _layer(self, rows: dict[int, Tensor], steps: Mapping[int, int], layout: Layout, keep: Any) -> int:
        """Take open rows through one layer, in chunks, and count those that passed it.

        Args:
            rows: Residual streams by condition, which are replaced. Each of shape [pos, d_model].
            steps: The step of each row that is at the layer.
            layout: Of the pack.
            keep: Positions whose outputs are used, shape [kept]; None: all.
        """
        size, n_passed = max(1, self.batch_tokens // len(layout.tokens)), 0
        kinds = {c: self._ways[c].kind(step) for c, step in steps.items()}
        for kind in sorted({*kinds.values()}):
            group = [c for c in rows if kinds.get(c) == kind]
            layer, layout.visit, skips = kind
            n_passed += 0 if skips else len(group)
            for some in (group[i : i + size] for i in range(0, len(group), size)):
                x, layout.rows = torch.stack([rows[c] for c in some]), some
                of_rows = [self.conditions[c] if c != CLEAN else BASELINE for c in some]
                edits = RowEdits(of_rows, self.lens, self.means, layout.position_ids, layout.tokens[None])
                if skips:
                    x = edits.at(layer)["layer"](x, x)
                else:  # hooks edit all positions
                    edited = layer in edits.layers
                    with edits.hooked(layer) if edited else nullcontext():
                        x = self.lens.arch.call(layer, x, layout, None if edited else keep)
                rows.update((c, row.clone()) for c, row in zip(some, x, strict=True))  # no view that holds all others
        return n_passed
