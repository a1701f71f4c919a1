"""Decoding of many (condition, prompt) rows at once, over keys and values that they share.

The prompts of a pack are walked as one prefix tree (`depthlens.engine.wavefront`), and each layer's keys and values
are kept. Those of the common prefix are kept once a condition, and read once a step. Conditions that have not forked by
a layer share the clean row's prefix there; the rows of every other condition have a prefix of their own. All of these
are read in one product, however many conditions there are, because a GPU needs about as long for many small products as
it needs to be told of each. Keys and values of a prompt's own tokens are kept row by row, with room for what the row
will write.

A decoding step runs all rows through a layer together. Attention to the prefix and attention to a row's own tokens are
computed separately and merged. Finished rows leave, and when enough have left, the prompts of the next conditions are
walked and their rows join: continuous batching (Orca, Yu et al., OSDI 2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.utils import _pytree as pytree

from depthlens.ablations import Condition, routes
from depthlens.backends import row_edits
from depthlens.backends.torch import TorchBackend
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.tree_attention import Keys, Layout, Part, Queries, Values, Z, aligned, attend, merge, walking
from depthlens.engine.wavefront import CLEAN, Wavefront, ways_of
from depthlens.engine.work import Budget
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

# a half of the conditions that fit into memory is walked at a time, and joins when as much room is free
JOIN_SHARE = 2
# tokens that each row has room for at first; long texts end early more often than not
FIRST_ROOM = 512
# keys and values may grow to so many times their share of the memory
GROWTH = 2
# finished rows leave once less than this share of those in memory still writes: leaving copies the others
STAY_SHARE = 0.8
# rows, keys and values of each product of prefixes, and the place of each row in what all of them give
Products = tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]
# of one new token a row: its queries by key head; what attention gives for them is a `Part` [row, kv, group, d_value]
New = Float[Tensor, "row kv group d_head"]
Place = tuple[int, int]  # of keys and values: a layer, and how often the row was there before
# keys or values that one row of the walk brings
Brought = Float[Tensor, "kv pos _"]  # keys of latent attention are wider than its values


class WalkedRows:
    """Keys and values of the own tokens of rows whose prompts are walked together, with room for what they will write.

    Args:
        pack: The prompts.
        conditions: Numbers of conditions; each has a row for each prompt.
        n_new: Tokens that each row may write; there is room for the first `FIRST_ROOM`, and more as they are written.
        lens: The model.

    Attributes:
        rows: Condition and prompt of each, sorted.
        position: Of the next token of each row. Shape [row].
    """

    def __init__(self, pack: Pack, conditions: Sequence[int], n_new: int, lens: Lens) -> None:
        n_prefix, device = pack.n_prefix, lens.device
        own = [torch.tensor(path[n_prefix:], dtype=torch.long, device=device) for path in pack.paths]
        lengths = torch.tensor([len(path) for path in own], device=device)
        self.rows: list[Row] = [(c, d) for c in conditions for d in range(len(own))]
        self.position = (n_prefix + lengths).repeat(len(conditions))
        self._paths = pad_sequence(own, batch_first=True)  # flat indices of each prompt's own tokens: [prompt, own]
        self._slot = self._paths.shape[1]  # where the next written token is stored
        self._room = aligned(self._slot + min(n_new, FIRST_ROOM))
        slots = torch.arange(self._room, device=device)
        mask = torch.zeros(len(own), len(slots), dtype=lens.dtype, device=device)
        mask.masked_fill_((slots >= lengths[:, None]) & (slots < self._slot), -torch.inf)  # padding before the answer
        self._mask = mask.repeat(len(conditions), 1)[:, None, None]
        self._own: dict[Place, list[Tensor]] = {}  # keys and values: [row, n_kv_heads, own + new, d]

    def fill(self, place: Place, conditions: Sequence[int], key: Brought, value: Brought) -> None:
        """Copy keys and values to the rows of conditions, counted from the first one."""
        n_prompts, width = self._paths.shape
        if place not in self._own:
            slots = len(self.rows), len(key), self._room
            self._own[place] = [x.new_zeros(*slots, x.shape[-1]) for x in (key, value)]
        for own, new in zip(self._own[place], (key, value), strict=True):
            by_condition = own[:, :, :width].unflatten(0, (-1, n_prompts))
            by_condition[conditions] = new[:, moved(self._paths, new.device)].transpose(0, 1)  # [prompt, kv, own, d]

    def attention(self, place: Place, q: New, key: Tensor, value: Tensor, here: Any, scale: float) -> Part:
        """Attention of one new token a row to the row's own tokens and itself, and its log-sum-exp.

        Args:
            place: Where the rows are.
            q: Queries.
            key: Keys.
            value: Values.
            here: What selects the rows that are there; others come by themselves, and their keys and values stay.
            scale: Factor on the scores.
        """
        if place not in self._own:  # none of these rows is ever there
            return q.new_zeros(*q.shape[:-1], value.shape[-1]), q.new_zeros(q.shape[:-1])
        keys, values = self._own[place]
        keys[here, :, self._slot], values[here, :, self._slot] = key[here, :, 0], value[here, :, 0]
        end = self._slot + 1
        self._mask = moved(self._mask, key.device)  # once a device and step, not at every layer
        return attend(q, keys[:, :, :end], values[:, :, :end], scale, self._mask[..., :end])

    def advance(self) -> None:
        """The next token takes the next place; where there is none, there are twice as many."""
        self._slot += 1
        self.position = self.position + 1
        if self._slot == self._room:
            self._mask = functional.pad(self._mask, (0, self._room))
            for place, kept in self._own.items():
                self._own[place] = [functional.pad(x, (0, 0, 0, self._room)) for x in kept]
            self._room *= 2

    @property
    def n_bytes(self) -> int:
        """What keys and values take."""
        return sum(x.nbytes for kept in self._own.values() for x in kept)

    def keep(self, alive: Set[Row]) -> None:
        """Drop rows that are finished, once these are many."""
        stay = [i for i, row in enumerate(self.rows) if row in alive]
        if len(stay) >= STAY_SHARE * len(self.rows):
            return
        index = torch.tensor(stay, dtype=torch.long, device=self.position.device)
        self.rows, self.position = [self.rows[i] for i in stay], self.position[index]
        self._mask = self._mask[moved(index, self._mask.device)]
        for place, kept in self._own.items():
            self._own[place] = [x[moved(index, x.device)] for x in kept]


class SharedPrefixes:
    """Keys and values of the prefix at every place, by condition.

    Attributes:
        leads: The condition whose row each one leaves: it has the prefix of that one where it has none of its own.
    """

    def __init__(self) -> None:
        self.leads: dict[int, int] = {}
        self._conditions: list[int] = []  # of each row
        self._known: dict[Place, dict[int, tuple[Tensor, Tensor]]] = {}  # by place and condition
        self._products: dict[Place, Products] = {}  # until rows join or leave

    def put(self, place: Place, condition: int, key: Brought, value: Brought) -> None:
        """Keep the prefix of a condition, or of the clean row, which every walk of the pack brings."""
        self._known.setdefault(place, {}).setdefault(condition, (key.clone(), value.clone()))

    def read_by(self, conditions: Sequence[int]) -> None:
        """Rows have joined or left: the condition of each that there is now, sorted."""
        self._conditions = list(conditions)
        self._products.clear()

    def attention(self, place: Place, q: New, scale: float) -> Part:
        """Attention of one new token a row to its prefix, and its log-sum-exp."""
        if place not in self._products:
            self._products[place] = self._made(place)
        products, order = self._products[place]
        found = []
        for rows, keys, values in products:
            queries = q[rows].transpose(1, 2).flatten(2, 3)  # [prefix, kv, row and group, d_head]
            parts = attend(queries, keys, values, scale)
            found.append([x.unflatten(2, (rows.shape[1], -1)).transpose(1, 2).flatten(0, 1) for x in parts])
        out, lse = (torch.cat(of)[order] for of in zip(*found, strict=True))
        return out, lse

    def _made(self, place: Place) -> Products:
        """One product for the prefixes that conditions have of their own, and one for the clean prefix.

        Rows that are never there read any prefix, and nobody reads what they get.

        Returns:
            Of each product the rows of each prefix, padded to shape [prefix, row], and its keys and values; and the
            place of each row in what all products give.
        """
        known, rows_of = self._known[place], dict[int, list[int]]()
        other = min(known)  # the clean row, where it is there
        for row, c in enumerate(self._conditions):
            while c not in known:
                c = self.leads.get(c, other)
            rows_of.setdefault(c, []).append(row)
        products, kept, places = [], {other: known[other]}, []
        for some in ([c for c in rows_of if c != CLEAN], [c for c in rows_of if c == CLEAN]):
            if some:
                keys, values = (torch.stack(of) for of in zip(*(known[c] for c in some), strict=True))
                # parts of these take the place of the others
                kept |= zip(some, zip(keys, values, strict=True), strict=True)
                rows = pad_sequence([torch.tensor(rows_of[c]) for c in some], batch_first=True, padding_value=-1)
                places.append(rows.flatten())
                products.append((rows.clamp(min=0).to(keys.device), keys, values))
        self._known[place] = kept
        order = torch.cat(places).argsort()[-len(self._conditions) :]  # padding comes first
        return products, order.to(known[other][0].device)


@dataclass(frozen=True)
class Step:
    """Rows that go through a layer together.

    Attributes:
        place: The layer, and how often these rows were there before.
        passing: Numbers of those that pass it; None: all rows do.
        replaced: Numbers of those that get what takes its place.
        edited: Whether the layer is edited for one that passes it.
    """

    place: Place
    passing: Tensor | None
    replaced: list[int]
    edited: bool


@dataclass
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

    lens: Lens
    backend: TorchBackend
    pack: Pack
    conditions: Sequence[Condition]
    budget: Budget
    writer: Writer
    passed: Callable[[int], None]
    finished: Callable[[list[Row]], None]
    _walked: list[WalkedRows] = field(default_factory=list, init=False)
    _prefix: SharedPrefixes = field(default_factory=SharedPrefixes, init=False)
    _alive: set[Row] = field(default_factory=set, init=False)  # rows that are not finished
    _steps: list[Step] | None = field(default=None, init=False)  # until rows join or leave
    _step_now: Step | None = field(default=None, init=False)  # which rows pass now

    def __post_init__(self) -> None:
        self._ways = ways_of(self.lens, self.conditions)
        self._plan = routes.schedule(self._ways, dict.fromkeys(self._ways, 0))

    @torch.no_grad()
    def run(self, at_once: int) -> None:
        """Write all texts, with the rows of at most so many conditions in memory.

        Raises:
            torch.OutOfMemoryError: texts became longer than there is room for; fewer are to be written at once.
        """
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

    def attention(self, layer: int, query: Queries, key: Keys, value: Values, scale: float) -> Z:
        """Attention of one new token a row to the prefix, the row's own tokens and itself."""
        assert self._step_now is not None
        passing, place = self._step_now.passing, self._step_now.place
        sizes: list[int] = [len(walked.rows) for walked in self._walked]
        here: Sequence[Any] = [slice(None)] * len(sizes)
        if passing is not None:  # those that skip the layer take part in the products all the same
            n = sum(sizes)
            query, key, value = (x.new_zeros(n, *x.shape[1:]).index_copy(0, passing, x) for x in (query, key, value))
            here = passing.new_zeros(n, dtype=torch.bool).index_fill(0, passing, True).split(sizes)
        q = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # [row, kv, group, d_head]
        parts = zip(self._walked, *(x.split(sizes) for x in (q, key, value)), here, strict=True)
        found = [walked.attention(place, *some, scale) for walked, *some in parts]
        out, lse = found[0] if len(found) == 1 else map(torch.cat, zip(*found, strict=True))
        if self.pack.n_prefix:
            out = merge(out, lse, *self._prefix.attention(place, q, scale))
        out = out.flatten(1, 2)[:, :, None]
        return out if passing is None else out[passing]

    def _join(self, some: range) -> None:
        """Walk the prompts under some conditions and write the first token of each."""
        pack, lens = self.pack, self.lens
        n_new = max(q.max_new_tokens for q in self.writer.requests)
        walked, under = WalkedRows(pack, some, n_new, lens), self.conditions[some.start : some.stop]
        number = {CLEAN: CLEAN} | dict(enumerate(some))  # among all conditions
        forks, followers = routes.forks(ways_of(lens, under)), dict[int, list[int]]()  # of a row, itself among them
        for c in range(len(under)):
            self._prefix.leads[some[c]] = number[row := forks[c].row]
            followers.setdefault(c, []).append(c)
            while row != CLEAN:
                followers[row].append(c)
                row = forks[row].row
        followers[CLEAN] = [*range(len(under))]

        def keep(layer: int, row: int, key: Tensor, value: Tensor) -> None:
            place = layer, layout.visit
            walked.fill(place, followers[row], key, value)  # those that have left it come after it, and fill their own
            self._prefix.put(place, number[row], key[:, : pack.n_prefix], value[:, : pack.n_prefix])

        last_tokens = [path[-1] for path in pack.paths]
        layout, about = Layout(pack, lens.device, keep), (lens, self.backend.means, self.budget.batch_tokens)
        states = Wavefront(*about, pack, under, last_tokens, layout, self.passed).run()
        self._walked.append(walked)
        self._changed()
        self._alive |= {*walked.rows}
        self._write(walked.rows, states.flatten(0, 1))

    def _step(self) -> None:
        """Write a token of each row, which all go through the layers together.

        This is launched layer by layer, and neither captured as a CUDA graph nor compiled: a graph needs the same
        tensors at every step, but hooks are made for the positions of a step, and attention reads keys up to a slot
        that moves.
        """
        rows, lens, arch = self.rows, self.lens, self.lens.arch
        position_ids = torch.cat([walked.position for walked in self._walked])[:, None]
        last = torch.tensor([self.writer.tokens[row][-1:] for row in rows], device=lens.device)
        under = [self.conditions[c] for c, _ in rows]
        edits = row_edits.RowEdits(under, lens, self.backend.means, position_ids, last)
        with walking(lens.model):
            with edits.embeddings():
                x = arch.embed(last)
            rotary = arch.angles(x, position_ids)
            for step in self._steps or ():
                i, _ = step.place
                x, rotary, position_ids = (moved(value, lens.device_of(i)) for value in (x, rotary, position_ids))
                about = {"position_embeddings": arch.angles_at(rotary, i), "position_ids": position_ids}
                x = self._through(step, x, about, edits)
        for walked in self._walked:
            walked.advance()
        if len(rows) > 1 and sum(walked.n_bytes for walked in self._walked) > GROWTH * self.budget.key_bytes:
            raise torch.OutOfMemoryError("out of memory: texts are longer than there was room for")  # fewer at once
        self.passed(sum(self._ways[c].passed() for c, _ in self._alive))
        self._write(rows, x[:, 0])

    def _write(self, rows: list[Row], states: Float[Tensor, "row d_model"]) -> None:
        """Choose the next token of rows that are not finished; drop those that are by then."""
        writing = [i for i, row in enumerate(rows) if row in self._alive]
        alive, states, unfinished = [rows[i] for i in writing], states[writing], []
        for start in range(0, len(alive), self.budget.unembed_rows):
            some = slice(start, start + self.budget.unembed_rows)
            under = [self.conditions[c] for c, _ in alive[some]]
            logits = row_edits.unembed(self.lens, under, states[some])
            unfinished += self.writer.write(alive[some], logits)
        done = {*alive} - {*unfinished}
        if not done:
            return
        self.finished(sorted(done))
        self._alive -= done
        before = len(self.rows)
        for walked in self._walked:
            walked.keep(self._alive)
        self._walked = [walked for walked in self._walked if walked.rows]
        if len(self.rows) < before:
            self._changed()

    def _changed(self) -> None:
        """Rows have joined or left: which of them take which step together."""
        under = [c for c, _ in self.rows]
        self._prefix.read_by(under)
        self._steps = []
        for layer, together in self._plan:
            visits = {c: self._ways[c].visit(step) for c, step in together.items()}
            gone = {c for c in together if layer in self._ways[c].replaced}
            for visit in sorted({*visits.values()}):
                here = [row for row, c in enumerate(under) if visits.get(c) == visit]
                replaced = [row for row in here if under[row] in gone]
                passing = sorted({*here} - {*replaced})
                edited = any(layer in self._ways[under[row]].edits for row in passing)
                every = len(passing) == len(under)
                if here:
                    numbers = None if every else torch.tensor(passing, device=self.lens.device_of(layer))
                    self._steps.append(Step((layer, visit), numbers, replaced, edited))

    def _through(
        self, step: Step, x: Float[Tensor, "row 1 d_model"], about: Any, edits: row_edits.RowEdits
    ) -> Float[Tensor, "row 1 d_model"]:
        """One token a row through one layer, by those rows that are there.

        Args:
            step: Which layer and rows.
            x: Residual streams.
            about: What the layer is called with, by row.
            edits: Of the rows.
        """
        i, _ = step.place
        layer = self.lens.arch.layers[i]  # called whole, since conditions that skip it in part hook the layer itself
        self._step_now = step
        if (passing := step.passing) is None:
            with edits.hooked(i) if i in edits.layers else nullcontext():
                return hidden(layer(x, attention_mask=None, layout=self, **about))
        new = x
        if step.replaced:  # what takes the place of the layer
            gone = torch.tensor(step.replaced, device=x.device)
            new = x.index_copy(0, gone, edits.at(i)["layer"](x, x)[gone])
        if len(passing):
            about = pytree.tree_map(lambda value: value[passing], about)
            under = [edits.conditions[row] for row in passing.tolist()]
            read = about["position_ids"], moved(cast(Tensor, edits.tokens), x.device)[passing]
            edited = step.edited or edits.in_force
            mine = row_edits.RowEdits(under, self.lens, self.backend.means, *read) if edited else None
            with mine.hooked(i) if mine else nullcontext():
                out = hidden(layer(x[passing], attention_mask=None, layout=self, **about))
            new = new.index_copy(0, passing, out)
        return new
