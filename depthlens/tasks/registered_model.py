"""The engine as an lm-eval model; importing this module registers it. See `depthlens.lm_eval_model`."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Iterator
from itertools import count
from pathlib import Path
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
        pretrained: str | Lens,
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
        if wrong := next((name for name in kwargs if name not in inherited), None):  # which HFLM would ignore
            raise unknown("model argument", wrong, sorted((own | inherited) - {"self", "kwargs"}), "(in --model_args)")
        arguments.check(backend=backend, batch_tokens=batch_tokens, seed=seed)
        if device is not None and device.startswith("cuda") and not torch.cuda.is_available():
            device = None  # lm-eval's command line passes cuda:0 by default; its own hf model ignores it likewise
        where = device or "auto"
        lens = pretrained if isinstance(pretrained, Lens) else loading.load(pretrained, dtype=dtype, device=where)
        self.condition = parse_condition(condition).validate(lens.dims)
        lens = lens if donor is None else pairs.with_donor(lens, donor)
        pairs.require(lens, [self.condition], backend)
        means = None
        if self.condition.uses("mean", "resample"):
            if mean_prompts is None or self.condition.uses("resample"):
                raise UserError(f"condition {condition}: only @mean can be given, with mean_prompts=FILE")
            texts = filter(str.strip, Path(mean_prompts).read_text(encoding="utf-8").splitlines())
            means = measure_means(lens, [lens.tokenizer(text).input_ids for text in texts], mean_prompts)
        self.engine = Engine(lens, backend=backend, batch_tokens=batch_tokens, means=means)
        super().__init__(lens, seed, **kwargs)

    def _loglikelihood_tokens(
        self, requests: list[Any], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        asked = [encoding.loglikelihood(self, "of this run", before, after) for _, before, after in requests]
        self.engine.progress = not disable_tqdm
        (answers,) = self.engine.loglikelihood(asked, [self.condition])
        return [(answer.logprob, answer.is_greedy) for answer in answers]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts, in the order of the requests; one that is asked for several times is drawn as often."""
        self.engine.progress = not disable_tqdm
        times: dict[int, Iterator[int]] = defaultdict(count)
        asked = [encoding.with_draw(encoding.generation(self, r), next(times[id(r)])) for r in requests]
        (texts,) = self.engine.generate_until(asked, [self.condition])
        return list(texts)

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes of the model into its results."""
        donor = self.engine.lens.donor
        about = {"donor": donor.lens.describe()} if donor else {}
        return self.engine.lens.describe() | {"condition": str(self.condition)} | about
