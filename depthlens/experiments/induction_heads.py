r"""Induction heads: heads that attend to what followed the same token before.

**Induction score** (Olsson et al. 2022, In-context Learning and Induction Heads; the definition of TransformerLens). A
text of random tokens x_1 .. x_n is read twice in a row. From the second occurrence of a token an induction head attends
to the token after its first occurrence::

    score(h) = mean over i in the second copy of  a_h(i, i - (n - 1))

Random tokens have no meaning, so that nothing but repetition can guide the head. A head with a high copy-paste score
and a high induction score continues a repeated phrase; one that retrieves by meaning has a low induction score.

Limits: a head may do both, and a head that induces by meaning (synonyms) has a low score here.
"""

from __future__ import annotations

from random import Random

import numpy as np
import torch
from torch import Tensor

from depthlens import arguments
from depthlens.analysis.head_scores import HeadScores
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns
from depthlens.experiments.head_losses import scores_record
from depthlens.experiments.measured import one_by_one
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore, Where, cache_usage
from depthlens.store.parts import DEFAULT


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
    texts = _texts(lens, n_texts, length, seed)
    answers = AnswerStore(store, lens)
    cache = answers.entry("random tokens", method="induction score")
    values = one_by_one(
        cache,
        texts,
        lens.dims.head_names,
        lambda i: _score(lens, texts[i], length),
        desc="induction score",
        unit="text",
        progress=progress,
    )
    record = scores_record(lens, answers, "induction", {"n_texts": n_texts, "length": length, "seed": seed})
    record["store"] = cache_usage([cache])
    cases = values.reshape(n_texts, lens.dims.n_layers, lens.dims.n_heads)
    return HeadScores.of_cases("induction score", "", cases, record, tested=False, bounded=True)


def _texts(lens: Lens, n_texts: int, length: int, seed: int) -> list[tuple[int, ...]]:
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


def _score(lens: Lens, text: tuple[int, ...], length: int) -> np.ndarray:
    """Induction score of every head on one text. Shape [n_layers, n_heads]."""
    scores = np.zeros((lens.dims.n_layers, lens.dims.n_heads))
    asked = list(range(len(text) - length, len(text)))
    after_first = torch.tensor([i - (length - 1) for i in asked], device=lens.device)

    def see(layer: int, _: int, pattern: Tensor) -> None:
        at = after_first.expand(len(pattern), -1)[..., None]  # [n_heads, asked, 1]
        scores[layer] = pattern.gather(-1, at)[..., 0].double().mean(-1).cpu().numpy()

    attention_patterns.read(lens, [text], [asked], see)
    return scores
