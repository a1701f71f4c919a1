"""The fast path: walk the layers once, all conditions together.

The clean row goes through the layers of one pack. At layer l every condition whose first ablation is there forks off
the clean row, and all open rows go through the next layer together. A row that skips a layer waits while the others
pass (one that skips it from a later position on passes with them, and then gets back what it skips). So each layer is
visited once for all conditions, a single-layer sweep costs half its naive layer passes, and only the positions that are
asked for are unembedded. The scores are those of `depthlens.backends.torch`.

Conditions that are too many to walk together walk in groups. The clean row walks with the first one and is kept
(`CleanRow`), so that the others fork off it at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.ablations import BASELINE, Condition
from depthlens.backends.protocol import Means
from depthlens.backends.row_edits import RowEdits
from depthlens.backends.weight_swap import RowDonations
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Layout, walking
from depthlens.engine.walk_check import Found, found
from depthlens.models.lens import Lens, donor_layers
from depthlens.models.placement import moved


@dataclass
class CleanRow:
    """The clean row of one pack as it was walked, for conditions that walk after it.

    Attributes:
        layers: Layers that conditions fork off at.
        inputs: Residual streams before these layers. Each of shape [pos, d_model].
        keys: Keys and values of each layer, where a layout asks for them. Each of shape [n_kv_heads, pos, d].
        final: Final residual stream of the positions that were asked for, shape [position, d_model]; None until the row
            was walked.
    """

    layers: frozenset[int]
    inputs: dict[int, Tensor] = field(default_factory=dict)
    keys: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    final: Tensor | None = None


def fork_layer(condition: Condition, n_layers: int) -> int:
    """The layer at which a condition leaves the clean row; ``n_layers`` for the baseline, which never does."""
    return n_layers if condition.first_layer is None else condition.first_layer


def skip_mode(condition: Condition, layer: int) -> str | None:
    """The mode in which a condition does without the whole layer, if it does at all positions."""
    whole = (a for a in condition.ablations if a.layer == layer and a.site == "layer" and not a.start)
    return next((a.mode for a in whole if a.mode in ("skip", "mean", "resample")), None)


def n_passed(condition: Condition, n_layers: int) -> int:
    """How many layers the row of a condition passes by itself; those before it forks off are the clean row's."""
    own = range(fork_layer(condition, n_layers), n_layers)
    return sum(not skip_mode(condition, layer) for layer in own) + sum(map(condition.runs_twice, own))


