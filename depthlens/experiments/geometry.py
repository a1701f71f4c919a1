"""Cheap numbers about depth: how far each layer moves the residual stream, and where to.

With x_l the residual stream before layer l (x_0 is the embedding, x_L what the last of L layers leaves, before the
final norm), all read in one clean pass:

* angular distance of n layers, at a text's last token (Gromov et al. 2024, arXiv 2403.17887):
  ``d(x_l, x_{l+n}) = arccos(cos(x_l, x_{l+n})) / pi``; 0: same direction, 1: opposite. The smallest one of a size names
  the block that looks most removable;
* block influence (ShortGPT, Men et al. 2024, arXiv 2403.03853): ``1 - mean over tokens of cos(x_l, x_{l+1})``;
* logit lens (nostalgebraist 2020): the final norm and the unembedding applied to x_l, at some positions; how probable,
  and of what rank, the model's own final top-1 token is by then, and the entropy of the distribution in nats.

`layer_effects` asks how much later layers depend on an earlier one (Csordas et al. 2025, arXiv 2505.13898). Layer s is
skipped, and what a later layer l adds to the stream changes by ``||delta_l(skip s) - delta_l|| / ||delta_l||``. Where
layer s is skipped at all positions, this mixes two effects. Where it is skipped only before a random position t and
the change is measured from t on, this is what layer s *passes on to future tokens* through attention.

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

from depthlens import arguments
from depthlens.ablations import BASELINE
from depthlens.analysis.layers.geometry import Geometry
from depthlens.analysis.result.tables import DescribedTable
from depthlens.engine import prefix_tree, walk_check
from depthlens.engine.tree_attention import Layout, walking
from depthlens.engine.wavefront import CLEAN, CleanRow, Wavefront, ways_of
from depthlens.experiments.texts import Texts, encoded, measured, named, table_of_means
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.models.placement import moved
from depthlens.store.answer_cache import AnswerStore, Where
from depthlens.store.parts import DEFAULT

LENS = {"probability": (0.0, 1.0), "rank": (1.0, np.inf), "entropy": (0.0, np.inf)}  # with their limits
WHERE = ("all", "future")
REDUCE = ("max", "mean")
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
    (final,) = Wavefront(lens, None, batch_tokens=1).run(pack, [BASELINE], range(pack.n_tokens), clean=clean)
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


@one_thread
def layer_effects(
    lens: Lens,
    texts: Texts = None,
    *,
    limit: int | None = None,
    reduce: str = "max",
    skip_first: int = 0,
    seed: int = 0,
    max_tokens: int = 128,
    batch_tokens: int = 4096,
    store: Where = DEFAULT,
    progress: bool = True,
) -> DescribedTable:
    """How much skipping a layer changes what each later layer adds to the residual stream.

    The first token of a text is an attention sink. A few early layers give it a state far larger than all others. Much
    of the effect of skipping these layers is the loss of that state alone; ``skip_first=1`` leaves it in place.

    Args:
        lens: A loaded model; an offloaded one reads its layers once a text.
        texts: Any texts, or the name of a set: ``embedded`` or ``c4`` (`depthlens.experiments.texts`); None: the
            embedded ones.
        limit: Only the first so many; ``c4`` needs it. None: all, but 16 where no texts are named.
        reduce: The effect on a text is the ``max`` or the ``mean`` over its positions.
        skip_first: At so many first positions no layer is skipped, and nothing is measured.
        seed: Of the position t that splits each text: after the first one that is not spared, equally likely.
        max_tokens: Of longer texts, only the first so many tokens are read.
        batch_tokens: Rows go through a layer in chunks of at most so many tokens.
        store: Where the effects on single texts are found and kept; see `depthlens.layer_sweep`.
        progress: Show a bar.

    Returns:
        One row a pair of layers and where: layer (skipped), later, where (``all``: skipped and measured at all
        positions; ``future``: skipped before t, measured from t on), effect, ci_low, ci_high, n.

    Raises:
        UserError: an unknown ``reduce``, a ``skip_first`` below 0 or that leaves fewer than 2 tokens of a text, or see
            `geometry`.

    Example:
        >>> effects = dl.layer_effects(lens, limit=2)
        >>> effects.table.columns.tolist()
        ['layer', 'later', 'where', 'effect', 'ci_low', 'ci_high', 'n']
    """
    arguments.one_of(*REDUCE)("reduce", reduce)
    seed = arguments.check(seed=seed)["seed"]
    rows = encoded(lens, texts, limit, max_tokens)
    skip_first = arguments.whole("skip_first", skip_first, 0, min(map(len, rows)) - 2, fix=", as the texts are")
    # seeded by text, so that a text's split does not depend on how many others there are
    splits = [int(np.random.default_rng([seed, i]).integers(skip_first + 1, len(row))) for i, row in enumerate(rows)]
    above = np.triu_indices(lens.dims.n_layers, 1)  # skipped layers, and later ones
    places = [(s, later, where) for where in WHERE for s, later in zip(*np.array(above).tolist(), strict=True)]

    def measure(case: tuple[list[int], int]) -> np.ndarray:
        tokens, split = case
        return text_effects(lens, tokens, skip_first, split, reduce, batch_tokens)[:, *above]

    cases = list(zip(rows, splits, strict=True))
    names = [f"{where} {s} {later}" for s, later, where in places]
    answers, method = AnswerStore(store, lens), f"effects, {reduce}, spare {skip_first}"
    values = measured(answers, "geometry", method, cases, names, measure, progress=progress)
    table = table_of_means(["layer", "later", "where"], places, {"effect": (values, (0.0, np.inf))})
    return DescribedTable(table, [], answers.record(made_by="layer_effects"))


@torch.no_grad()
def text_effects(
    lens: Lens, tokens: Sequence[int], skip_first: int, split: int, reduce: str, batch_tokens: int
) -> np.ndarray:
    """Effects on one text. Shape [where, skipped layer, later layer]; NaN where that is not a later one."""
    walk_check.require(lens, "the effect of a layer on later ones", adds=True, whole=True)
    n_layers = lens.dims.n_layers
    layout = Layout(prefix_tree.build([tokens], [0]), lens.device)
    x = lens.arch.embed(layout.tokens)[None]  # row 0 is clean, 1 + 2s skips layer s at all positions, 2 + 2s before t
    rotary = lens.arch.angles(x, layout.position_ids)
    position = torch.arange(len(tokens), device=lens.device)[:, None]
    skipped = torch.stack([position >= skip_first, (position >= skip_first) & (position < split)])  # [where, pos, 1]
    size, found = max(1, batch_tokens // len(tokens)), np.full((2, n_layers, n_layers), np.nan)
    with walking(lens.model):
        for layer in range(n_layers):
            outs, parts = [], []
            with lens.resident(layer), lens.arch.sublayers(layer) as given:
                for rows in x.split(size):
                    outs.append(lens.arch.call(layer, rows, layout, rotary))
                    parts.append(torch.stack([part.view_as(rows) for part in (given["attn"], given["mlp"])]))
            out, added = torch.cat(outs), torch.cat(parts, 1)  # added: [sublayer, row, pos, d_model]
            clean = wide(added[:, 0]).sum(0)
            norm = clean.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
            for row in range(1, len(x)):
                change = (wide(added[:, row]).sum(0) - clean).norm(dim=-1) / norm  # [pos]
                s, where = divmod(row - 1, 2)
                seen = change[split if where else skip_first :]
                found[where, s, layer] = float(seen.max() if reduce == "max" else seen.mean())
            # rows that skip this layer fork off the clean one here: until now they were the same
            x, skipped = moved(x, out.device), moved(skipped, out.device)
            x = torch.cat([out, torch.where(skipped, x[:1], out[:1])])
    if not x[0].isfinite().all():
        raise lens.not_finite(BASELINE)
    return found
