"""Where heads look from a few positions: attention patterns read one layer at a time.

A pattern over all positions has n_heads x pos x pos entries in each layer, which does not fit into memory for long
contexts. Only the rows of the asked positions are computed here, from the query and key heads that attention receives
(after rotary embedding and query/key norms, in every family), one layer at a time::

    pattern[h, i] = softmax over j <= asked[i] of  scale * q[h, asked[i]] . k[kv(h), j]

The scores of one layer are in memory: n_heads x asked x pos in float32, beside what one sequence needs to pass a layer.
The walk is the engine's own (`wavefront`), with the clean row alone.

`exchanged` is what heads give where they get queries, keys or values of another sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from depthlens.ablations import BASELINE
from depthlens.backends.row_edits import Means
from depthlens.engine import prefix_tree, references, walk_check
from depthlens.engine.tree_attention import Layout
from depthlens.engine.wavefront import Wavefront
from depthlens.errors import UserError
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens
from depthlens.models.placement import moved

HEADS = ("q", "k", "v")  # what heads read with: queries, keys, values
See = Callable[[int, Tensor, Tensor], None]  # layer, pattern [n_heads, asked, pos], values [n_kv_heads, pos, d]


def read(lens: Lens, tokens: Sequence[int], asked: Sequence[int], see: See) -> Float[Tensor, "asked d_model"]:
    """Show the attention patterns of some positions and the values that they weigh, one layer at a time.

    Args:
        lens: A loaded model; an offloaded one, too.
        tokens: Token ids of one sequence.
        asked: Positions whose patterns are wanted.
        see: Called with (layer, pattern, values) while the layer's weights are in memory. The pattern is float32 of
            shape [n_heads, asked, pos], the values have shape [n_kv_heads, pos, d_value]; both are gone after.

    Returns:
        The final residual stream at the asked positions, before the last norm.

    Raises:
        UserError: a sequence that is longer than a sliding window.
    """
    lens.needs_weights("the attention pattern")
    walk_check.require(lens, "the attention pattern")
    walk_check.refuse_window(lens, len(tokens), "attention patterns")
    pack = prefix_tree.build([tokens], [0])
    rows = PatternRows(pack, lens, asked, see)
    (final,) = Wavefront(lens, None, 1, pack, [BASELINE], asked, rows).run()
    return final


class PatternRows(Layout):
    """The layout of one sequence that shows pattern rows of asked positions, and all values, as each layer passes."""

    def __init__(self, pack: prefix_tree.Pack, lens: Lens, asked: Sequence[int], see: See) -> None:
        super().__init__(pack, lens.device)
        self.asked = torch.tensor(list(asked), device=lens.device)
        self.device = lens.device
        self.see = see

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Layout.attention`; here there is one row, and one sequence."""
        weights = pattern(query[0], key[0], moved(self.asked, query.device), scale)
        self.see(layer, *moved((weights, value[0]), self.device))
        group = query.shape[1] // key.shape[1]
        # fused, so that no scores of all positions against all are held on any device; fused kernels want equal widths,
        # which latent attention does not have, and zeros change neither scores nor what is read
        width = max(query.shape[-1], value.shape[-1])
        q, k, v = (functional.pad(x, (0, width - x.shape[-1])) for x in (query, key, value))
        k, v = (x.repeat_interleave(group, 1) for x in (k, v))
        z = functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return z[..., : value.shape[-1]]


def pattern(
    query: Float[Tensor, "n_heads pos d"], key: Float[Tensor, "n_kv_heads pos d"], asked: Tensor, scale: float
) -> Float[Tensor, "n_heads asked pos"]:
    """Causal attention patterns of the asked positions, in float32 or wider."""
    q = wide(query[:, asked]).unflatten(0, (key.shape[0], -1))  # [kv, group, asked, d]
    scores = (q @ wide(key).transpose(-1, -2)[:, None] * scale).flatten(0, 1)
    ahead = torch.arange(key.shape[1], device=key.device) > asked[:, None]
    return scores.masked_fill(ahead, -torch.inf).softmax(-1)


def exchanged(
    lens: Lens, source: Sequence[int], target: Sequence[int], part: str, spans: Sequence[Sequence[range]]
) -> Float[Tensor, "n_layers pos n_heads d_head"]:
    """What every head gives on one sequence, with the queries, keys or values that it has on another at some tokens.

    Layers below give what they do without the exchange.

    Args:
        lens: A loaded model.
        source: Token ids of the sequence that these come from.
        target: Of the other one.
        part: One of `HEADS`.
        spans: Tokens of the source, and those of the target in whose place they are.

    Raises:
        UserError: a model whose layers cannot be walked, whose heads write something else than attention gives (as
            behind a gate), or on which heads are ablated; or a sequence that is longer than a sliding window.
    """
    what = f"patching {part} of heads"
    walk_check.require(lens, what)
    walk_check.refuse_window(lens, max(len(source), len(target)), what)
    take, put = ([at for span in spans for at in span[side]] for side in (0, 1))
    other = ExchangedRow(lens, source, part)
    row = ExchangedRow(lens, target, part, other.read, take, put)
    as_it_is, new = (
        torch.stack([z[i].to(lens.device) for z in row.gave.values()]) for i in (0, 1)
    )  # [layer, head, pos, d]
    written = references.sample(lens, Means(""), tuple(target), ["z"]).sample["z"].transpose(1, 2)
    if (as_it_is - written).norm() > torch.finfo(lens.dtype).eps ** 0.5 * written.norm():
        raise UserError(f"{what}: the heads of {lens.name} write something else than attention gives; patch heads")
    return new.transpose(1, 2)


class ExchangedRow(Layout):
    """The layout of one sequence that keeps what heads read and give, layer by layer; it walks once.

    Attributes:
        read: Queries, keys or values by layer, each of shape [1, n_heads or n_kv_heads, pos, d].
        gave: By layer what heads give as they are, and with those of another sequence, each of shape [n_heads, pos, d].
    """

    def __init__(
        self,
        lens: Lens,
        tokens: Sequence[int],
        part: str,
        others: Mapping[int, Tensor] | None = None,
        take: Sequence[int] = (),
        put: Sequence[int] = (),
    ) -> None:
        pack = prefix_tree.build([tokens], [0])
        super().__init__(pack, lens.device)
        self.part, self.others, self.take, self.put = HEADS.index(part), others, take, put
        self.read: dict[int, Tensor] = {}
        self.gave: dict[int, tuple[Tensor, Tensor]] = {}
        Wavefront(lens, None, 1, pack, [BASELINE], [0], self).run()

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Layout.attention`."""
        z = super().attention(layer, query, key, value, scale)
        given = [query, key, value]
        self.read[layer] = given[self.part]
        if self.others:
            given[self.part] = given[self.part].clone()
            given[self.part][:, :, self.put] = self.others[layer][:, :, self.take]
            query, key, value = given
            self.gave[layer] = z[0], super().attention(layer, query, key, value, scale)[0]
        return z
