"""Free continuation of plain text: what a model writes by itself, and how well the whole model would have expected it.

No answer is right or wrong here. Two numbers say whether the text holds together:

* ``repetition`` = 1 - distinct 4-grams of tokens / 4-grams (seq-rep-4 of Welleck et al. 2020, arXiv 1908.04319): 0
  where nothing recurs, towards 1 where the model turns in a loop. A text of fewer than four tokens repeats nothing.
* ``nats_per_token`` = -log p(text | prompt) of the **whole** model, over the number of tokens: the logarithm of the
  perplexity of what was written. Where nothing was written it is that of the end-of-text token.

Limits: a loop is easy to expect, so that ``nats_per_token`` can fall while ``repetition`` rises: read the two together.
Greedy decoding repeats more than sampling does, also with nothing removed. What the whole model expects is no judgement
of truth or style, and texts that the whole model wrote itself have the advantage that it chose every token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from depthlens.ablations import parse_condition
from depthlens.metrics import MIN_NATS
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, LoglikelihoodRequest
from depthlens.tasks.prepared_task import Score, counted

NAME, REPETITION, SURPRISAL = "free_text", "repetition", "nats_per_token"
N_GRAM = 4
MIN_REPETITION = 0.05  # a smaller change is not called an effect, however sure
_INFO = {"higher_is_better": False, "chance": None, "floor": None}


def repetition(tokens: Sequence[int], n: int = N_GRAM) -> float:
    """1 - distinct n-grams / n-grams of tokens; 0 for fewer than n tokens."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


@dataclass
class FreeText:
    """Prompts to continue, which run and score like `depthlens.tasks.prepared_task.Prepared`.

    Attributes:
        lens: The model, whose tokenizer counts the tokens.
        prompts: Token ids that every text begins with.
        max_new_tokens: Longest continuation.
    """

    lens: Lens
    prompts: Sequence[tuple[int, ...]]
    max_new_tokens: int
    name: str = NAME
    written: bool = True
    skipped: dict[str, str] = field(default_factory=dict)
    member: None = None

    @property
    def requests(self) -> list[GenerateRequest]:
        """One for each prompt; only the end-of-text token stops a text."""
        return [GenerateRequest(prompt, (), self.max_new_tokens) for prompt in self.prompts]

    @property
    def asked(self) -> pd.DataFrame:
        """The prompts; see `depthlens.analysis.questions`."""
        from lm_eval.utils import hash_string  # slow to import

        texts = [self.lens.tokenizer.decode(list(prompt)) for prompt in self.prompts]
        table = {"task": self.name, "doc_id": range(len(texts)), "question": texts, "reference": "", "choices": None}
        return pd.DataFrame(table).assign(doc_hash=[hash_string(text) for text in texts])

    def run(self, engine: Any, conditions: Sequence[Any]) -> list[list[tuple[str, tuple[int, ...], float]]]:
        """Text, its tokens and its nats per token under the whole model, indexed [condition][prompt]."""
        written = engine.generate_until(self.requests, conditions, desc=self.name)
        tokens = [[tuple(self.lens.tokenizer(t, add_special_tokens=False).input_ids) for t in row] for row in written]
        end = (int(self.lens.tokenizer.eos_token_id),)
        pairs = [(prompt, ids or end) for row in tokens for prompt, ids in zip(self.prompts, row, strict=True)]
        asked = [LoglikelihoodRequest(*pair) for pair in pairs]
        (answers,) = engine.loglikelihood(asked, [parse_condition("baseline")], desc=f"{self.name} {SURPRISAL}")
        nats = iter([-a.logprob / len(q.continuation) for q, a in zip(asked, answers, strict=True)])
        return [list(zip(texts, ids, nats, strict=False)) for texts, ids in zip(written, tokens, strict=True)]

    def score(self, answers: Sequence[tuple[str, tuple[int, ...], float]]) -> Iterator[Score]:
        """Both numbers of every text; an empty one was not parsed."""
        for doc_id, (text, tokens, nats) in enumerate(answers):
            parsed = bool(text.strip())
            yield Score(REPETITION, doc_id, repetition(tokens), text, parsed)
            yield Score(SURPRISAL, doc_id, nats, text, parsed)

    def describe(self, docs: pd.DataFrame) -> dict[str, Any]:
        """The entry of a record; see `depthlens.tasks.prepared_task.Prepared.describe`."""
        effects = {REPETITION: MIN_REPETITION, SURPRISAL: MIN_NATS}
        return {
            "version": 1,
            "num_fewshot": 0,
            "n_docs": len(self.prompts),
            "max_new_tokens": self.max_new_tokens,
            "output_type": "generate_until",
            **counted([]),
            "metrics": {metric: _INFO | {"min_effect": least} for metric, least in effects.items()},
            "skipped_metrics": {},
        }
