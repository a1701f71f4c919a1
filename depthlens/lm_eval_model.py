"""The engine as an lm-eval model: ``--model depthlens --model_args pretrained=NAME,condition=L12``.

`depthlens.tasks.encoding.DepthlensLM` describes all model arguments. Conditions with ``@mean`` and ``@resample`` need
texts of other documents, which sweeps have.

Importing this module registers the model, after which ``lm_eval.simple_evaluate(model="depthlens", ...)`` works.
lm-eval's command line imports only the models that it ships, so ``python -m depthlens.lm_eval_model`` takes its place:
it registers ours, knows the embedded tasks and passes every argument on. A wrong name of a model ends as one line and
exit code 2.
"""

from __future__ import annotations

import sys
from typing import Any

from depthlens import paths
from depthlens.errors import UserError
from depthlens.progress import say


def main() -> None:
    """lm-eval's command line, our model and our tasks included."""
    say("loading lm-eval and its tasks")
    import lm_eval.tasks
    from lm_eval.__main__ import cli_evaluate

    import depthlens.tasks.encoding  # noqa: F401 - registers the model

    class TaskManager(lm_eval.tasks.TaskManager):
        def __init__(self, *args: Any, include_path: Any = None, **kwargs: Any) -> None:
            theirs = include_path if isinstance(include_path, list) else filter(None, [include_path])
            super().__init__(*args, include_path=[str(paths.tasks_dir()), *map(str, theirs)], **kwargs)

    lm_eval.tasks.TaskManager = TaskManager  # each of its commands imports it from there
    try:
        cli_evaluate()
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
else:
    from depthlens.tasks.encoding import DepthlensLM as DepthlensLM
