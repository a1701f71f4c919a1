"""Keys and values of rows that write, and how the walk of their prompts fills them."""

from __future__ import annotations

from collections.abc import Set

import torch
from jaxtyping import Float, Int
from torch import Tensor

from depthlens.engine.branch_attention import Attend, merge
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.shared_prefixes import CLEAN, SharedPrefixes
from depthlens.engine.tree_attention import Case, Layout, part_kernel
from depthlens.engine.wavefront import CleanRow
from depthlens.engine.writer import Row
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

# finished rows leave once less than this share of those in memory still writes: leaving copies the others
STAY_SHARE = 0.8


class WalkedRows:
    """Keys and values of the own tokens of rows whose prompts were walked together.

    Attributes:
        rows: Condition and prompt of each, sorted.
        position: Of the next token of each row. Shape [row].
        own: Per layer, keys and values of each row's own tokens. Two of shape [row, n_kv_heads, own + new, d].
        mask: Additive, which own tokens a row sees. Shape [row, 1, 1, own + new], and some to align it.
    """

    def __init__(
        self, rows: list[Row], position: Int[Tensor, " row"], mask: Float[Tensor, "row 1 1 own_and_new"], width: int
    ) -> None:
        self.rows = rows
        self.position = position
        self.mask = mask
        self._masks: dict[torch.device, Tensor] = {}  # the mask on each device
        self._slot = width  # where the next written token is stored
        self.own: dict[int, tuple[Tensor, Tensor]] = {}

    def attention(
        self,
        layer: int,
        q: Float[Tensor, "row kv group d_head"],
        key: Float[Tensor, "row kv 1 d_head"],
        value: Float[Tensor, "row kv 1 d_value"],
        scale: float,
        attend: Attend,
    ) -> tuple[Float[Tensor, "row kv group d_value"], Float[Tensor, "row kv group"]]:
        """Attention of one new token a row to the row's own tokens and itself, and its log-sum-exp."""
        keys, values = self.own[layer]
        keys[:, :, self._slot], values[:, :, self._slot] = key[:, :, 0], value[:, :, 0]
        end = self._slot + 1
        if key.device not in self._masks:  # copied once a device, not at every layer of every step
            self._masks[key.device] = moved(self.mask, key.device)
        mask = self._masks[key.device][..., :end]
        return attend(q, keys[:, :, :end], values[:, :, :end], scale, mask, False)

    def advance(self) -> None:
        """The next token takes the next place."""
        self._slot += 1
        self.position = self.position + 1

    def keep(self, alive: Set[Row]) -> None:
        """Drop rows that are finished, once these are many."""
        stay = [i for i, row in enumerate(self.rows) if row in alive]
        if len(stay) >= STAY_SHARE * len(self.rows):
            return
        index = torch.tensor(stay, dtype=torch.long, device=self.mask.device)
        self.rows, self.position = [self.rows[i] for i in stay], self.position[index]
        self.mask, self._masks = self.mask[index], {}
        for layer, (k, v) in self.own.items():
            on_device = moved(index, k.device)
            self.own[layer] = (k[on_device], v[on_device])


class DecodedRows:
    """Keys and values of all rows that write together; a layout for `tree_attention`.

    Rows are sorted by condition.

    Attributes:
        prefix: Keys and values of the prefix; None where there is none.
    """

    def __init__(self, *, has_prefix: bool) -> None:
        self._walked: list[WalkedRows] = []
        self.prefix = SharedPrefixes() if has_prefix else None

    @property
    def rows(self) -> list[Row]:
        """Condition and prompt of each row."""
        return [row for walked in self._walked for row in walked.rows]

    @property
    def position(self) -> Int[Tensor, " row"]:
        """Of the next token of each row."""
        return torch.cat([walked.position for walked in self._walked])

    def join(self, walked: WalkedRows) -> None:
        """Add rows whose conditions come after those of all others."""
        self._walked.append(walked)
        self._changed()

    def advance(self) -> None:
        """The next token of each row takes the next place."""
        for walked in self._walked:
            walked.advance()

    def keep(self, alive: Set[Row]) -> None:
        """Drop rows that are finished, once these are many."""
        before = len(self.rows)
        for walked in self._walked:
            walked.keep(alive)
        self._walked = [walked for walked in self._walked if walked.rows]
        if len(self.rows) < before:
            self._changed()

    def _changed(self) -> None:
        if self.prefix is not None:
            self.prefix.read_by([c for c, _ in self.rows])

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
        if self.prefix is not None:
            out = merge(out, lse, *self.prefix.attention(layer, q, value.shape[-1], scale, attend))
        return out.flatten(1, 2)[:, :, None]


class CapturingLayout(Layout):
    """A pack's layout that keeps the keys and values that pass, for rows that will write.

    Args:
        pack: The prompts.
        lens: A loaded model.
        paths: Flat indices of each prompt's own tokens, padded.
        target: The rows that get those of their own tokens.
        prefix: Gets those of the prefix; None where there is none.
        n_new: Tokens that each row may write.
        clean: Has the keys and values of the clean row, where it was walked before; else they are put there.
    """

    def __init__(
        self,
        pack: Pack,
        lens: Lens,
        paths: Int[Tensor, "prompt own"],
        target: WalkedRows,
        prefix: SharedPrefixes | None,
        n_new: int,
        clean: CleanRow,
    ) -> None:
        super().__init__(pack, lens.device)
        self.paths = paths
        self.target = target
        self.prefix = prefix
        self.n_new = n_new
        self.clean = clean
        # by condition of the walk, which counts from the first of these rows
        self.rows_of: dict[int, list[int]] = {-1: [*range(len(target.rows))]}
        self._first = target.rows[0][0]
        for i, (c, _) in enumerate(target.rows):
            self.rows_of.setdefault(c - self._first, []).append(i)
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
            shape = len(self.target.rows), len(key), width + self.n_new
            self.target.own[layer] = key.new_zeros(*shape, key.shape[-1]), value.new_zeros(*shape, value.shape[-1])
        rows = self.rows_of.get(condition, [])
        for own, new in zip(self.target.own[layer], (key, value), strict=True):
            of_prompts = new[:, moved(self.paths, new.device)].transpose(0, 1)  # [prompt, kv, own, d]
            index = torch.tensor(rows, device=own.device)
            own[index, :, :width] = of_prompts.repeat(len(rows) // len(of_prompts), 1, 1, 1)
        if self.prefix is not None:
            whose = CLEAN if condition < 0 else condition + self._first
            self.prefix.put(layer, whose, key[:, : self.n_prefix], value[:, : self.n_prefix])
