"""lm-eval itself: its own `hf` model, which notes what it reads, and what it says of tasks."""

from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.models.huggingface import HFLM

from depthlens.tasks import harness


class Noting(HFLM):
    """lm-eval's model, one row at a time, that notes what it feeds the network."""

    def __init__(self, lens: Any, **options: Any) -> None:
        super().__init__(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=1, logits_cache=False, **options)
        self.read, self.written = [], []

    def _model_call(self, inps, *args, **kwargs):
        self.read.append(tuple(inps[0].tolist()))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context, max_length, stop, **kwargs):
        self.written.append((tuple(context[0].tolist()), tuple(stop), max_length - context.shape[1]))
        return super()._model_generate(context, max_length, stop, **kwargs)


def evaluate(model: Any, tasks: list[str], folder: Path | None = None, **options: Any) -> dict[str, Any]:
    """What lm-eval finds of a model, or of the one that it knows by a name, on tasks of ours or of a folder."""
    options = {"fewshot_random_seed": 0, "bootstrap_iters": 0} | options
    return lm_eval.simple_evaluate(model, tasks=tasks, task_manager=harness.task_manager(tasks, folder), **options)
