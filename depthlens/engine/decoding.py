"""Decoding of many (condition, prompt) rows at once, over keys and values that they share.

The prompts of a pack are walked as one prefix tree (`depthlens.engine.wavefront`), and each layer's keys and values
are kept. Those of the common prefix are kept once a condition, or once for all conditions that have not forked yet.
Those of a prompt's own tokens are kept row by row, with room for what the row will write. A decoding step then runs all
rows through a layer together. Attention to the prefix and attention to a row's own tokens are computed separately and
merged. Finished rows leave, and when enough have left, the prompts of the next conditions are walked and their rows
join: continuous batching (Orca, Yu et al., OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.row_edits import RowEdits
from depthlens.backends.torch import TorchBackend
from depthlens.engine.branch_attention import aligned
from depthlens.engine.decoded_rows import CapturingLayout, DecodedRows, WalkedRows
from depthlens.engine.memory_budget import Budget
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import walking
from depthlens.engine.wavefront import CleanRow, Wavefront, fork_layer
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

# a half of the conditions that fit into memory is walked at a time, and joins when as much room is free
JOIN_SHARE = 2


class Decoding:
    """The rows of a pack under many conditions: some write, others wait until there is room.

    Args:
        lens: A loaded model.
        backend: Hooks and reference means.
        pack: The prompts.
        conditions: Any number, sorted by the layer at which they fork, the baseline last.
        budget: How many tokens of the prompts pass a layer together, and how many rows are unembedded together.
        writer: Chooses the tokens and says which rows (condition, prompt) are not finished.
        passed: Called after each layer of the prompts, and after each written token, with the number of tokens that
            have passed a layer.
        clean: The clean row of this pack: used where it was walked, else filled.
        finished: Called with the rows (condition, prompt) that are finished, as soon as they are.
    """

    def __init__(
        self,
        lens: Lens,
        backend: TorchBackend,
        pack: Pack,
        conditions: Sequence[Condition],
        budget: Budget,
        writer: Writer,
        passed: Callable[[int], None],
        clean: CleanRow,
        finished: Callable[[list[Row]], None],
    ) -> None:
        self.lens, self.backend, self.pack, self.conditions = lens, backend, pack, conditions
        self.budget, self.writer, self.clean = budget, writer, clean
        self._passed, self._finished = passed, finished
        self._rows = DecodedRows(has_prefix=len(pack.prefix) > 0)
        self._alive: set[Row] = set()  # rows that are not finished

    @torch.no_grad()
    def run(self, at_once: int) -> None:
        """Write all texts, with the rows of at most so many conditions in memory."""
        n, n_layers = len(self.conditions), self.lens.dims.n_layers
        size = max(1, at_once // JOIN_SHARE) if n > at_once else max(1, n)
        if self.clean.final is None:
            # n_layers, of the whole model, is no layer, but says that the clean row is needed
            self.clean.layers |= {fork_layer(c, n_layers) for c in self.conditions[size:]}
        for start in range(0, n, size):
            while len(self._rows.rows) > (at_once - size) * len(self.pack.paths):
                self._step()
            self._join(range(start, min(start + size, n)))
        while self._alive:
            self._step()

    def _join(self, some: range) -> None:
        """Walk the prompts under some conditions and write the first token of each."""
        pack, lens = self.pack, self.lens
        p, n_new = len(pack.prefix), max(q.max_new_tokens for q in self.writer.requests)
        own = [path[p:] for path in pack.paths]
        width = max(map(len, own))
        padded = [path + [0] * (width - len(path)) for path in own]
        paths = torch.tensor(padded, dtype=torch.long, device=lens.device).view(len(own), width)
        lengths = torch.tensor([len(path) for path in own], device=lens.device)
        slots = torch.arange(aligned(width + n_new), device=lens.device)
        mask = torch.zeros(len(own), aligned(width + n_new), dtype=lens.dtype, device=lens.device)
        mask.masked_fill_((slots >= lengths[:, None]) & (slots < width), -torch.inf)  # padding before the answer
        position = torch.tensor([len(path) for path in pack.paths], device=lens.device).repeat(len(some))
        rows = [(c, d) for c in some for d in range(len(own))]
        walked = WalkedRows(rows, position, mask.repeat(len(some), 1)[:, None, None], width)
        last_tokens = [path[-1] for path in pack.paths]
        unique = list(dict.fromkeys(last_tokens))
        walk = Wavefront(lens, self.backend.means, self.budget.batch_tokens)
        layout = CapturingLayout(pack, lens, paths, walked, self._rows.prefix, n_new, self.clean)
        under = self.conditions[some.start : some.stop]
        states = walk.run(pack, under, unique, layout, self._passed, clean=self.clean)
        for layer in range(lens.dims.n_layers):
            layout.copy_clean(layer)
        self._rows.join(walked)
        self._alive |= {*rows}
        states = states[:, [unique.index(t) for t in last_tokens]].flatten(0, 1)  # [row, d_model]
        self._write(rows, states)

    def _step(self) -> None:
        """Write a token of each row."""
        rows = self._rows.rows
        under, tokens = [self.conditions[c] for c, _ in rows], self.writer.last(rows)
        states = _walked_once(self.lens, self.backend, under, tokens, self._rows)
        self._rows.advance()
        self._passed(len(self._alive) * self.lens.dims.n_layers)
        self._write(rows, states)

    def _write(self, rows: list[Row], states: Float[Tensor, "row d_model"]) -> None:
        """Choose the next token of rows that are not finished; drop those that are by then."""
        writing = [i for i, row in enumerate(rows) if row in self._alive]
        alive, states, unfinished = [rows[i] for i in writing], states[writing], []
        for start in range(0, len(alive), self.budget.unembed_rows):
            some = slice(start, start + self.budget.unembed_rows)
            under = [self.conditions[c] for c, _ in alive[some]]
            logits = weight_swap.unembed(self.lens, under, states[some])
            unfinished += self.writer.write(alive[some], logits)
        done = {*alive} - {*unfinished}
        if not done:
            return
        self._finished(sorted(done))
        self._alive -= done
        self._rows.keep(self._alive)


def _walked_once(
    lens: Lens,
    backend: TorchBackend,
    conditions: list[Condition],
    tokens: list[int],
    rows: DecodedRows,
) -> Float[Tensor, "row d_model"]:
    """One token a row through all layers.

    It is launched layer by layer, and neither captured as a CUDA graph nor compiled: a graph needs the same tensors at
    every step, but hooks are made for the positions of a step, and attention reads keys up to a slot that moves.
    """
    arch = lens.arch
    position_ids = rows.position[:, None]
    edits = RowEdits(conditions, lens, backend.means, position_ids, lens.donor)
    with walking(lens.model):
        with edits.donations.embeddings():
            x = arch.embed(torch.tensor(tokens, device=lens.device))[:, None]
        rotary = arch.angles(x, position_ids)
        for i, layer in enumerate(arch.layers):  # called whole, since conditions that skip it hook the layer itself
            device = lens.device_of(i)
            x, rotary, position_ids = (moved(value, device) for value in (x, rotary, position_ids))
            angles = arch.angles_at(rotary, i)
            about = {"position_embeddings": angles, "position_ids": position_ids, "layout": rows}
            with edits.hooked(i) if i in edits.layers else nullcontext():
                x = hidden(layer(x, attention_mask=None, **about))
    return x[:, 0]
