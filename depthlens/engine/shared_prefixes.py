"""Keys and values of the common prefix while texts are written: kept once a condition, read once a step.

Conditions that have not forked by a layer share the clean row's prefix there. The rows of every other condition have a
prefix of their own. All of these are read in one product, however many conditions there are, because a GPU needs about
as long for many small products as it needs to be told of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from depthlens.engine.branch_attention import Attend
from depthlens.models.architectures import wide_type

CLEAN = -1  # stands for the condition of the clean row


@dataclass
class _Product:
    """Prefixes that are read in one product.

    Attributes:
        rows: Rows that have one of them, as an index or a slice.
        place: Of each of these rows, which prefix it has, and its number among the rows that have it. Two of shape
            [row]; None where every prefix has as many rows.
        most: Most rows that one prefix has.
        keys: Shape [prefix, n_kv_heads, pos, d_head].
        values: Shape [prefix, n_kv_heads, pos, d_value].
    """

    rows: Tensor | slice
    place: tuple[Tensor, Tensor] | None
    most: int
    keys: Float[Tensor, "prefix kv pos d_head"]
    values: Float[Tensor, "prefix kv pos d_value"]

    def by_prefix(self, q: Float[Tensor, "row kv group d"]) -> Float[Tensor, "prefix kv row_and_group d"]:
        """The queries of each prefix together, padded where it has fewer rows than another."""
        if self.place is None:
            queries = q[self.rows].unflatten(0, (len(self.keys), -1))
        else:
            queries = q.new_zeros(len(self.keys), self.most, *q.shape[1:])
            queries[self.place] = q[self.rows]
        return queries.transpose(1, 2).flatten(2, 3)

    def by_row(self, x: Float[Tensor, "prefix kv row_and_group *d"]) -> Float[Tensor, "row kv group *d"]:
        """What each row gets of what its prefix got."""
        x = x.unflatten(2, (self.most, -1)).transpose(1, 2)
        return x.flatten(0, 1) if self.place is None else x[self.place]


class SharedPrefixes:
    """Keys and values of the prefix at every layer, by condition."""

    def __init__(self) -> None:
        self._conditions: list[int] = []  # of each row
        self._known: dict[int, dict[int, tuple[Tensor, Tensor]]] = {}  # by layer and condition
        self._stacked: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, those of conditions as one tensor
        self._products: dict[int, list[_Product]] = {}  # by layer, until rows join or leave

    def put(
        self, layer: int, condition: int, key: Float[Tensor, "kv pos d_head"], value: Float[Tensor, "kv pos d_value"]
    ) -> None:
        """Keep the prefix of a condition, or of the clean row (`CLEAN`), at a layer."""
        known = self._known.setdefault(layer, {})
        if condition != CLEAN or CLEAN not in known:  # every walk of the pack brings that of the clean row
            known[condition] = key.clone(), value.clone()
            self._stacked.pop(layer, None)

    def read_by(self, conditions: Sequence[int]) -> None:
        """Rows have joined or left: the condition of each that there is now, sorted."""
        self._conditions = list(conditions)
        self._products.clear()

    def attention(
        self, layer: int, q: Float[Tensor, "row kv group d_head"], d_value: int, scale: float, attend: Attend
    ) -> tuple[Float[Tensor, "row kv group d_value"], Float[Tensor, "row kv group"]]:
        """Attention of one new token a row to its prefix, and its log-sum-exp."""
        out, lse = q.new_empty(*q.shape[:3], d_value), q.new_empty(q.shape[:3], dtype=wide_type(q.dtype))
        if layer not in self._products:
            self._products[layer] = self._made(layer)
        for product in self._products[layer]:
            o, s = attend(product.by_prefix(q), product.keys, product.values, scale, None, False)
            out[product.rows], lse[product.rows] = product.by_row(o), product.by_row(s)
        return out, lse

    def _made(self, layer: int) -> list[_Product]:
        """One product for the prefixes that conditions have of their own, and one for the clean prefix."""
        of_row = torch.tensor(self._conditions)
        own = torch.tensor(sorted((self._known[layer].keys() - {CLEAN}) & {*self._conditions}), dtype=torch.long)
        of_row = torch.where(torch.isin(of_row, own), of_row, CLEAN)
        products = []
        for prefixes, mine in ((own, of_row != CLEAN), (torch.tensor([CLEAN]), of_row == CLEAN)):
            if mine.any():
                keys, values = self._as_one(layer, prefixes.tolist())
                rows = mine.nonzero()[:, 0]
                which = torch.searchsorted(prefixes, of_row[rows])
                number = torch.arange(len(rows)) - torch.searchsorted(of_row[rows], prefixes)[which]
                most, first, end = int(number.max()) + 1, int(rows[0]), int(rows[-1]) + 1
                # copies are spared where they can be: they cost as much as a short prefix
                even, dense = len(rows) == len(prefixes) * most, len(rows) == end - first
                place = None if even else (which.to(keys.device), number.to(keys.device))
                at = slice(first, end) if dense else rows.to(keys.device)
                products.append(_Product(at, place, most, keys, values))
        return products

    def _as_one(self, layer: int, conditions: list[int]) -> tuple[Tensor, Tensor]:
        """Keys and values of some prefixes, each as one tensor, which takes the place of those that it is made of."""
        known = self._known[layer]
        if conditions == [CLEAN]:
            return known[CLEAN][0][None], known[CLEAN][1][None]
        if layer not in self._stacked or known.keys() - {CLEAN} != {*conditions}:
            keys, values = (torch.stack([known[c][i] for c in conditions]) for i in (0, 1))
            self._stacked[layer] = keys, values
            clean = {c: known[c] for c in known if c == CLEAN}
            self._known[layer] = clean | {c: (keys[i], values[i]) for i, c in enumerate(conditions)}
        return self._stacked[layer]
