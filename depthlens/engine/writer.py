"""What rows write: the next token of each, when a text ends, and what of it is the answer.

Which token is drawn depends on one number between 0 and 1, which a hash gives for the seed, the condition, the prompt,
the number of the draw and the place in the text. It is looked up in the cumulative probabilities, in the order of the
vocabulary. Batches, order, and what was computed before therefore do not matter, except where rounding moves the border
between two tokens over the number.
"""

from __future__ import annotations

import copy
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import LogitsProcessorList

from depthlens.ablations import Condition
from depthlens.errors import UserError
from depthlens.models import fingerprint
from depthlens.models.lens import Lens
from depthlens.requests import GenerateRequest, Sampling, WrittenAnswer

Row = tuple[int, int]  # condition, prompt
SPARE = 8  # tokens before those of a stop string: decoding drops or garbles what an end of a text begins with
_BITS = 52  # of the numbers that tokens are drawn by: as many as a product with a float64 near 1 keeps below 1

# settings of a generation configuration that ask for more than the next token of one text, unless they are 1
_MORE = (
    *("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale", "penalty_alpha", "dola_layers"),
    *("constraints", "force_words_ids", "token_healing", "watermarking_config", "use_mtp", "prompt_lookup_num_tokens"),
    *("assistant_early_exit", "max_time", "stop_strings"),
)


def require_plain(lens: Lens) -> None:
    """Refuse a model whose generation configuration asks for texts that are not written token by token.

    Raises:
        UserError: names the settings.
    """
    config = lens.model.generation_config
    asked = {name: getattr(config, name, None) for name in _MORE}
    if found := {name: value for name, value in asked.items() if value and (value is True or value != 1)}:
        settings = ", ".join(f"{name}={value!r}" for name, value in found.items())
        fix = f"set lens.model.generation_config.{next(iter(found))} = None, or take it out of generation_config.json"
        fault = f"its generation configuration asks for {settings}, and texts are written one token after the other"
        raise UserError(f"model {lens.name}: {fault}; {fix}")


def processors(lens: Lens, request: GenerateRequest, device: torch.device) -> LogitsProcessorList:
    """What transformers' ``generate`` does to the logits of a text, from the model's generation configuration.

    Where the request is drawn, the settings of its sampling come over those of the model.
    """
    n, sampling, model = len(request.context), request.sampling, cast(Any, lens.model)
    config = copy.deepcopy(model.generation_config)
    config.max_length = n + request.max_new_tokens
    if config.min_new_tokens is not None:
        config.min_length = n + config.min_new_tokens
    config.do_sample = sampling is not None
    if sampling is not None:
        config.temperature, config.top_k = float(sampling.temperature), sampling.top_k
        config.top_p, config.min_p = sampling.top_p, sampling.min_p or None
    model._prepare_special_tokens(config, device=device)
    prompt = torch.tensor([request.context], device=device)
    return model._get_logits_processor(config, n, prompt, device=device, model_kwargs={})


