"""The engine as an lm-eval model: ``--model depthlens --model_args pretrained=NAME,condition=L12``.

A condition with ``@mean`` also needs ``mean_prompts=FILE``, a text file with one prompt a line, over which the mean is
taken. `depthlens.tasks.encoding.DepthlensLM` describes all model arguments.

Importing this module registers the model, after which ``lm_eval.simple_evaluate(model="depthlens", ...)`` works.
lm-eval's command line imports only the models that it ships, so ``python -m depthlens.lm_eval_model`` takes its place:
it registers ours, knows the embedded tasks and passes every argument on. A mistake of the caller ends as one line and
exit code 2.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from depthlens import arguments, paths
from depthlens.errors import UserError, unknown
from depthlens.models import names
from depthlens.progress import say


def main() -> None:
    """lm-eval's command line, our model and our tasks included."""
    say("loading lm-eval and its tasks")
    from lm_eval.__main__ import HarnessCLI, setup_logging

    setup_logging()
    parser = HarnessCLI()
    try:
        options = parser.parse_args()
        embedded = options.command == "run" and _check(options)
        import lm_eval.tasks

        import depthlens.tasks.encoding  # noqa: F401 - registers the model

        # each of lm-eval's commands imports the class from there
        lm_eval.tasks.TaskManager = _with_ours(lm_eval.tasks.TaskManager, embedded)
        parser.execute(options)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _check(options: Any) -> bool:
    """Refuse mistakes that are visible before anything is loaded; returns whether all tasks are embedded ones."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    if options.config:
        return False
    if not options.tasks:
        raise UserError("no task given; name at least one, e.g. --tasks capitals_continuation")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # lm-eval logs the same warnings again when it runs
    try:
        EvaluatorConfig.from_cli(options)
    except (ValueError, OSError) as error:
        raise UserError(f"lm-eval: {' '.join(str(error).split())}; '--help' lists what it takes") from error
    finally:
        logging.disable(level)
    if options.model == "depthlens":
        names.configuration(names.find((options.model_args or {}).get("pretrained")))
    return not options.include_path and set(options.tasks) <= paths.embedded_names()


def _with_ours(manager: type, embedded: bool) -> type:
    """lm-eval's task manager, which also finds the embedded tasks, or finds only these, which takes no time."""

    class TaskManager(manager):
        def __init__(self, *args: Any, include_path: Any = None, **kwargs: Any) -> None:
            folders = [include_path] if isinstance(include_path, str | Path) else list(include_path or ())
            for folder in folders:
                arguments.check(include_path=folder)
            if embedded:
                kwargs["include_defaults"] = False
            super().__init__(*args, include_path=[str(paths.tasks_dir()), *map(str, folders)], **kwargs)

        def match_tasks(self, task_list: list[str]) -> list[str]:
            matches = super().match_tasks(task_list)
            for name in task_list if not matches else ():
                if not Path(name).is_dir():
                    raise unknown("task", name, sorted(self.all_tasks), "your own YAML files need --include_path")
            return matches

    return TaskManager


if __name__ == "__main__":
    main()
else:
    from depthlens.tasks.encoding import DepthlensLM as DepthlensLM