class Wavefront:
    """Final residual streams of one pack under many conditions.

    Args:
        lens: A loaded model.
        means: What ``@mean`` and ``@resample`` put in place of a part.
        batch_tokens: Rows go through a layer in chunks of at most so many tokens.
        tried: How the model is walked; None: that is found out.
    """

    def __init__(self, lens: Lens, means: Means | None, batch_tokens: int, tried: Found | None = None) -> None:
        self.lens = lens
        self.arch = lens.arch
        self.means = means
        self.batch_tokens = batch_tokens
        self.by_parts = (tried or found(lens)).parts is None

    @torch.no_grad()
    def run(
        self,
        pack: Pack,
        conditions: Sequence[Condition],
        positions: Sequence[int],
        layout: Layout | None = None,
        passed: Callable[[int], None] = lambda n: None,
        seen: Callable[[int, Tensor, list[int]], None] = lambda layer, x, rows: None,
        clean: CleanRow | None = None,
    ) -> Float[Tensor, "condition position d_model"]:
        """Walk one pack.

        Args:
            pack: The prefix tree.
            conditions: Any number.
            positions: Flat indices whose final states are returned.
            layout: A layout of the pack that keeps the keys and values it sees; None: nothing is kept.
            passed: Called after each layer with the number of tokens that have passed it.
            seen: Called after the embedding (layer -1) and after each layer with the residual streams, of shape
                [row, pos, d_model], and whose rows they are: indices of conditions, -1 for the clean row.
            clean: The clean row of this pack, for the same positions: used where it was walked, else filled.

        Returns:
            Final residual stream, before the last norm.
        """
        layout = layout or Layout(pack, self.lens.device)
        clean = clean or CleanRow(frozenset())
        walked = clean.final is not None
        n_layers = len(self.arch.layers)
        x = self.arch.embed(layout.tokens)[None]
        rotary = self.arch.angles(x, layout.position_ids)
        final_positions = torch.tensor(positions, device=self.lens.device)
        open_rows: list[int] = [] if walked else [-1]  # condition of each row of x; -1: clean
        x = x[: len(open_rows)]
        aside: dict[int, Tensor] = {}  # rows that skip layers, by condition; each [pos, d_model]
        forks = [fork_layer(condition, n_layers) for condition in conditions]
        from_donor = donor_layers(conditions)
        seen(-1, x, open_rows)
        with walking(self.lens.model):
            for layer in range(min(forks, default=n_layers) if walked else 0, n_layers):
                device = self.lens.device_of(layer)
                x, layout, final_positions = moved(x, device), moved(layout, device), moved(final_positions, device)
                aside = {c: moved(row, device) for c, row in aside.items()}
                if layer in clean.layers and not walked:
                    clean.inputs[layer] = x[0].clone()  # x holds other rows, too
                for c, condition in enumerate(conditions):
                    if forks[c] == layer:
                        start = clean.inputs[layer] if walked else x[0]
                        aside[c] = start if layer else self._embedded(layout.tokens, start, condition)
                x, open_rows = self._leave(x, open_rows, conditions, layer, aside, layout)
                x, open_rows = self._join(x, open_rows, conditions, layer, aside)
                keep = final_positions if layer == n_layers - 1 else None
                donor = self.lens.donor.resident(layer, from_donor) if self.lens.donor and from_donor else nullcontext()
                with self.lens.resident(layer), donor:
                    x = self._layer(x, open_rows, conditions, layer, layout, rotary, keep)
                n_again = sum(c >= 0 and conditions[c].runs_twice(layer) for c in open_rows)
                passed((len(open_rows) + n_again) * pack.n_tokens)
                seen(layer, x, open_rows)
        if clean.final is None:
            clean.final = x[0]
        row_of = {c: i for i, c in enumerate(open_rows)}
        finals = [
            aside[c][final_positions] if c in aside else x[row_of[c]] if condition else clean.final
            for c, condition in enumerate(conditions)
        ]
        return torch.stack(finals)

    def _embedded(
        self, tokens: Int[Tensor, " pos"], clean: Float[Tensor, "pos d_model"], condition: Condition
    ) -> Float[Tensor, "pos d_model"]:
        """A row that forks off before the first layer, which may read another embedding."""
        if not any(a.site == "embed" for a in condition.ablations):
            return clean
        with RowDonations([condition], self.lens, self.lens.donor).embeddings():
            return moved(self.arch.embed(moved(tokens, self.lens.device)[None])[0], clean.device)

    def _leave(
        self,
        x: Tensor,
        rows: list[int],
        conditions: Sequence[Condition],
        layer: int,
        aside: dict[int, Tensor],
        layout: Layout,
    ) -> tuple[Tensor, list[int]]:
        """Move rows that skip this layer to ``aside``, where what takes its place is added to them."""
        stay = []
        for i, c in enumerate(rows):
            if c >= 0 and skip_mode(conditions[c], layer):
                aside[c] = x[i]
            else:
                stay.append(i)
        for c in aside:
            if skip_mode(conditions[c], layer) in ("mean", "resample"):
                edits = RowEdits([conditions[c]], self.lens, self.means, layout.position_ids, self.lens.donor)
                if (edit := edits.at(layer).layer) is not None:
                    aside[c] = edit(aside[c][None], aside[c][None])[0]
        return (x[stay], [rows[i] for i in stay]) if len(stay) < len(rows) else (x, rows)

    def _join(
        self, x: Tensor, rows: list[int], conditions: Sequence[Condition], layer: int, aside: dict[int, Tensor]
    ) -> tuple[Tensor, list[int]]:
        """Move rows from ``aside`` that do not skip this layer back among the others."""
        back = [c for c in aside if not skip_mode(conditions[c], layer)]
        if not back:
            return x, rows
        return torch.cat([x, torch.stack([aside.pop(c) for c in back])]), [*rows, *back]

    def _layer(
        self,
        x: Float[Tensor, "row pos d_model"],
        rows: list[int],
        conditions: Sequence[Condition],
        layer: int,
        layout: Layout,
        rotary: Any,
        keep: Int[Tensor, " kept"] | None,
    ) -> Float[Tensor, "row kept d_model"]:
        """One layer for all open rows, in chunks; with ``keep``, its output at those positions only."""
        size = max(1, self.batch_tokens // x.shape[1])
        out = x.new_empty(len(x), x.shape[1] if keep is None else len(keep), x.shape[2])
        twice = [i for i, c in enumerate(rows) if c >= 0 and conditions[c].runs_twice(layer)]
        once = [i for i in range(len(rows)) if i not in twice]
        for group in (once, twice):
            for start in range(0, len(group), size):
                some = group[start : start + size]
                at_rows: slice | list[int] = some if twice else slice(some[0], some[-1] + 1)
                layout.rows = [rows[i] for i in some]
                out[at_rows] = self._chunk(x[at_rows], conditions, layer, layout, rotary, keep, again=group is twice)
        return out

    def _chunk(
        self,
        x: Float[Tensor, "row pos d_model"],
        conditions: Sequence[Condition],
        layer: int,
        layout: Layout,
        rotary: Any,
        keep: Int[Tensor, " kept"] | None,
        *,
        again: bool,
    ) -> Float[Tensor, "row kept d_model"]:
        """One layer for the rows of ``layout``; with ``again`` they all pass twice."""
        of_rows = [conditions[c] if c >= 0 else BASELINE for c in layout.rows]
        edits = RowEdits(of_rows, self.lens, self.means, layout.position_ids, self.lens.donor)
        if not self.by_parts:  # hooks on the layer do all, a second pass too
            with edits.hooked(layer) if layer in edits.layers else nullcontext():
                x = self.arch.call(layer, x, layout, rotary)
            return x if keep is None else x[:, keep]
        if again:
            with edits.hooked(layer):
                x = self.arch.step(layer, x, layout, rotary)[2]
        with edits.hooked(layer, keep) if layer in edits.layers else nullcontext() as at:
            resid_post = self.arch.step(layer, x, layout, rotary, keep)[2]
            if at is not None and at.layer is not None:  # its hook waits for a call of the layer, which a step is not
                resid_post = at.layer(resid_post, x if keep is None else x[:, keep])
        return resid_post
