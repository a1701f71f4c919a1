"""lm-eval requests as token ids, encoded, truncated and stopped exactly as lm-eval's ``hf`` model does.

The rules (context and continuation encoded together, BOS, truncation from the left, rolling windows, chat templates)
are not repeated here, because an `HFLM` around our module applies them.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import warning_once

from depthlens.errors import UserError
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import GenerateRequest, LoglikelihoodRequest, Sampling

log = logging.getLogger(__name__)

# options of sampling, and their bounds
_SAMPLING: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "top_k": (0, 1 << 30), "min_p": (0.0, 1.0),
}  # fmt: skip
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")


class Drawing(HFLM):
    """lm-eval's model class, with the seed of tokens that are drawn.

    It ties the weights of the model that it is given and sets a pad token. So it gets a copy of the tokenizer, and of
    the model what it reads: no weights.

    Args:
        lens: A loaded model.
        seed: Of tokens that are drawn.
        options: Of lm-eval's class.
    """

    def __init__(self, lens: Lens, seed: int, **options: Any) -> None:
        model = lens.model
        read: Any = SimpleNamespace(config=model.config, generation_config=model.generation_config, device=lens.device)
        with quiet():
            super().__init__(pretrained=read, tokenizer=copy.deepcopy(lens.tokenizer), batch_size=1 << 20, **options)
        self.seed = seed


class Encoder(Drawing):
    """lm-eval's own model class over our module; it records what it would score instead of scoring it.

    Args:
        lens: A loaded model.
        seed: Of tokens that are drawn.
        think_end_token: Text that ends what a model thinks before it answers.
        enable_thinking: Argument of the chat template; None: the template's own way.

    Attributes:
        cut: Tokens cut from the left of each prompt encoded so far, because the model cannot read it whole.
    """

    def __init__(
        self, lens: Lens, *, seed: int = 0, think_end_token: str | None = None, enable_thinking: bool | None = None
    ) -> None:
        super().__init__(lens, seed, think_end_token=think_end_token, enable_thinking=enable_thinking)
        self.cut: list[int] = []
        self._recorded: list[tuple[Any, list[int], list[int]]] = []

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        self._recorded = requests
        return [(0.0, False)] * len(requests)

    def requests(self, instance: Instance) -> list[LoglikelihoodRequest] | list[GenerateRequest]:
        """The requests that lm-eval makes for one instance: one, or one for each window of rolling log-likelihood.

        Raises:
            UserError: the task sets an option that is not supported or not possible, or an answer is too long for the
                model.
        """
        if instance.request_type != "generate_until":
            return self._loglikelihoods(instance)
        with quiet():
            request = generation(self, instance)
            n_tokens = len(self.tok_batch_encode([instance.args[0]])[0][0])
        self.cut.append(n_tokens - len(request.context))
        n_draws = 1 if request.sampling is None else instance.repeats or 1
        return [with_draw(request, draw) for draw in range(n_draws)]

    def pair(self, name: str, context: str, continuation: str) -> LoglikelihoodRequest:
        """The request for log p(continuation | context) of two texts; ``name`` is for messages."""
        (request,) = self._loglikelihoods(Instance("loglikelihood", {}, (context, continuation), 0, (name, 0, 1)))
        return request

    def _loglikelihoods(self, instance: Instance) -> list[LoglikelihoodRequest]:
        with quiet():
            getattr(self, instance.request_type)([instance], disable_tqdm=True)
        windows = [(context, continuation) for _, context, continuation in self._recorded]
        self.cut += [max(0, len(before) + len(after) - self.max_length - 1) for before, after in windows]
        return [loglikelihood(self, instance.task_name, before, after) for before, after in windows]


def loglikelihood(lm: HFLM, name: str, context: Sequence[int], continuation: Sequence[int]) -> LoglikelihoodRequest:
    """A token pair cut from the left to the model's length, as `HFLM._loglikelihood_tokens` does.

    Raises:
        UserError: the continuation alone is longer than the model reads.
    """
    if len(continuation) > lm.max_length:
        raise UserError(
            f"task {name}: an answer of {len(continuation)} tokens is longer than the {lm.max_length} the model reads"
        )
    tokens = (*context, *continuation)[-(lm.max_length + 1) :]
    split = len(tokens) - len(continuation)
    return LoglikelihoodRequest(tokens[:split], tokens[split:])


def with_draw(request: GenerateRequest, draw: int) -> GenerateRequest:
    """The request for one of several texts after a prompt; the same where no token is drawn."""
    if request.sampling is None:
        return request
    return replace(request, sampling=replace(request.sampling, draw=draw))


def generation(lm: Drawing, instance: Instance) -> GenerateRequest:
    """A prompt, its stop rules and how tokens are drawn, as `HFLM.generate_until` reads them.

    Raises:
        UserError: see `Encoder.requests`.
    """
    context, settings = instance.args
    name = instance.task_name
    check_generation(name, settings)
    kwargs = normalize_gen_kwargs(settings, lm.max_gen_toks)
    eos = lm.tok_decode(lm.eot_token_id, skip_special_tokens=False)
    until = tuple(s for s in handle_stop_sequences(kwargs["until"], eos=eos) if s)
    n_new = kwargs["max_gen_toks"]
    room = lm.max_length - n_new
    if room < 1:
        raise UserError(f"task {name} writes up to {n_new} tokens; the model reads {lm.max_length} in all")
    tokens, _ = lm.tok_batch_encode([context], left_truncate_len=room)
    if own := lm.model.generation_config.max_new_tokens:
        told = f"max_new_tokens={own} of the model's generation configuration takes the place of {n_new}, as in lm-eval"
        warning_once(log, "task %s: %s", name, told)
        n_new = own
    think_end = lm.think_end_token
    if isinstance(think_end, int):  # lm-eval takes the number of a token, too
        think_end = lm.tok_decode([think_end], skip_special_tokens=False)
    return GenerateRequest(tuple(tokens[0].tolist()), until, n_new, sampling_of(lm, kwargs), think_end)


def sampling_of(lm: Drawing, kwargs: Mapping[str, Any]) -> Sampling | None:
    """How tokens are drawn under settings of lm-eval's; what they leave open the model's own settings say, as in `hf`.

    None where the likeliest token is written: without ``do_sample``, and at temperature 0.
    """
    if not kwargs["do_sample"] or not kwargs.get("temperature"):
        return None
    own = lm.model.generation_config
    chosen: dict[str, Any] = {"min_p": 0.0, **own._get_default_generation_params()}
    for settings in (vars(own), kwargs):
        chosen |= {name: value for name, value in settings.items() if value is not None}
    return Sampling(**{name: chosen[name] for name in _SAMPLING}, seed=lm.seed)


def check_generation(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings of a written task that would be ignored or that are not possible.

    Raises:
        UserError: an option that is not supported, a number outside its range, a length that is not a number of tokens,
            or stop strings that are not text.
    """
    for key, value in settings.items():
        if key in _SAMPLING and value is not None:
            low, high = _SAMPLING[key]
            if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
                raise UserError(f"task {name}: {key} {value!r}: give a number from {low:g} to {high:g}")
            if key == "top_k" and not isinstance(value, int):
                raise UserError(f"task {name}: top_k {value!r}: give a whole number of tokens, or 0 for all")
        if key == "do_sample" and not isinstance(value, bool | None):
            raise UserError(f"task {name}: do_sample {value!r}: give true or false")
        if key not in _SAMPLING and key not in (*LENGTHS, "until", "do_sample"):
            known = ", ".join(("until", "max_gen_toks", "do_sample", *_SAMPLING))
            raise UserError(f"task {name}: generation option {key}={value!r} is not supported; allowed: {known}")
        if key in LENGTHS and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise UserError(f"task {name}: {key} {value!r}: give a whole number of tokens, at least 1")
    temperature = settings.get("temperature")
    if settings.get("do_sample") and temperature is None:
        raise UserError(
            f"task {name}: do_sample without a temperature; give one above 0, or 0 for the likeliest tokens"
        )
    if settings.get("do_sample") is False and temperature:
        raise UserError(f"task {name}: do_sample=False and temperature={temperature} contradict; leave one out")
    until = settings.get("until") or []
    if not all(isinstance(stop, str) for stop in (until if isinstance(until, list) else [until])):
        raise UserError(f"task {name}: until {until!r}: give a text or a list of texts")


def check_tokens(lens: Lens, name: str, requests: Sequence[LoglikelihoodRequest | GenerateRequest]) -> None:
    """Refuse tokens that the model has no embedding for.

    Raises:
        UserError: names the token, the task and the number of rows.
    """
    weight = lens.model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    rows = weight.shape[0]
    for request in requests:
        tokens = (*request.context, *getattr(request, "continuation", ()))
        if (token := max(tokens)) >= rows:
            text = lens.tokenizer.decode([token])
            raise UserError(
                f"model {lens.name}: token {token} ({text!r}) of task {name} is beyond the {rows} rows of the "
                "embedding; give the tokenizer that belongs to the model"
            )
