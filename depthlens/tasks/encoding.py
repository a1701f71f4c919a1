"""lm-eval's ``hf`` model class around our module: it encodes requests (`Encoder`), or runs them (`DepthlensLM`).

The rules by which requests are encoded, truncated and stopped (context and continuation encoded together, BOS,
truncation from the left, rolling windows, chat templates) are not repeated here, because an `HFLM` applies them.
Importing this module registers `DepthlensLM` as a model of lm-eval's; see `depthlens.lm_eval_model`.
"""

from __future__ import annotations

import copy
import inspect
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from lm_eval.utils import warning_once

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.engine.engine import Engine
from depthlens.errors import UserError, unknown
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens
from depthlens.progress import quiet
from depthlens.requests import GenerateRequest, LoglikelihoodRequest, Sampling

log = logging.getLogger(__name__)

LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
_SHARE, _LENGTH = arguments.numeric(float, 0, 1), arguments.numeric(int, 1, of=" of tokens")
_SAMPLING = {"temperature": arguments.numeric(float, 0, 100), "top_p": _SHARE}
_SAMPLING |= {"top_k": arguments.numeric(int, 0, 1 << 30), "min_p": _SHARE}
_STOPS = arguments.Rule(
    lambda value: isinstance(value, str) or (isinstance(value, list) and all(isinstance(one, str) for one in value)),
    "a text or a list of texts",
)
_RULES = {"until": _STOPS, "do_sample": arguments.FLAG, **dict.fromkeys(LENGTHS, _LENGTH), **_SAMPLING}


class Encoder(HFLM):
    """lm-eval's own model class over our module; it records what it would score instead of scoring it.

    It ties the weights of the model that it is given and sets a pad token. So it gets a copy of the tokenizer, and of
    the model what it reads: no weights.

    Args:
        lens: A loaded model.
        seed: Of tokens that are drawn.
        options: Of lm-eval's class, such as ``think_end_token`` and ``enable_thinking``.

    Attributes:
        lens: The model.
        cut: Tokens cut from the left of each prompt encoded so far, because the model cannot read it whole.
        merged: Prompts encoded so far of which lm-eval makes other tokens than those of prompt and answer as one text,
            because it cuts inside a token that goes across the end of the prompt.
    """

    def __init__(self, lens: Lens, seed: int = 0, **options: Any) -> None:
        model = lens.model
        read: Any = SimpleNamespace(config=model.config, generation_config=model.generation_config, device=lens.device)
        with quiet():
            super().__init__(pretrained=read, tokenizer=copy.deepcopy(lens.tokenizer), batch_size=1 << 20, **options)
        self.__dict__["tok_encode"] = lru_cache(maxsize=4)(super().tok_encode)  # options of a question share its prompt
        self.lens, self.seed = lens, seed
        self.cut: list[int] = []
        self.merged: set[str] = set()
        self._recorded: Sequence[tuple[Any, list[int], list[int]]] = ()

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        self._recorded = requests
        return [(0.0, False)] * len(requests)

    @quiet()
    def encode(self, instances: Sequence[Instance], right: Mapping[int, str] | None = None) -> list[list[Any]]:
        """The requests that lm-eval makes for each instance: one, one for each window, or one for each text.

        ``cut`` are then the tokens that each prompt of these lost, and ``merged`` is of these alone.

        Args:
            instances: Of a task.
            right: Reference answers by document, of which a plan takes the length of a text.

        Raises:
            UserError: the task sets an option that is not supported or not possible, or an answer is too long for the
                model.
        """
        self.cut, self.merged = [], set()
        return [self._requests(instance, (right or {}).get(instance.doc_id)) for instance in instances]

    def _requests(self, instance: Instance, right: str | None) -> list[Any]:
        if instance.request_type != "generate_until":
            getattr(self, instance.request_type)([instance], disable_tqdm=True)
            for text, before, after in self._recorded:
                if text and text[0] and self.tok_encode("".join(text)) != [*before, *after]:
                    self.merged.add(text[0])
            self.cut += [max(0, len(a) + len(b) - self.max_length - 1) for _, a, b in self._recorded]
            return [loglikelihood(self, instance.task_name, before, after) for _, before, after in self._recorded]
        request = replace(generation(self, instance), right=right)
        n_tokens = len(self.tok_batch_encode([instance.args[0]])[0][0])
        self.cut.append(n_tokens - len(request.context))
        if request.sampling is None:
            return [request]
        return [replace(request, sampling=replace(request.sampling, draw=i)) for i in range(instance.repeats or 1)]

    def pairs(self, name: str, texts: Iterable[tuple[str, str]]) -> list[LoglikelihoodRequest]:
        """Requests for log p(continuation | context) of texts; ``name`` is for messages."""
        found = self.encode([Instance("loglikelihood", {}, pair, 0, (name, 0, 1)) for pair in texts])
        return [request for (request,) in found]


def loglikelihood(lm: HFLM, name: str, context: Sequence[int], continuation: Sequence[int]) -> LoglikelihoodRequest:
    """A token pair cut from the left to the model's length, as `HFLM._loglikelihood_tokens` does.

    Raises:
        UserError: the continuation alone is longer than the model reads.
    """
    if len(continuation) > lm.max_length:
        fault = f"an answer of {len(continuation)} tokens is longer than the {lm.max_length} the model reads"
        raise UserError(f"task {name}: {fault}")
    tokens = (*context, *continuation)[-(lm.max_length + 1) :]
    split = len(tokens) - len(continuation)
    return LoglikelihoodRequest(tokens[:split], tokens[split:])


