"""Decoding of many (condition, prompt) rows at once, over keys and values that they share.

The prompts of a pack are walked as one prefix tree (`depthlens.engine.wavefront`), and each layer's keys and values
are kept. Those of the common prefix are kept once a condition, or once for all conditions that have not forked yet.
Those of a prompt's own tokens are kept row by row, with room for what the row will write. A decoding step then runs all
rows through a layer together. Attention to the prefix and attention to a row's own tokens are computed separately and
merged. Finished rows leave.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor

from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.protocol import Places
from depthlens.backends.row_edits import RowEdits
from depthlens.backends.torch import TorchBackend
from depthlens.engine.attention_choice import Case, part_kernel
from depthlens.engine.attention_parts import aligned, merge
from depthlens.engine.memory_budget import Budget
from depthlens.engine.nonfinite import NotFinite
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.sampling import Numbers, drawn
from depthlens.engine.shared_prefixes import SharedPrefixes
from depthlens.engine.tree_attention import Layout, walking
from depthlens.engine.walk_check import Found
from depthlens.engine.wavefront import CleanRow, Wavefront
from depthlens.models import fingerprint
from depthlens.models.architectures import hidden
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, place_of
from depthlens.requests import GenerateRequest, Sampling, WrittenAnswer

Row = tuple[int, int]  # condition, prompt


class Writer:
    """What each row has written, and when it is done: end-of-text token, stop string or length, as in lm-eval.

    Args:
        lens: A loaded model.
        requests: Of the rows.
        conditions: Of the rows; they decide which tokens are drawn where a request asks for sampling.
    """

    def __init__(self, lens: Lens, requests: Sequence[GenerateRequest], conditions: Sequence[Condition]) -> None:
        config = lens.model.generation_config
        self.eos = fingerprint.end_tokens(config, lens.tokenizer)
        penalty = fingerprint.penalty(config)
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1.0 else None
        self.tokenizer = lens.tokenizer
        self.requests = requests
        self.conditions = conditions
        self.tokens: dict[Row, list[int]] = {}
        self._numbers: dict[Row, Numbers] = {}

    def write(self, rows: list[Row], logits: Float[Tensor, "row d_vocab"]) -> list[Row]:
        """Append a token to each row, the likeliest or one that is drawn; returns the rows that are not finished.

        Raises:
            NotFinite: the highest logit of a row is not finite.
        """
        if self.penalty is not None:
            read = [[*self.requests[row[1]].context, *self.tokens.get(row, [])] for row in rows]
            logits = torch.cat(
                [self.penalty(torch.tensor([t], device=x.device), x[None]) for t, x in zip(read, logits, strict=True)]
            )
        highest, likeliest = logits.max(-1)  # NaN is the highest of all
        if not (finite := highest.isfinite()).all():
            row = rows[int((~finite).nonzero()[0, 0])]
            raise NotFinite(row, self.tokens.get(row, ()))
        tokens = likeliest.tolist()
        for sampling, places in self._sampled(rows).items():
            numbers = [self._number(rows[i]) for i in places]
            for i, token in zip(places, drawn(logits[places], sampling, numbers), strict=True):
                tokens[i] = token
        for row, token in zip(rows, tokens, strict=True):
            self.tokens.setdefault(row, []).append(token)
        return [row for row in rows if not self._finished(row)]

    def _sampled(self, rows: Sequence[Row]) -> dict[Sampling, list[int]]:
        """Places of rows whose tokens are drawn, by how they are; rows of several draws are drawn alike."""
        found: dict[Sampling, list[int]] = {}
        for i, (_, r) in enumerate(rows):
            if (sampling := self.requests[r].sampling) is not None:
                found.setdefault(replace(sampling, draw=0), []).append(i)
        return found

    def _number(self, row: Row) -> float:
        if row not in self._numbers:
            self._numbers[row] = Numbers(self.requests[row[1]], self.conditions[row[0]])
        return self._numbers[row].at(len(self.tokens.get(row, ())))

    def replay(self, row: Row, tokens: Sequence[int]) -> WrittenAnswer:
        """The text of a row from tokens chosen elsewhere, as many of them as would have been written here."""
        self.tokens[row] = []
        for token in tokens:
            self.tokens[row].append(token)
            if self._finished(row):
                break
        return self.text(row)

    def last(self, rows: list[Row]) -> list[int]:
        """The last token of each row."""
        return [self.tokens[row][-1] for row in rows]

    def _finished(self, row: Row) -> bool:
        return self._ended(row) or len(self.tokens[row]) >= self.requests[row[1]].max_new_tokens

    def _ended(self, row: Row) -> bool:
        """Whether a row ended by itself or at a stop string."""
        tokens, request = self.tokens[row], self.requests[row[1]]
        if tokens[-1] in self.eos:
            return True
        text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=False))
        if request.think_end is not None:
            _, _, text = text.rpartition(request.think_end) if request.think_end in text else ("", "", "")
        return any(stop in text for stop in request.until)

    def text(self, row: Row) -> WrittenAnswer:
        """What a row has written after it thought, cut before its first stop string."""
        tokens, request = self.tokens[row], self.requests[row[1]]
        # what ends the thinking may be a special token
        text = cast(str, self.tokenizer.decode(tokens, skip_special_tokens=request.think_end is None))
        if request.think_end is not None:
            text = text.split(request.think_end)[-1].lstrip()
            for special in self.tokenizer.all_special_tokens:
                text = text.replace(special, "")
        return WrittenAnswer(cut(text, request.until), self._ended(row))


def cut(text: str, until: Sequence[str]) -> str:
    """``text`` before the first of the stop strings."""
    for stop in until:
        text = text.split(stop)[0]
    return text


class DecodedRows:
    """Keys and values of rows that are being decoded; a layout for `tree_attention`.

    Rows are sorted by condition.

    Attributes:
        conditions: Condition of each row.
        own: Per layer, keys and values of each row's own tokens. Two of shape [row, n_kv_heads, own + new, d].
        prefix: Keys and values of the prefix; None where there is none.
        mask: Additive, which own tokens a row sees. Shape [row, 1, 1, own + new], and some to align it.
    """

    def __init__(
        self, conditions: list[int], mask: Float[Tensor, "row 1 1 own_and_new"], width: int, *, has_prefix: bool
    ) -> None:
        self.conditions = conditions
        self.mask = mask
        self._masks: dict[torch.device, Tensor] = {}  # the mask on each device
        self.slot = width  # where the next written token is stored
        self.own: dict[int, tuple[Tensor, Tensor]] = {}
        self.prefix = SharedPrefixes(conditions) if has_prefix else None

    def attention(
        self,
        layer: int,
        query: Float[Tensor, "row n_heads 1 d_head"],
        key: Float[Tensor, "row n_kv_heads 1 d_head"],
        value: Float[Tensor, "row n_kv_heads 1 d_value"],
        scale: float,
    ) -> Float[Tensor, "row n_heads 1 d_value"]:
        """Attention of one new token a row to the prefix, the row's own tokens and itself."""
        keys, values = self.own[layer]
        keys[:, :, self.slot], values[:, :, self.slot] = key[:, :, 0], value[:, :, 0]
        q = query.unflatten(1, (key.shape[1], -1)).squeeze(3)  # [row, kv, group, d_head]
        end, attend = self.slot + 1, part_kernel(Case.of(query, key, value))
        if key.device not in self._masks:  # copied once a device, not at every layer of every step
            self._masks[key.device] = moved(self.mask, key.device)
        mask = self._masks[key.device][..., :end]
        out, lse = attend(q, keys[:, :, :end], values[:, :, :end], scale, mask, False)
        if self.prefix is not None:
            out = merge(out, lse, *self.prefix.attention(layer, q, value.shape[-1], scale, attend))
        return out.flatten(1, 2)[:, :, None]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but these."""
        index = torch.tensor(rows, device=self.mask.device)
        self.conditions = [self.conditions[i] for i in rows]
        if self.prefix is not None:
            self.prefix.keep(self.conditions)
        self.mask, self._masks = self.mask[index], {}
        for layer, (k, v) in self.own.items():
            on_device = moved(index, k.device)
            self.own[layer] = (k[on_device], v[on_device])


class CapturingLayout(Layout):
    """A pack's layout that fills `DecodedRows` with the keys and values that pass.

    Args:
        pack: The prompts.
        lens: A loaded model.
        paths: Flat indices of each prompt's own tokens, padded.
        target: The rows that are filled.
        n_new: Tokens that each row may write.
        clean: Has the keys and values of the clean row, where it was walked before; else they are put there.
    """

    def __init__(
        self, pack: Pack, lens: Lens, paths: Int[Tensor, "prompt own"], target: DecodedRows, n_new: int, clean: CleanRow
    ) -> None:
        super().__init__(pack, lens.device)
        self.paths = paths
        self.target = target
        self.n_new = n_new
        self.clean = clean
        self.rows_of: dict[int, list[int]] = {-1: [*range(len(target.conditions))]}  # by condition
        for i, c in enumerate(target.conditions):
            self.rows_of.setdefault(c, []).append(i)
        self._has_clean: set[int] = set()  # layers

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """As `Layout.attention`; what the rows that pass will need again is copied."""
        if -1 not in self.rows:
            self.copy_clean(layer)
        for i, c in enumerate(self.rows):
            self._copy(layer, c, key[i], value[i])
            if c < 0:
                self._has_clean.add(layer)
                if self.clean.layers:
                    self.clean.keys[layer] = key[i].clone(), value[i].clone()
        return super().attention(layer, query, key, value, scale)

    def copy_clean(self, layer: int) -> None:
        """Fill all rows with the clean row as it was walked before, once; those that have forked overwrite theirs."""
        if layer not in self._has_clean:
            self._has_clean.add(layer)
            self._copy(layer, -1, *self.clean.keys[layer])

    def _copy(
        self,
        layer: int,
        condition: int,
        key: Float[Tensor, "n_kv_heads pos d_head"],
        value: Float[Tensor, "n_kv_heads pos d_value"],
    ) -> None:
        """Copy keys and values to the rows of a condition; those of the clean row (-1) to all rows.

        The clean row comes first and fills the rows of every condition; conditions that have forked overwrite theirs.
        """
        width = self.paths.shape[1]
        if layer not in self.target.own:
            shape = len(self.target.conditions), len(key), width + self.n_new
            self.target.own[layer] = key.new_zeros(*shape, key.shape[-1]), value.new_zeros(*shape, value.shape[-1])
        rows = self.rows_of.get(condition, [])
        for own, new in zip(self.target.own[layer], (key, value), strict=True):
            of_prompts = new[:, moved(self.paths, new.device)].transpose(0, 1)  # [prompt, kv, own, d]
            index = torch.tensor(rows, device=own.device)
            own[index, :, :width] = of_prompts.repeat(len(rows) // len(of_prompts), 1, 1, 1)
        if self.target.prefix is not None:
            self.target.prefix.put(layer, condition, key[:, : self.n_prefix], value[:, : self.n_prefix])


@torch.no_grad()
def decode(
    lens: Lens,
    backend: TorchBackend,
    pack: Pack,
    conditions: Sequence[Condition],
    budget: Budget,
    tried: Found,
    writer: Writer,
    passed: Callable[[int], None],
    clean: CleanRow,
    finished: Callable[[list[Row]], None],
    enter: Callable[[torch.device], None] = lambda device: None,
) -> None:
    """Write tokens for every prompt of a pack under every condition.

    Args:
        lens: A loaded model.
        backend: Hooks and reference means.
        pack: The prompts.
        conditions: Any number, sorted by the layer at which they fork, the baseline last.
        budget: How many tokens of the prompts pass a layer together, and how many rows are unembedded together.
        tried: How the model is walked.
        writer: Chooses the tokens and says which rows (condition, prompt) are not finished.
        passed: Called after each layer of the prompts, and after each written token, with the number of tokens that
            have passed a layer.
        clean: The clean row of this pack: used where it was walked, else filled.
        finished: Called with the rows (condition, prompt) that are finished, as soon as they are.
        enter: Called before a device is used; see `depthlens.engine.pipeline`.
    """
    enter(lens.device)
    p, n_prompts, n_new = len(pack.prefix), len(pack.paths), max(q.max_new_tokens for q in writer.requests)
    own = [path[p:] for path in pack.paths]
    width = max(map(len, own))
    padded = [path + [0] * (width - len(path)) for path in own]
    paths = torch.tensor(padded, dtype=torch.long, device=lens.device).view(n_prompts, width)
    lengths = torch.tensor([len(path) for path in own], device=lens.device)
    slots = torch.arange(aligned(width + n_new), device=lens.device)
    mask = torch.zeros(n_prompts, aligned(width + n_new), dtype=lens.dtype, device=lens.device)
    mask.masked_fill_((slots >= lengths[:, None]) & (slots < width), -torch.inf)  # padding between prompt and answer
    alive = [(c, d) for c in range(len(conditions)) for d in range(n_prompts)]
    rows = DecodedRows([c for c, _ in alive], mask.repeat(len(conditions), 1)[:, None, None], width, has_prefix=p > 0)
    last_tokens = [path[-1] for path in pack.paths]
    unique = list(dict.fromkeys(last_tokens))
    walk = Wavefront(lens, backend.means, budget.batch_tokens, tried)
    layout = CapturingLayout(pack, lens, paths, rows, n_new, clean)
    states = walk.run(pack, conditions, unique, layout, passed, clean=clean, enter=enter)
    for layer in range(lens.dims.n_layers):
        layout.copy_clean(layer)
    states = states[:, [unique.index(t) for t in last_tokens]].flatten(0, 1)  # [row, d_model]
    position = torch.tensor([len(path) for path in pack.paths], device=lens.device).repeat(len(conditions))
    cached = list(alive)  # rows whose keys are in memory; finished ones leave when a fifth have, since leaving copies
    while True:
        enter(place_of(lens.arch.unembed))
        states, unfinished = states[_indices(cached, alive)], []
        for start in range(0, len(alive), budget.unembed_rows):
            some = slice(start, start + budget.unembed_rows)
            under = [conditions[c] for c, _ in alive[some]]
            logits = weight_swap.unembed(lens, under, states[some], plain=tried.plain)
            unfinished += writer.write(alive[some], logits)
        if len(unfinished) < len(alive):
            finished(sorted({*alive} - {*unfinished}))
        if not unfinished:
            return
        alive = unfinished
        if len(alive) < 0.8 * len(cached):
            stay = _indices(cached, alive)
            rows.keep(stay)
            position, cached = position[stay], list(alive)
        states = _step(lens, backend, [conditions[c] for c, _ in cached], writer.last(cached), position, rows, enter)
        position = position + 1
        rows.slot += 1
        passed(len(cached) * lens.dims.n_layers)


def _indices(cached: list[Row], alive: list[Row]) -> list[int]:
    """Indices of the rows that are not finished among those in memory."""
    unfinished = set(alive)
    return [i for i, row in enumerate(cached) if row in unfinished]


def _step(
    lens: Lens,
    backend: TorchBackend,
    conditions: list[Condition],
    tokens: list[int],
    position: Int[Tensor, " row"],
    rows: DecodedRows,
    enter: Callable[[torch.device], None],
) -> Float[Tensor, "row d_model"]:
    """One token a row through all layers.

    It is launched layer by layer, and neither captured as a CUDA graph nor compiled: a graph needs the same tensors at
    every step, but hooks are made for the positions of a step, and attention reads keys up to a slot that moves.
    """
    enter(lens.device)
    arch = lens.arch
    position_ids = position[:, None]
    # what is read here was written: no token is one of a prompt
    places = Places.of_rows(position_ids, [0] * len(position_ids))
    edits = RowEdits(conditions, lens, backend.means, places, lens.donor)
    with walking(lens.model):
        with edits.donations.embeddings():
            x = arch.embed(torch.tensor(tokens, device=lens.device))[:, None]
        rotary = arch.angles(x, position_ids)
        for i, layer in enumerate(arch.layers):  # called whole, since conditions that skip it hook the layer itself
            enter(device := lens.device_of(i))
            x, rotary, position_ids = (moved(value, device) for value in (x, rotary, position_ids))
            angles = arch.angles_at(rotary, i)
            about = {"position_embeddings": angles, "position_ids": position_ids, "layout": rows}
            with edits.hooked(i) if i in edits.layers else nullcontext():
                x = hidden(layer(x, attention_mask=None, **about))
    return x[:, 0]
