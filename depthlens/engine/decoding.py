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
from depthlens.engine.branch_attention import merge
from depthlens.engine.decoded_rows import CLEAN, CapturingLayout, SharedPrefixes, WalkedRows
from depthlens.engine.memory_budget import Budget
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Case, part_kernel, walking
from depthlens.engine.wavefront import Wavefront
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

# a half of the conditions that fit into memory is walked at a time, and joins when as much room is free
JOIN_SHARE = 2


class Decoding:
    """The rows of a pack under many conditions: some write, others wait until there is room.

    It is the layout of those that write, for `depthlens.engine.tree_attention`.

    Args:
        lens: A loaded model.
        backend: Hooks and reference means.
        pack: The prompts.
        conditions: Any number, sorted by the layer at which they fork, the baseline last.
        budget: How many tokens of the prompts pass a layer together, and how many rows are unembedded together.
        writer: Chooses the tokens and says which rows (condition, prompt) are not finished.
        passed: Called after each layer of the prompts, and after each written token, with the number of tokens that
            have passed a layer.
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
        finished: Callable[[list[Row]], None],
    ) -> None:
        self.lens, self.backend, self.pack, self.conditions = lens, backend, pack, conditions
        self.budget, self.writer = budget, writer
        self._passed, self._finished = passed, finished
        self._walked: list[WalkedRows] = []
        self._prefix = SharedPrefixes()
        self._alive: set[Row] = set()  # rows that are not finished

    @torch.no_grad()
    def run(self, at_once: int) -> None:
        """Write all texts, with the rows of at most so many conditions in memory."""
        n = len(self.conditions)
        size = max(1, at_once // JOIN_SHARE) if n > at_once else max(1, n)
        for start in range(0, n, size):
            while len(self.rows) > (at_once - size) * len(self.pack.paths):
                self._step()
            self._join(range(start, min(start + size, n)))
        while self._alive:
            self._step()

    @property
    def rows(self) -> list[Row]:
        """Condition and prompt of each row that has keys and values, sorted."""
        return [row for walked in self._walked for row in walked.rows]

    def attention(
        self,
        layer: int,
        query: Float[Tensor, "row n_heads 1 d_head"],
        key: Float[Tensor, "row n_kv_heads 1 d_head"],
        value: Float[Tensor, "row n_kv_heads 1 d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads 1 d_value"]:
        """Attention of one new token a row to the prefix, the row's own tokens and itself."""
        attend, sizes = part_kernel(Case.of(query, key, value)), [len(walked.rows) for walked in self._walked]
        q = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # [row, kv, group, d_head]
        parts = zip(self._walked, *(x.split(sizes) for x in (q, key, value)), strict=True)
        found = [walked.attention(layer, *some, scale, attend) for walked, *some in parts]
        out, lse = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        if self.pack.prefix:
            out = merge(out, lse, *self._prefix.attention(layer, q, value.shape[-1], scale, attend))
        return out.flatten(1, 2)[:, :, None]

    def _join(self, some: range) -> None:
        """Walk the prompts under some conditions and write the first token of each."""
        pack, lens = self.pack, self.lens
        n_new = max(q.max_new_tokens for q in self.writer.requests)
        walked = WalkedRows(pack, some, n_new, lens.dtype, lens.device)

        def keep(layer: int, condition: int, key: Tensor, value: Tensor) -> None:
            walked.fill(layer, condition, key, value)
            whose = CLEAN if condition == CLEAN else some[condition]
            self._prefix.put(layer, whose, key[:, : len(pack.prefix)], value[:, : len(pack.prefix)])

        last_tokens = [path[-1] for path in pack.paths]
        walk = Wavefront(lens, self.backend.means, self.budget.batch_tokens)
        under = self.conditions[some.start : some.stop]
        states = walk.run(pack, under, last_tokens, CapturingLayout(pack, lens.device, keep), self._passed)
        self._walked.append(walked)
        self._prefix.read_by([c for c, _ in self.rows])
        self._alive |= {*walked.rows}
        self._write(walked.rows, states.flatten(0, 1))

    def _step(self) -> None:
        """Write a token of each row."""
        rows = self.rows
        states = self._walked_once([self.conditions[c] for c, _ in rows], self.writer.last(rows))
        for walked in self._walked:
            walked.advance()
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
        before = len(self.rows)
        for walked in self._walked:
            walked.keep(self._alive)
        self._walked = [walked for walked in self._walked if walked.rows]
        if len(self.rows) < before:
            self._prefix.read_by([c for c, _ in self.rows])

    def _walked_once(self, conditions: list[Condition], tokens: list[int]) -> Float[Tensor, "row d_model"]:
        """One token a row through all layers.

        It is launched layer by layer, and neither captured as a CUDA graph nor compiled: a graph needs the same tensors
        at every step, but hooks are made for the positions of a step, and attention reads keys up to a slot that moves.
        """
        lens, arch = self.lens, self.lens.arch
        position_ids = torch.cat([walked.position for walked in self._walked])[:, None]
        edits = RowEdits(conditions, lens, self.backend.means, position_ids, lens.donor)
        with walking(lens.model):
            with edits.donations.embeddings():
                x = arch.embed(torch.tensor(tokens, device=lens.device))[:, None]
            rotary = arch.angles(x, position_ids)
            for i, layer in enumerate(arch.layers):  # called whole, since conditions that skip it hook the layer itself
                device = lens.device_of(i)
                x, rotary, position_ids = (moved(value, device) for value in (x, rotary, position_ids))
                about = {"position_embeddings": arch.angles_at(rotary, i), "position_ids": position_ids}
                with edits.hooked(i) if i in edits.layers else nullcontext():
                    x = hidden(layer(x, attention_mask=None, layout=self, **about))
        return x[:, 0]