def generation(lm: Encoder, instance: Instance, draw: int = 0) -> GenerateRequest:
    """A prompt, its stop rules and how tokens are drawn, as `HFLM.generate_until` reads them.

    Args:
        lm: Encodes the prompt.
        instance: Of a written task.
        draw: Which of several texts, where tokens are drawn.

    Raises:
        UserError: see `Encoder.encode`.
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
    return GenerateRequest(tuple(tokens[0].tolist()), until, n_new, sampling_of(lm, kwargs, draw), think_end)


def sampling_of(lm: Encoder, kwargs: Mapping[str, Any], draw: int) -> Sampling | None:
    """How tokens are drawn under settings of lm-eval's; what they leave open the model's own settings say, as in `hf`.

    None where the likeliest token is written: without ``do_sample``, and at temperature 0.
    """
    if not kwargs["do_sample"] or not kwargs.get("temperature"):
        return None
    own = lm.model.generation_config
    chosen: dict[str, Any] = {"min_p": 0.0, **own._get_default_generation_params()}
    for settings in (vars(own), kwargs):
        chosen |= {name: value for name, value in settings.items() if value is not None}
    return Sampling(**{name: chosen[name] for name in _SAMPLING}, seed=lm.seed, draw=draw)


def check_generation(name: str, settings: dict[str, Any]) -> None:
    """Refuse settings of a written task that would be ignored or that are not possible.

    Raises:
        UserError: an option that is not supported, a number outside its range, or sampling that is asked for and not.
    """
    for key, value in settings.items():
        if key not in _RULES:
            raise UserError(f"task {name}: {unknown('generation option', key, _RULES)}")
        if value is not None or key in LENGTHS:
            _RULES[key](f"task {name}: {key}", value)
    drawn, temperature = settings.get("do_sample"), settings.get("temperature")
    if (drawn and temperature is None) or (drawn is False and temperature):
        raise UserError(f"task {name}: do_sample={drawn} and temperature={temperature} contradict; leave one out")


@register_model("depthlens")
class DepthlensLM(Encoder):
    """A model under one condition.

    Args:
        pretrained: Alias, hub id, directory or ``.gguf`` file, or a loaded `depthlens.models.lens.Lens`.
        condition: What is removed, in text form.
        dtype: See `depthlens.load`.
        device: See `depthlens.load`; None chooses, and so does a CUDA device where there is none.
        backend: What applies the condition.
        batch_tokens: Token budget of one batch; lm-eval's ``batch_size`` is not used.
        donor: Model whose weights ``@donor`` puts in place.
        seed: Of tokens that are drawn.
        kwargs: Passed on to lm-eval's `HFLM`: ``add_bos_token``, ``max_length`` and so on.

    Raises:
        UserError: for anything that does not exist.
    """

    def __init__(
        self,
        pretrained: str | Lens,
        condition: str = "baseline",
        dtype: str = "auto",
        device: str | None = None,
        backend: str = "torch",
        batch_tokens: int | None = None,
        donor: str | Lens | None = None,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **kwargs: Any,
    ) -> None:
        own, inherited = (set(inspect.signature(cls.__init__).parameters) for cls in (DepthlensLM, HFLM))
        if wrong := next((name for name in kwargs if name not in inherited), None):  # which HFLM would ignore
            raise unknown("model argument", wrong, sorted((own | inherited) - {"self", "kwargs"}), "(in --model_args)")
        arguments.check(backend=backend, batch_tokens=batch_tokens, seed=seed)
        if device is None or (device.startswith("cuda") and not torch.cuda.is_available()):
            device = "auto"  # lm-eval's command line passes cuda:0 by default; its own hf model ignores it likewise
        lens = pretrained if isinstance(pretrained, Lens) else loading.load(pretrained, dtype=dtype, device=device)
        self.condition = parse_condition(condition).validate(lens.dims)
        lens = pairs.join_donor(lens, donor, [self.condition], backend)
        if self.condition.uses("reference"):
            raise UserError(f"condition {condition}: lm-eval has no other texts to take it from; use depthlens sweep")
        self.engine = Engine(lens, backend=backend, batch_tokens=batch_tokens)
        super().__init__(lens, seed, **kwargs)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = False, override_bs: int | None = None) -> Any:
        asked = [loglikelihood(self, "of this run", before, after) for _, before, after in requests]
        self.engine.progress = not disable_tqdm
        (answers,) = self.engine.loglikelihood(asked, [self.condition])
        return [(answer.logprob, answer.is_greedy) for answer in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the order of the requests; one that is asked for several times is drawn as often."""
        self.engine.progress = not disable_tqdm
        times: dict[int, Iterator[int]] = defaultdict(count)
        asked = [generation(self, r, next(times[id(r)])) for r in requests]
        (texts,) = self.engine.generate_until(asked, [self.condition])
        return list(texts)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes of the model into its results."""
        donor = self.engine.lens.donor
        about = {"donor": donor.describe()} if donor else {}
        return self.engine.lens.describe() | {"condition": str(self.condition)} | about
