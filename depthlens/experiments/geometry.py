"""Cheap numbers about depth: how far each layer moves the residual stream, and where to.

With x_l the residual stream before layer l (x_0 is the embedding, x_L what the last of L layers leaves, before the
final norm), all read in one clean pass:

* angular distance of n layers, at a text's last token (Gromov et al. 2024, arXiv 2403.17887):
  ``d(x_l, x_{l+n}) = arccos(cos(x_l, x_{l+n})) / pi``; 0: same direction, 1: opposite. The smallest one of a size names
  the block that looks most removable;
* block influence (ShortGPT, Men et al. 2024, arXiv 2403.03853): ``1 - mean over tokens of cos(x_l, x_{l+1})``;
* logit lens (nostalgebraist 2020): the final norm and the unembedding applied to x_l, at some positions; how probable,
  and of what rank, the model's own final top-1 token is by then, and the entropy of the distribution in nats.

Every number is taken per text, then averaged, with its 95% interval (`depthlens.analysis.numbers.means`).
The residual streams of one text are held at a time. `depthlens.analysis.layers.geometry` says how well these numbers
predict what a removal costs.

Limits: a few large dimensions of a trained stream dominate its cosines, and the first token is often a huge outlier.
Early streams are not made for the unembedding, so the logit lens understates what they hold.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from depthlens.ablations import BASELINE
from depthlens.analysis.layers.geometry import Geometry
from depthlens.engine import prefix_tree, walk_check
from depthlens.engine.wavefront import CLEAN, CleanRow, Wavefront, ways_of
from depthlens.experiments.texts import Texts, encoded, measured, named, table_of_means
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT

LENS = {"probability": (0.0, 1.0), "rank": (1.0, np.inf), "entropy": (0.0, np.inf)}  # with their limits
LENS_POSITIONS = 64  # of a text, evenly spread, that the logit lens reads: at a depth one costs as much as some layers
UNEMBEDDED = 256  # positions unembedded at once: 256 x 128k vocabulary x float32 = 128 MiB


@one_thread
def depth_geometry(
    lens: Lens,
    texts: Texts = None,
    *,
    limit: int | None = None,
    max_tokens: int = 128,
    store: Where = DEFAULT,
    progress: bool = True,
) -> Geometry:
    """Angular distances, block influence and logit lens of a model, in one pass over texts.

    Args:
        lens: A loaded model; an offloaded one reads its layers once a text.
        texts: Any texts, or the name of a set: ``embedded`` or ``c4`` (`depthlens.experiments.texts`); None: the
            embedded ones.
        limit: Only the first so many; ``c4`` needs it. None: all, but 16 where no texts are named.
        max_tokens: Of longer texts, only the first so many tokens are read.
        store: Where the numbers of single texts are found and kept; see `depthlens.layer_sweep`.
        progress: Show a bar.

    Raises:
        UserError: no texts, one of fewer than 2 tokens or more than the model reads, or states that are not finite.

    Example:
        >>> geometry = dl.depth_geometry(lens, limit=2)
        >>> geometry.distances.columns.tolist()
        ['layer', 'size', 'distance', 'ci_low', 'ci_high', 'n']
    """
    rows = encoded(lens, texts, limit, max_tokens)
    depths = range(lens.dims.n_layers + 1)
    places = [(layer, size) for size in depths[1:] for layer in depths[: len(depths) - size]]
    names = [
        *(f"distance {layer} {size}" for layer, size in places),
        *(f"influence {layer}" for layer in depths[:-1]),
        *(f"{measure} {depth}" for depth in depths for measure in LENS),
    ]
    answers, method = AnswerStore(store, lens), f"geometry, lens at {LENS_POSITIONS}"
    measure = partial(_measure, lens)
    values = measured(answers, "geometry", method, rows, names, measure, progress=progress)
    distance, influence, by_depth = np.split(values, [len(places), len(places) + len(depths) - 1], axis=1)
    of_lens = {name: (by_depth[:, i :: len(LENS)], limits) for i, (name, limits) in enumerate(LENS.items())}
    digest = hashlib.blake2b(json.dumps(rows).encode(), digest_size=16).hexdigest()  # of their token ids
    read = {"source": named(texts), "n": len(rows), "digest": digest}
    return Geometry(
        distances=table_of_means(["layer", "size"], places, {"distance": (distance, (0.0, 1.0))}),
        influences=table_of_means(["layer"], depths[:-1], {"influence": (influence, (0.0, 2.0))}),
        logit_lens=table_of_means(["depth"], depths, of_lens),
        record=answers.record(texts=read, max_tokens=max_tokens, lens_positions=LENS_POSITIONS),
    )


def angular_distance(a: Float[Tensor, "*row d_model"], b: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row"]:
    """``arccos(cos(a, b)) / pi`` in float64, from 0 (same direction) to 1 (opposite).

    With unit vectors u and v this is ``2 atan2(|u - v|, |u + v|) / pi`` (Kahan). The arccosine itself turns a rounding
    of 1e-16 near cosine 1 into an angle of 1e-8, or into NaN just beyond, and so breaks the triangle inequality.
    """
    u, v = (functional.normalize(x.double(), dim=-1) for x in (a, b))
    return 2 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1)) / torch.pi


@torch.no_grad()
def _measure(lens: Lens, tokens: Sequence[int]) -> np.ndarray:
    """Distances by size and layer, influences by layer and the logit lens by depth of one text, one after another."""
    states = residual_streams(lens, tokens)
    last = torch.stack([x[-1] for x in states])  # [depth, d_model]
    distances = torch.cat([angular_distance(last[:-size], last[size:]) for size in range(1, len(states))])
    pairs = zip(states, states[1:], strict=False)
    cosines = [functional.cosine_similarity(a.double(), b.double(), dim=-1).clamp(-1, 1).mean() for a, b in pairs]
    lenses = _logit_lens(lens, states, LENS_POSITIONS).ravel()
    return np.concatenate([distances.numpy(), 1 - torch.stack(cosines).numpy(), lenses])


def residual_streams(lens: Lens, tokens: Sequence[int]) -> list[Float[Tensor, "pos d_model"]]:
    """Residual streams of one text on the CPU: after the embedding and after each layer, before the final norm."""
    walk_check.require(lens, "the geometry of the residual stream")
    # where layers are passed again under what is in force, before each is passed first
    steps = (ways_of(lens, [])[CLEAN].layers.index(layer) for layer in range(lens.dims.n_layers))
    pack, clean = prefix_tree.build([tokens], [0]), CleanRow(frozenset(steps))
    (final,) = Wavefront(lens, None, 1, pack, [BASELINE], range(pack.n_tokens), clean=clean).run()
    # on the CPU, since float64, which the measures need, is not on every device
    states = [x.cpu() for x in (*clean.inputs.values(), final)]
    if not states[-1].isfinite().all():
        raise lens.not_finite(BASELINE)
    return states


def _logit_lens(lens: Lens, states: Sequence[Tensor], n_positions: int) -> np.ndarray:
    """Probability and rank of the final top-1 token, and entropy, of one text by depth. Shape [n_layers + 1, 3]."""
    n_pos = len(states[0])
    at = torch.linspace(n_pos - 1, 0, min(n_positions, n_pos), dtype=torch.float32).round().long()
    x = torch.stack([state[at] for state in states])  # [depth, position, d_model]
    top = unembedded(lens, x[-1])[0].long()
    _, *found = unembedded(lens, x.flatten(0, 1), top.repeat(len(x)))
    probability, rank, entropy = (of.view(x.shape[:2]).numpy() for of in found)
    return np.stack([probability.mean(1), np.median(rank, 1), entropy.mean(1)], 1)


def unembedded(
    lens: Lens, states: Float[Tensor, "row d_model"], wanted: Tensor | None = None
) -> Float[Tensor, "4 row"]:
    """What the model would say after states: token, its probability and rank, and the entropy of all in nats.

    Args:
        lens: A loaded model.
        states: Of the residual stream.
        wanted: A token for each; None: the likeliest.
    """
    found = []
    for start in range(0, len(states), UNEMBEDDED):
        at = slice(start, start + UNEMBEDDED)
        logits = wide(lens.arch.logits(states[at].to(lens.device)))
        token = logits.argmax(-1) if wanted is None else wanted[at].to(logits.device)
        its, norm = logits.gather(-1, token[:, None])[:, 0], logits.logsumexp(-1)
        rank = 1 + (logits > its[:, None]).sum(-1)
        # entropy = log Z - sum of p x
        entropy = norm - ((logits - norm[:, None]).exp() * logits).nan_to_num().sum(-1)
        # on the CPU, since float64 is not on every device
        found.append(torch.stack([of.cpu().double() for of in (token, (its - norm).exp(), rank, entropy)]))
    return torch.cat(found, 1)
