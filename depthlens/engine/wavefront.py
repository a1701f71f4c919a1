"""The fast path: walk the layers once, all conditions together.

The clean row goes through the layers of one pack. At layer l every condition whose first ablation is there forks off
the clean row, and all open rows go through the next layer together. A row that skips a layer waits while the others
pass (one that skips it from a later position on passes with them, and then gets back what it skips). So each layer is
visited once for all conditions, a single-layer sweep costs half its naive layer passes, and only the positions that are
asked for are unembedded. The scores are those of `depthlens.backends.torch`.

Rows that are edited at late positions only (patches) hold the tokens from there on. The tokens before are those of the
clean row at every layer, and so are their keys and values.

Conditions that are too many to walk together walk in groups. The clean row walks with the first one and is kept
(`CleanRow`), so that the others fork off it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.ablations import BASELINE, Condition
from depthlens.backends.row_edits import Means, RowEdits
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Layout, walking
from depthlens.models.lens import Lens
from depthlens.models.placement import moved
from depthlens.models.quantised import donor_layers

CLEAN = -1  # the clean row, where others are numbered by their conditions


@dataclass
class CleanRow:
    """The clean row of one pack as it was walked, for conditions that walk after it.

    Attributes:
        layers: Layers before which its residual stream is kept: those that conditions fork off at.
        inputs: Residual streams before these layers. Each of shape [pos, d_model].
        keys: Keys and values of the prefix, by layer, where rows that hold its last tokens only are to come. Each of
            shape [n_kv_heads, n_prefix, d].
        final: Final residual stream of the positions that were asked for, shape [position, d_model]; None until the row
            was walked.
    """

    layers: frozenset[int] = frozenset()
    inputs: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    final: Tensor | None = None

    def keep(self, n_prefix: int, layer: int, _: int, key: Tensor, value: Tensor) -> None:
        """Keep a layer's keys and values of the prefix, as those of all tokens pass; for `Layout`."""
        self.keys[layer] = key[:, :n_prefix].clone(), value[:, :n_prefix].clone()


def fork_layer(condition: Condition, n_layers: int) -> int:
    """The layer at which a condition leaves the clean row; ``n_layers`` for the baseline, which never does."""
    return n_layers if condition.first_layer is None else condition.first_layer


def first_edited(condition: Condition) -> int:
    """The position from which on a condition edits its row; 0 for the baseline."""
    return min((a.start for a in condition.ablations), default=0)


def skip_mode(condition: Condition, layer: int) -> str | None:
    """The mode in which a condition does without the whole layer, if it does at all positions."""
    whole = (a for a in condition.ablations if a.layer == layer and a.site == "layer" and a.everywhere)
    return next((a.mode for a in whole if a.kind in ("removal", "reference")), None)


def passes(condition: Condition, layer: int) -> int:
    """How often a row passes a layer: 0, 1 or 2 times."""
    return 0 if skip_mode(condition, layer) else 1 + condition.runs_twice(layer)


