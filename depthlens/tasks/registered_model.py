"""The engine as an lm-eval model; importing this module registers it. See `depthlens.lm_eval_model`."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from depthlens import arguments
from depthlens.ablations import parse_condition
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.errors import UserError, unknown
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens
from depthlens.tasks import encoding


@register_model("depthlens")
class DepthlensLM(encoding.Drawing):
    """A model under one condition.

    Args:
        pretrained: Alias, hub id, directory or ``.gguf`` file, or a loaded `depthlens.models.lens.Lens`.
        condition: What is removed, in text form.
        dtype: See `depthlens.load`.
        device: See `depthlens.load`; None chooses, and so does a CUDA device where there is none.
        backend: What applies the condition.
        batch_tokens: Token budget of one batch; lm-eval's ``batch_size`` is not used.
        mean_prompts: Text file with one prompt a line, over which ``@mean`` takes the mean of what a part adds.
        donor: Model whose weights ``@donor`` puts in place.
        seed: Of tokens that are drawn.
        kwargs: Passed on to lm-eval's `HFLM`: ``add_bos_token``, ``max_length`` and so on.

    Raises:
        UserError: for anything that does not exist.
    """

    def __init__(
        self,
        pretrained: str | Lens | None = None,
        condition: str = "baseline",
        dtype: str = "auto",
        device: str | None = None,
        backend: str = "torch",
        batch_tokens: int | None = None,
        mean_prompts: str | None = None,
        donor: str | Lens | None = None,
        seed: int = 0,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **kwargs: Any,
    ) -> None:
        own, inherited = (set(inspect.signature(cls.__init__).parameters) for cls in (DepthlensLM, HFLM))
        for name in kwargs:
            if name not in inherited:  # lm-eval's class would accept it and do nothing with it
                allowed = sorted((own | inherited) - {"self", "kwargs"})
                raise unknown("model argument", name, allowed, "(in --model_args)")
        arguments.check(backend=backend, batch_tokens=batch_tokens, seed=seed)
        if pretrained is None:
            raise UserError("no model is named; add pretrained=NAME to the model's arguments")
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's command line passes cuda:0 by default; its own hf model ignores it likewise
        if isinstance(pretrained, Lens):
            lens = pretrained
        else:
            lens = loading.load(pretrained, dtype=dtype, device=device or "auto")
        self.condition = parse_condition(condition).validate(lens.dims)
        lens = lens if donor is None else pairs.with_donor(lens, donor)
        pairs.require(lens, [self.condition], backend)
        if self.condition.uses("resample"):
            raise UserError(f"condition {condition}: @resample is for dl.head_sweep; use @mean, or nothing to remove")
        means = None
        if self.condition.uses("mean"):
            if mean_prompts is None:
                raise UserError(f"condition {condition} needs mean_prompts=FILE, a text file with one prompt a line")
            prompts = [lens.tokenizer(line).input_ids for line in _lines(mean_prompts)]
            means = measure_means(lens, prompts, mean_prompts)
        self.engine = Engine(lens, backend=backend, batch_tokens=batch_tokens, means=means)
        super().__init__(lens, seed, **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        pairs_of_tokens = [encoding.loglikelihood(self, "of this run", before, after) for _, before, after in requests]
        self.engine.progress = not disable_tqdm
        answers = self.engine.loglikelihood(pairs_of_tokens, [self.condition])[0]
        for (text, _, _), answer in zip(requests, answers, strict=True):
            if text is not None:
                self.cache_hook.add_partial("loglikelihood", text, (answer.logprob, answer.is_greedy))
        return [(a.logprob, a.is_greedy) for a in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the order of the requests; one that is asked for several times is drawn as often."""
        self.engine.progress = not disable_tqdm
        asked = [encoding.generation(self, request) for request in requests]
        times: Counter[int] = Counter()
        for i, (request, found) in enumerate(zip(requests, asked, strict=True)):
            asked[i] = encoding.with_draw(found, times[id(request)])
            times[id(request)] += 1
        texts = self.engine.generate_until(asked, [self.condition])[0]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes of the model into its results."""
        donor = self.engine.lens.donor
        about = {"donor": donor.lens.describe()} if donor else {}
        return {**self.engine.lens.describe(), "condition": str(self.condition), **about}


def _lines(path: str) -> list[str]:
    """Prompts of a text file, one a line."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file if line.strip()]
    except (OSError, UnicodeDecodeError) as e:
        fault = f"mean_prompts {path!r} cannot be read: {getattr(e, 'strerror', None) or 'it is not UTF-8 text'}"
        raise UserError(f"{fault}; give a text file with one prompt a line") from e
    if not lines:
        raise UserError(f"mean_prompts {path!r} has no prompts; give a text file with one prompt a line")
    return lines
