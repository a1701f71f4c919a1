"""A model on a server under conditions: each condition is an invoke of one trace, and only scores come back.

Sites as in `depthlens.backends.nnsight`. An invoke sees its own rows only, so that it assigns without masks. The last
one sees the rows of all: it unembeds the positions that are asked for and keeps two numbers a row, the log-likelihood
and how many tokens are not the likeliest.

The server does not have this package: a block that is sent names only numbers, tensors, torch and parts of the model.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import partial
from operator import attrgetter
from typing import Any

import nnsight
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from depthlens.ablations import WEIGHTS, Ablation, Condition, Dims
from depthlens.backends.protocol import TOKEN_CLASSES, Means, Positions, classes
from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.models.remote import Overfull

UNEMBED_ROWS = 512  # positions that are unembedded at once there
NOT_REMOTE = "is not done remotely; use @mean, or nothing to remove, or load the model without remote"

# site (layer, z, attn, mlp), layer, heads, what is added or put in place by class of the token ([1 or token_class, d],
# of heads [token_class, head, d]), and the first position (of heads [head, 1])
Edit = tuple[str, int, list[int], Tensor, Tensor]
# tokens and mask, each [row, pos], how many tokens each row's prompt has, and what is done to these rows
Group = tuple[Tensor, Tensor | None, list[Edit]]


class RemoteNnsight:
    """Sends conditions and tokens to the server that holds the model.

    Args:
        lens: A model loaded with ``remote``.
        means: What ``@mean`` puts in place of a part.
    """

    name = "nnsight"

    def __init__(self, lens: Lens, means: Means | None = None) -> None:
        assert lens.remote is not None
        self.lens = lens
        self.means = means
        self.remote = lens.remote
        self.model = lens.remote.model
        self.family = lens.arch.family
        paths = (self.family.attn, self.family.o_proj, self.family.mlp)
        self.parts = [
            (layer, *(attrgetter(path)(layer) for path in paths))
            for layer in attrgetter(self.family.layers)(self.model)
        ]

    def forward(
        self,
        tokens: Int[Tensor, "row pos"],
        attention_mask: Int[Tensor, "row cached_and_pos"],
        conditions: Sequence[Condition],
        *,
        cache: Any = None,
        positions: Positions | None = None,
    ) -> tuple[list[Float[Tensor, "_ d_vocab"]], None]:
        """See `protocol.Backend.forward`; whole logits are sent here, and there is no cache to continue from.

        Raises:
            UserError: a condition does not fit the model or asks for means that were not given.
            ValueError: no positions, or a cache.
        """
        if positions is None or cache is not None:
            raise ValueError("a remote model keeps no cache between calls; give positions, or use generate_until")
        by_condition: dict[Condition, list[int]] = {}
        for row, condition in enumerate(conditions):
            by_condition.setdefault(condition, []).append(row)
        groups: list[Group] = [
            (tokens[at].cpu(), attention_mask[at].cpu(), self.edits(c)) for c, at in by_condition.items()
        ]
        order = [row for at in by_condition.values() for row in at]
        lengths = [len(positions[row]) for row in order]
        rows = torch.arange(len(order)).repeat_interleave(torch.tensor(lengths))
        places = torch.tensor([p for row in order for p in positions[row]], dtype=torch.long)
        logits = self.remote.attempt(lambda sender: self.send(sender, groups, rows=rows, places=places))
        by_row = dict(zip(order, logits.split(lengths), strict=True))
        return [by_row[row] for row in range(len(order))], None

    def edits(self, condition: Condition) -> list[Edit]:
        """What a condition does, in the order in which the model computes.

        Raises:
            UserError: it does not fit the model, or asks for means and none were given.
        """
        condition.validate(self.lens.dims)
        for mode in ("resample", "noise"):
            if condition.uses(mode):
                raise UserError(f"condition {condition}: @{mode} {NOT_REMOTE}")
        if condition.uses("twice") or any(a.site == "expert" for a in condition.ablations):
            raise UserError(f"condition {condition} {NOT_REMOTE}")
        if condition.uses(*WEIGHTS):
            raise UserError(f"condition {condition} needs the weights here; load the model without remote")
        if condition.uses("mean") and (self.means is None or not self.means.measured):
            raise UserError(f"condition {condition} needs the means of a reference set and none was given")
        by_layer: dict[int, list[Ablation]] = {}
        for ablation in condition.ablations:
            by_layer.setdefault(ablation.layer, []).append(ablation)
        edits: list[Edit] = []
        for layer, ablations in sorted(by_layer.items()):
            if edit := _heads(ablations, layer, self.lens.dims, self.means):
                edits.append(edit)
            for site in ("attn", "mlp", "layer"):  # no two of these overlap within a condition
                for a in ablations:
                    if a.site == site:
                        # a slice is copied: of a view the whole tensor would travel
                        mean = getattr(self.means, site)[layer].clone().cpu() if a.mode == "mean" else torch.zeros(1, 1)
                        edits.append((site, layer, [], mean, torch.tensor(a.start)))
        return edits

    def send(
        self,
        sender: Any,
        groups: Sequence[Group],
        *,
        rows: Int[Tensor, " asked"] | None = None,
        places: Int[Tensor, " asked"] | None = None,
        targets: Int[Tensor, " asked"] | None = None,
        n_new: int = 0,
        options: dict[str, Any] | None = None,
    ) -> Tensor:
        """One trace, one invoke a group.

        Args:
            sender: nnsight's backend.
            groups: All of one width; rows are counted through them.
            rows: Rows of the positions that are asked for.
            places: These positions.
            targets: Token that is predicted at each; None asks for logits.
            n_new: Tokens to write after each row; 0 asks for the above.
            options: Of Hugging Face's ``generate``.

        Returns:
            Log-likelihood and number of misses a row, of shape [2, row]; or logits [asked, d_vocab]; or new tokens
            [row, new].
        """
        parts, n_heads, step = self.parts, self.lens.dims.n_heads, UNEMBED_ROWS
        final_norm = attrgetter(self.family.final_norm)(self.model)
        unembed = attrgetter(self.family.unembed)(self.model)
        n_rows, width = sum(len(group[0]) for group in groups), groups[0][0].shape[1]
        # the model itself unembeds the last position only
        settings = {"use_cache": False, "logits_to_keep": 1}
        if n_new:
            settings = (options or {}) | {"max_new_tokens": n_new}
        rows, places = (torch.zeros(0, dtype=torch.long) if x is None else x for x in (rows, places))
        run = self.model.generate if n_new else self.model.trace
        answer: Any = None
        # where tokens stand: those that are read at first, then one more at each step; a comment within the block would
        # shift the lines that nnsight counts
        with torch.no_grad(), run(**settings, backend=sender) as tracer:
            for tokens, mask, edits in groups:
                real = torch.ones_like(tokens) if mask is None else mask
                read = (real.cumsum(-1) - 1).clamp(min=0)
                with tracer.invoke(input_ids=tokens, attention_mask=mask):
                    for n_written in tracer.iter[: max(1, n_new) if edits else 0]:
                        position = read[:, -1:] + n_written if n_written else read
                        kinds = (position > 0).long()
                        for site, i, heads, value, start in edits:
                            layer, attn, o_proj, mlp = parts[i]
                            kind = kinds.clamp(max=len(value) - 1)
                            if site == "z":
                                z = o_proj.input.unflatten(-1, (n_heads, -1)).clone()
                                active = (position[:, :, None, None] >= start).to(z.device)
                                z[:, :, heads] = torch.where(active, value[kind].to(z), z[:, :, heads])
                                o_proj.input = z.flatten(-2)
                            else:
                                part = {"layer": layer, "attn": attn, "mlp": mlp}[site]
                                resid_pre = layer.input if site == "layer" else None
                                out = part.output
                                old = out[0] if isinstance(out, tuple) else out
                                new = (torch.zeros_like(old) if resid_pre is None else resid_pre) + value[kind].to(old)
                                active = (position[:, :, None] >= start).to(old.device)
                                new = torch.where(active, new, old)
                                part.output = (new, *out[1:]) if isinstance(out, tuple) else new
            with tracer.invoke():
                if n_new:
                    answer = nnsight.save(tracer.result[:, width:].cpu())
                else:
                    states = final_norm.output  # [row, pos, d_model]
                    picked = states[rows.to(states.device), places.to(states.device)]
                    if targets is None:
                        answer = nnsight.save(unembed(picked).cpu())
                    else:
                        answer = nnsight.save(torch.zeros(2, n_rows, dtype=torch.float64))
                        slices = zip(picked.split(step), rows.split(step), targets.split(step), strict=True)
                        for chunk, chunk_rows, chunk_targets in slices:
                            logits = unembed(chunk)
                            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                            token = chunk_targets.to(logits.device)
                            logprob = logits.gather(-1, token[:, None])[:, 0] - logits.logsumexp(-1)
                            missed = logits.argmax(-1) != token
                            answer.index_add_(1, chunk_rows, torch.stack([logprob.double(), missed.double()]).cpu())
        return answer


def _heads(ablations: Sequence[Ablation], layer: int, dims: Dims, means: Means | None) -> Edit | None:
    """One edit for all heads of a layer that are removed."""
    zero = torch.zeros(len(TOKEN_CLASSES), dims.d_head)
    values: dict[int, Tensor] = {}
    starts: list[list[int]] = []
    for a in ablations:
        if a.site in ("head", "kv"):
            for head in [a.index] if a.site == "head" else dims.query_heads(a.index):
                values[head] = means.z[layer, :, head].cpu() if means and a.mode == "mean" else zero
                starts.append([a.start])
    return ("z", layer, list(values), torch.stack(list(values.values()), 1), torch.tensor(starts)) if values else None


def padded(rows: Sequence[Sequence[int]], *, left: bool = False) -> Int[Tensor, "row pos"]:
    """Rows filled up with zeros."""
    width = max(map(len, rows))
    fill = [[0] * (width - len(row)) for row in rows]
    return torch.tensor([[*f, *row] if left else [*row, *f] for row, f in zip(rows, fill, strict=True)])


def sums_by_class(lens: Lens, texts: Sequence[list[int]], batch_tokens: int) -> tuple[dict[str, Tensor], Tensor]:
    """What `depthlens.engine.references.measure_means` needs: the server sends back sums over the tokens of each trace.

    Args:
        lens: A model loaded with ``remote``.
        texts: Token ids.
        batch_tokens: Token budget of one trace.

    Returns:
        Sums of every site over the tokens of each class, of shape [n_layers, token_class, width], and their numbers.
    """
    backend = RemoteNnsight(lens)
    todo = deque([sorted(texts, key=len, reverse=True)])
    total: dict[str, Tensor] = {}
    n_tokens = torch.zeros(len(TOKEN_CLASSES), dtype=torch.float64)
    while todo:
        batch = todo.popleft()
        longest = len(batch[0])
        n = max(1, batch_tokens // longest)
        if len(batch) > n:
            todo.appendleft(batch[n:])
            batch = batch[:n]
        tokens, real = padded(batch), padded([[1] * len(row) for row in batch])
        weights = (
            F.one_hot(classes(torch.arange(longest)[None]), len(TOKEN_CLASSES)) * real[:, :, None]
        )  # [row, pos, token_class]
        try:
            sums = backend.remote.attempt(partial(_sums, backend, tokens, weights.double()))
        except Overfull as e:
            if len(batch) == 1:
                raise UserError(f"one prompt of {longest} tokens is too much for the server: {e}") from e
            batch_tokens = len(batch) // 2 * longest
            todo.appendleft(batch)
            continue
        n_tokens += weights.sum((0, 1))
        for site, value in sums.items():
            total[site] = total.get(site, 0) + value
    return total, n_tokens


def _sums(backend: RemoteNnsight, tokens: Tensor, weights: Tensor, sender: Any) -> dict[str, Tensor]:
    """Weighted sums of every site, each of shape [n_layers, token_class, width]; weights [row, pos, token_class]."""
    parts = backend.parts
    sums: Any = None
    with torch.no_grad(), backend.model.trace(input_ids=tokens, use_cache=False, logits_to_keep=1, backend=sender):
        sums = nnsight.save({"layer": [], "attn": [], "mlp": [], "z": []})
        for layer, attn, o_proj, mlp in parts:
            resid_pre = layer.input
            for site, value in (
                ("z", o_proj.input),
                ("attn", attn.output),
                ("mlp", mlp.output),
                ("layer", layer.output),
            ):
                value = value[0] if isinstance(value, tuple) else value
                value = value - resid_pre if site == "layer" else value
                by_class = weights.to(value.device).flatten(0, 1).T @ value.double().flatten(0, 1)
                sums[site].append(by_class.cpu())
    return {site: torch.stack(values) for site, values in sums.items()}