@dataclass(frozen=True)
class Wavefront:
    """Final residual streams of one pack under many conditions.

    Attributes:
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        batch_tokens: Rows go through a layer in chunks of at most so many tokens.
    """

    lens: Lens
    means: Means | None
    batch_tokens: int

    @torch.no_grad()
    def run(
        self,
        pack: Pack,
        conditions: Sequence[Condition],
        positions: Sequence[int],
        layout: Layout | None = None,
        passed: Callable[[int], None] = lambda n: None,
        clean: CleanRow | None = None,
    ) -> Float[Tensor, "condition position d_model"]:
        """Walk one pack.

        Args:
            pack: The prefix tree.
            conditions: Any number.
            positions: Flat indices whose final states are returned.
            layout: A layout of the pack that keeps the keys and values it sees; None: nothing is kept.
            passed: Called after each layer with the number of tokens that have passed it.
            clean: The clean row of this pack, for the same positions: used where it was walked, else filled.

        Returns:
            Final residual stream, before the last norm.
        """
        arch, n_layers, device, clean = self.lens.arch, self.lens.dims.n_layers, self.lens.device, clean or CleanRow()
        # tokens of the prefix that conditions share with the clean row at every layer; it has to go first for them
        first = min((first_edited(c) for c in conditions if c.ablations), default=0)
        before = 0 if layout else min(first, pack.n_prefix, *positions)
        before = before if before * len(conditions) > pack.n_tokens else 0
        walked = clean.final is not None and (not before or bool(clean.keys))
        passing = partial(clean.keep, pack.n_prefix) if before else None
        layout, at = layout or Layout(pack, device, passing), torch.tensor([*positions])
        with RowEdits([BASELINE], self.lens).embeddings():
            x = arch.embed(layout.tokens)
        # residual streams by condition, each [pos, d_model]; none is written to
        rows: dict[int, Tensor] = {} if walked else {CLEAN: x}
        walks = [(layout, rows, at)]
        if before:  # rows without the tokens before walk beside the clean row, which has them
            walks.append((Layout(pack, device, None, clean.keys, before), {}, at - before))
        own, forked, kept = walks[-1]
        for some, *_ in walks:
            some.rotary = arch.angles(x[None, -len(some.tokens) :], some.position_ids)
        forks = [fork_layer(condition, n_layers) for condition in conditions]
        from_donor = donor_layers(conditions)
        with walking(self.lens.model):
            for layer in range(min(forks, default=n_layers) if walked else 0, n_layers):
                device = self.lens.device_of(layer)
                for some, of_some, _ in walks:
                    some.rotary = moved(some.rotary, device)
                    of_some.update((c, moved(row, device)) for c, row in of_some.items())
                if layer in clean.layers and not walked:
                    clean.inputs[layer] = rows[CLEAN]
                for c in (c for c, fork in enumerate(forks) if fork == layer):
                    forked[c] = (clean.inputs[layer] if walked else rows[CLEAN])[before:]
                    if conditions[c].ablations[0].site == "embed":  # the row reads another embedding
                        with RowEdits([conditions[c]], self.lens).embeddings():
                            forked[c] = moved(arch.embed(own.tokens[None])[0], device)
                donor = self.lens.donor.resident(layer) if self.lens.donor and layer in from_donor else nullcontext()
                with self.lens.resident(layer), donor:
                    for some, of_some, asked in walks:
                        keep = moved(asked, device) if layer == n_layers - 1 else None
                        passed(len(some.tokens) * self._layer(of_some, conditions, layer, some, keep))
        clean.final = final = clean.final if walked and clean.final is not None else rows[CLEAN][moved(at, device)]
        kept = moved(kept, device)
        return torch.stack([forked[c][kept] if c in forked else final for c in range(len(conditions))])

    def _layer(
        self, rows: dict[int, Tensor], conditions: Sequence[Condition], layer: int, layout: Layout, keep: Any
    ) -> int:
        """Take all open rows through one layer, in chunks, and add up how often they passed it.

        Rows that skip it wait, and what takes its place is added to them; those that pass it twice go together.

        Args:
            rows: Residual streams by condition, which are replaced. Each of shape [pos, d_model].
            conditions: By number.
            layer: Layer number.
            layout: Of the pack.
            keep: Positions whose outputs are used, shape [kept]; None: all.
        """
        under = {c: conditions[c] if c != CLEAN else BASELINE for c in rows}
        size = max(1, self.batch_tokens // len(layout.tokens))
        for n in range(3):
            group = [c for c in rows if passes(under[c], layer) == n and skip_mode(under[c], layer) != "skip"]
            for some in (group[i : i + size] for i in range(0, len(group), size)):
                x, layout.rows = torch.stack([rows[c] for c in some]), some
                of_rows = [under[c] for c in some]
                edits = RowEdits(of_rows, self.lens, self.means, layout.position_ids, layout.tokens[None])
                if not n:
                    x = edits.at(layer)["layer"](x, x)
                else:  # hooks edit all positions
                    edited = layer in edits.layers
                    with edits.hooked(layer) if edited else nullcontext():
                        x = self.lens.arch.call(layer, x, layout, layout.rotary, None if edited else keep)
                rows.update((c, row.clone()) for c, row in zip(some, x, strict=True))  # no view that holds all others
        return sum(passes(condition, layer) for condition in under.values())
