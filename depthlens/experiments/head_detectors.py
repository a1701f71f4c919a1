r"""Detectors of heads: what each does while a model answers from its context, or reads a text twice.

**Retrieval heads** are scored token by token while the model answers.

For a needle whose answer has the tokens y_1 .. y_n, with a_h(i, j) the attention of head h from position i to j:

* **copy-paste score** (Wu et al. 2024, arXiv 2404.15574), at each answer token: 1 where the top-1 attended position of
  the head is in the needle and holds the token that is being written, else 0;
* **query-to-gold attention** (QRHead, Zhang et al. 2025, arXiv 2506.09944), at each token i of the question: the
  attention mass on the gold sentence, ``sum over j in gold of a_h(i, j)``. It needs no answer token and no match;
* **write-aware score**, at each answer token y_t, written at position i: what the head adds to its logit directly, the
  mean logit of the vocabulary subtracted. With o_h(i) = W_O^h sum over j of a_h(i, j) v_h(j) the output of the head,
  g the weight of the final norm and s(i) its scale at i, which is held fixed,
  ``o_h(i) * s(i) g . (W_U[y_t] - mean over tokens of W_U)``.
  Over all heads, MLPs, biases and the embedding these add up to the logit itself;
* **write from the needle**: the part of the same sum whose j is in the gold sentence. Logit-Contribution Scoring
  (LOCOS, Gema et al. 2026, arXiv 2607.01002) contrasts source positions in the needle with those off it; the rest of
  the write-aware score is what the head wrote from elsewhere.

Limits. The first two say where a head looks, not what it writes: a decoy scores as high as the head that answers. The
last two count the direct path to the logits: what a head gives to later heads and MLPs is missing, and so is what the
final norm does with the sum.

**Induction score** (Olsson et al. 2022, In-context Learning and Induction Heads; the definition of TransformerLens). A
text of random tokens x_1 .. x_n is read twice in a row. From the second occurrence of a token an induction head attends
to the token after its first occurrence::

    score(h) = mean over i in the second copy of  a_h(i, i - (n - 1))

Random tokens have no meaning, so that nothing but repetition can guide the head. A head with a high copy-paste score
and a high induction score continues a repeated phrase; one that retrieves by meaning has a low induction score.

Limits: a head may do both, and a head that induces by meaning (synonyms) has a low score here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.analysis.head_scores import HeadScores
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns
from depthlens.experiments.measured import measured
from depthlens.models import quantised
from depthlens.models.architectures import wide, wide_type
from depthlens.models.lens import Lens, one_thread
from depthlens.models.placement import moved
from depthlens.store.answer_cache import AnswerCache, Where
from depthlens.store.parts import DEFAULT
from depthlens.tasks.needles import Needle

COPY_PASTE, QUERY_TO_GOLD = "copy_paste", "query_to_gold"
WRITE_AWARE, WRITE_FROM_NEEDLE = "write_aware", "write_from_needle"


@dataclass(frozen=True)
class Detector:
    """How a detector scores heads.

    Attributes:
        label: Its name in figures and sentences.
        unit: "" for shares from 0 to 1, or "logits".
        n_tokens: Tokens of a needle that it scores.
        measure: Scores of one needle. Shape [token, n_layers, n_heads].
    """

    label: str
    unit: str
    n_tokens: Callable[[Needle], int]
    measure: Callable[[Lens, Needle], np.ndarray]


def scores_by_token(
    lens: Lens, needles: Sequence[Needle], method: str, *, progress: bool = False, cache: AnswerCache | None = None
) -> list[Float[np.ndarray, "token n_layers n_heads"]]:
    """Scores of every head on each needle, recalled or not, at each token that the detector looks at.

    Args:
        lens: A loaded model.
        needles: From `depthlens.tasks.needles`.
        method: A key of `DETECTORS`.
        progress: Show a bar.
        cache: Where scores are found and kept; its entry must be of this method.
    """
    detector = DETECTORS[method]
    owners = [i for i, needle in enumerate(needles) for _ in range(detector.n_tokens(needle))]
    token_of = [t for needle in needles for t in range(detector.n_tokens(needle))]

    def measure(members: list[int]) -> Iterator[tuple[list[int], np.ndarray]]:
        by_needle: dict[int, list[int]] = defaultdict(list)
        for case in members:
            by_needle[owners[case]].append(case)
        for i, cases in by_needle.items():  # one pass gives all tokens of a needle
            values = detector.measure(lens, needles[i])
            yield cases, values[[token_of[case] for case in cases]].reshape(len(cases), -1)

    kept = cache or AnswerCache()
    cases = [(_identity(needles[i]), t) for i, t in zip(owners, token_of, strict=True)]
    values = kept.numbers(
        cases, lens.dims.head_names, measure, desc=f"{detector.label} by token", unit="token", progress=progress
    )
    ends = np.cumsum([detector.n_tokens(needle) for needle in needles])[:-1]
    return np.split(values.reshape(-1, lens.dims.n_layers, lens.dims.n_heads), ends)


def _identity(needle: Needle) -> tuple[Any, ...]:
    return needle.request, needle.targets, needle.places, needle.asked, needle.gold, needle.queries


def _copy_paste(lens: Lens, needle: Needle) -> Float[np.ndarray, "step n_layers n_heads"]:
    sequence = _sequence(needle)
    targets, tokens, places = (torch.tensor(x, device=lens.device) for x in (needle.targets, sequence, needle.places))

    def hits(pattern: Tensor) -> Tensor:
        top = pattern.argmax(-1)  # [n_heads, step]
        return torch.isin(top, places) & (tokens[top] == targets)

    return _of_patterns(lens, sequence, needle.asked, hits)


def _query_to_gold(lens: Lens, needle: Needle) -> Float[np.ndarray, "query n_layers n_heads"]:
    gold = torch.tensor(needle.gold, device=lens.device)
    return _of_patterns(lens, _sequence(needle), needle.queries, lambda pattern: pattern[..., gold].sum(-1))


def _of_patterns(
    lens: Lens, sequence: Sequence[int], asked: Sequence[int], score: Callable[[Tensor], Tensor]
) -> Float[np.ndarray, "asked n_layers n_heads"]:
    """A score of every head at every asked position, from its pattern [n_heads, asked, pos]."""
    scores = np.zeros((len(asked), lens.dims.n_layers, lens.dims.n_heads))

    def see(layer: int, pattern: Tensor, _: Tensor) -> None:
        scores[:, layer] = score(pattern).double().cpu().numpy().T

    attention_patterns.read(lens, sequence, asked, see)
    return scores


def _writes(
    lens: Lens, needle: Needle, sources: Sequence[int] | None = None
) -> Float[np.ndarray, "step n_layers n_heads"]:
    """What every head adds to the logit of each token of the answer, from the source positions alone; None: all."""
    arch, dims = lens.arch, lens.dims
    at = slice(None) if sources is None else torch.tensor(sources, device=lens.device)
    added = torch.zeros(len(needle.steps), dims.n_layers, dims.n_heads, dtype=wide_type(lens.dtype))
    unembed, norm = arch.unembed.weight, arch.final_norm.weight  # [d_vocab, d_model], [d_model]
    assert isinstance(unembed, Tensor) and isinstance(norm, Tensor)
    gain = wide(norm)
    directions = wide(unembed[needle.targets]) - unembed.mean(0, dtype=wide_type(unembed.dtype))
    towards = moved(moved(directions, gain.device) * gain, lens.device)  # [step, d_model]

    def see(layer: int, pattern: Tensor, values: Tensor) -> None:
        read = pattern[..., at].unflatten(0, (len(values), -1)) @ wide(values[:, None, at])
        z = read.flatten(0, 1)  # [n_heads, step, d_head]
        weight = quantised.matrix(arch.o_proj[layer])
        columns = wide(moved(weight, z.device)).unflatten(1, (dims.n_heads, dims.d_head))
        along = torch.einsum("sm,mhd->hsd", towards, columns)  # the direction of the logits in each head's own space
        added[:, layer] = (z * along).sum(-1).T.cpu()

    with torch.no_grad():
        final = attention_patterns.read(lens, _sequence(needle), needle.asked, see)
        final = moved(final, gain.device)
        # the norm multiplies by its weight and one number a position: that number, without asking how it is computed
        plain, normed = wide(final) * gain, wide(arch.final_norm(final))
        scale = (plain * normed).sum(-1) / plain.square().sum(-1)
    return (added * scale.cpu()[:, None, None]).double().numpy()


def _sequence(needle: Needle) -> tuple[int, ...]:
    return (*needle.request.context, *needle.request.continuation)[:-1]


def _n_steps(needle: Needle) -> int:
    return len(needle.steps)


DETECTORS = {
    COPY_PASTE: Detector("copy-paste score", "", _n_steps, _copy_paste),
    QUERY_TO_GOLD: Detector("query-to-gold attention", "", lambda needle: len(needle.queries), _query_to_gold),
    WRITE_AWARE: Detector("write-aware score", "logits", _n_steps, _writes),
    WRITE_FROM_NEEDLE: Detector(
        "write from the needle", "logits", _n_steps, lambda lens, needle: _writes(lens, needle, needle.gold)
    ),
}


@one_thread
def induction_scores(
    lens: Lens,
    n_texts: int = 20,
    length: int = 50,
    seed: int = 0,
    *,
    store: Where = DEFAULT,
    progress: bool = True,
) -> HeadScores:
    """Score every head as an induction head: attention to what followed the same token before, in repeated random text.

    Args:
        lens: A loaded model.
        n_texts: Random texts.
        length: Different tokens of each text, which is read twice in a row (after ``<bos>``, where there is one).
        seed: Seed of the texts.
        store: Where the numbers of single texts are found and kept; see `depthlens.layer_sweep`.
        progress: Show a bar.

    Returns:
        Attention mass from 0 to 1, mean over the texts.

    Raises:
        UserError: a number that is not allowed, or a length that the vocabulary or the model does not have.
    """
    arguments.loaded(lens)
    n_texts = arguments.whole("n_texts", n_texts, 1)
    seed = arguments.check(seed=seed)["seed"]
    texts = _texts_read_twice(lens, n_texts, length, seed)
    values, record = measured(
        lens,
        texts,
        lens.dims.head_names,
        lambda i: _induction(lens, texts[i], length),
        label="random tokens",
        method="induction score",
        store=store,
        shape=(lens.dims.n_layers, lens.dims.n_heads),
        progress=progress,
    )
    record |= {"method": "induction", "n_texts": n_texts, "length": length, "seed": seed}
    return HeadScores.of_cases("induction score", "", values, record, tested=False, bounded=True)


def _texts_read_twice(lens: Lens, n_texts: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Token ids: ``<bos>`` if there is one, then ``length`` different tokens twice."""
    special = set(lens.tokenizer.all_special_ids)
    ordinary = [
        i for i in range(min(len(lens.tokenizer), lens.model.config.get_text_config().vocab_size)) if i not in special
    ]
    start = () if lens.tokenizer.bos_token_id is None else (lens.tokenizer.bos_token_id,)
    longest = min(len(ordinary), (lens.max_length - len(start)) // 2)
    length = arguments.whole("length", length, 2, of=" of tokens")
    if length > longest:
        raise UserError(f"length {length}: {lens.name} can read {longest} different tokens twice; give 2 to {longest}")
    drawn = (Random(f"induction {seed} {i}").sample(ordinary, length) for i in range(n_texts))
    return [(*start, *tokens, *tokens) for tokens in drawn]


def _induction(lens: Lens, text: tuple[int, ...], length: int) -> Float[np.ndarray, "n_layers n_heads"]:
    """Induction score of every head on one text."""
    asked = list(range(len(text) - length, len(text)))
    after_first = torch.tensor([i - (length - 1) for i in asked], device=lens.device)

    def at_first(pattern: Tensor) -> Tensor:
        return pattern.gather(-1, after_first.expand(len(pattern), -1)[..., None])[..., 0].double()

    return _of_patterns(lens, text, asked, at_first).mean(0)