@dataclass
class Writer:
    """What each row has written, and when it is done: end-of-text token, stop string or length, as in lm-eval.

    Attributes:
        lens: A loaded model.
        requests: Of the rows.
        conditions: Of the rows; they decide which tokens are drawn where a request asks for sampling.
        eos: Tokens that end a text.
        tokens: What each row has written.
        rules: What is done to logits where no token is drawn; it depends on the text so far.
    """

    lens: Lens
    requests: Sequence[GenerateRequest]
    conditions: Sequence[Condition]

    def __post_init__(self) -> None:
        lens, self.tokenizer = self.lens, self.lens.tokenizer
        self.eos = fingerprint.end_tokens(lens.model.generation_config, lens.tokenizer)
        self.tokens: defaultdict[Row, list[int]] = defaultdict(list)
        self.rules = processors(lens, replace(self.requests[0], sampling=None), torch.device("cpu"))
        self._processors: dict[int | Sampling, LogitsProcessorList] = {}

    def write(self, rows: list[Row], logits: Float[Tensor, "row d_vocab"]) -> list[Row]:
        """Append a token to each row, the likeliest or one that is drawn; returns the rows that are not finished.

        Raises:
            UserError: the highest logit of a row is not finite.
        """
        highest, likeliest = logits.max(-1)  # NaN is the highest of all
        if not (finite := highest.isfinite()).all():
            c, _ = rows[int((~finite).nonzero()[0, 0])]
            raise self.lens.not_finite(self.conditions[c])
        tokens = likeliest.tolist()
        # rows whose logits are processed together, by prompt and length, or by how they are drawn alone
        alike: dict[tuple[int | Sampling, int], list[int]] = {}
        for i, row in enumerate(rows):
            sampling = self.requests[row[1]].sampling
            if self.rules:
                alike.setdefault((row[1], len(self.tokens[row])), []).append(i)
            elif sampling is not None:
                alike.setdefault((replace(sampling, draw=0), 0), []).append(i)
        for (key, _), places in alike.items():
            of = [rows[i] for i in places]
            request = self.requests[of[0][1]]
            if key not in self._processors:
                self._processors[key] = processors(self.lens, request, logits.device)
            read = [[*request.context, *self.tokens[row]] if self.rules else [] for row in of]
            ids = cast(torch.LongTensor, torch.tensor(read, dtype=torch.long, device=logits.device))
            scores = self._processors[key](ids, cast(torch.FloatTensor, logits[places].float()))
            found = scores.argmax(-1).tolist()
            if request.sampling is not None:
                at = ((self.requests[d], self.conditions[c], len(self.tokens[c, d])) for c, d in of)
                found = drawn(scores, [number(*about) for about in at])
            for i, token in zip(places, found, strict=True):
                tokens[i] = token
        for row, token in zip(rows, tokens, strict=True):
            self.tokens[row].append(token)
        return [row for row in rows if not self._finished(row)]

    def replay(self, row: Row, tokens: Sequence[int]) -> WrittenAnswer:
        """The text of a row from tokens chosen elsewhere, as many of them as would have been written here."""
        for token in tokens:
            self.tokens[row].append(token)
            if self._finished(row):
                break
        return self.text(row)

    def _finished(self, row: Row) -> bool:
        return self._ended(row) or len(self.tokens[row]) >= self.requests[row[1]].max_new_tokens

    def _ended(self, row: Row) -> bool:
        """Whether a row ended by itself or at a stop string."""
        tokens, request = self.tokens[row], self.requests[row[1]]
        if tokens[-1] in self.eos:
            return True
        # a stop string that is complete now ends with the last token, and no token is shorter than a byte
        last = tokens[-SPARE - max((len(stop.encode()) for stop in request.until), default=0) :]
        end = cast(str, self.tokenizer.decode(last, skip_special_tokens=False))
        if not any(stop in end for stop in request.until):
            return False
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
        for stop in request.until:
            text = text.split(stop)[0]
        return WrittenAnswer(text, self._ended(row))


def drawn(scores: Float[Tensor, "row d_vocab"], numbers: Sequence[float]) -> list[int]:
    """The tokens that numbers from 0 to 1 stand for, one a row.

    Args:
        scores: Logits, as transformers draws from them (`depthlens.engine.writer.processors`).
        numbers: One a row.
    """
    cumulative = scores.cpu().double().softmax(-1).cumsum(-1)
    places = torch.tensor(numbers, dtype=torch.float64)[:, None] * cumulative[:, -1:]
    return torch.searchsorted(cumulative, places, right=True)[:, 0].tolist()


def number(request: GenerateRequest, condition: Condition, place: int) -> float:
    """The number from 0 to 1 for the token at a place in a text."""
    found = _hash(request, condition).copy()
    found.update(f" {place}".encode())
    return (int.from_bytes(found.digest()) >> (64 - _BITS)) / 2**_BITS


@lru_cache(maxsize=4096)
def _hash(request: GenerateRequest, condition: Condition) -> hashlib.blake2b:
    assert request.sampling is not None
    said = f"{request.sampling.seed} {request.sampling.draw} {condition} {request.context}"
    return hashlib.blake2b(said.encode(), digest_size=8)
