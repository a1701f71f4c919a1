"""The engine as an lm-eval model: ``--model depthlens --model_args pretrained=NAME,condition=L12``.

Importing this module registers the model (`depthlens.tasks.registered_model`), after which
``lm_eval.simple_evaluate(model="depthlens", ...)`` works. lm-eval's command line imports only the models it ships, so
``python -m depthlens.lm_eval_model`` stands for ``lm_eval``: it registers ours, knows the embedded tasks and hands
every argument on. A mistake of the caller ends as one line and exit code 2.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

from depthlens import paths
from depthlens.errors import UserError, unknown
from depthlens.models import sources
from depthlens.progress import say


def main() -> None:
    """lm-eval's command line, our model and our tasks included."""
    say("loading lm-eval and its tasks")
    from lm_eval.__main__ import HarnessCLI, setup_logging

    setup_logging()
    parser = HarnessCLI()
    try:
        arguments = parser.parse_args()
        embedded = arguments.command == "run" and _checked(arguments)
        import lm_eval.tasks

        import depthlens.tasks.registered_model  # noqa: F401 - registers the model

        # each of its commands imports the class from there
        lm_eval.tasks.TaskManager = _with_ours(lm_eval.tasks.TaskManager, embedded)
        parser.execute(arguments)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def _checked(arguments: Any) -> bool:
    """Refuse what can be seen before anything is loaded; returns whether all tasks are embedded ones."""
    from lm_eval.config.evaluate_config import EvaluatorConfig

    if arguments.config:
        return False
    if not arguments.tasks:
        raise UserError("no task given; name at least one, e.g. --tasks capitals_continuation")
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # lm-eval says the same again
    try:
        EvaluatorConfig.from_cli(arguments)
    except (ValueError, OSError) as error:
        raise UserError(f"lm-eval: {' '.join(str(error).split())}; '--help' lists what it takes") from error
    finally:
        logging.disable(level)
    if arguments.model == "depthlens":
        sources.probe(sources.find((arguments.model_args or {}).get("pretrained")))
    return not arguments.include_path and set(arguments.tasks) <= paths.embedded_names()


def _with_ours(manager: type, embedded: bool) -> type:
    """lm-eval's finder of tasks, which also finds the embedded ones; or only these, which takes no time."""

    class TaskManager(manager):
        def __init__(self, *args: Any, include_path: Any = None, **kwargs: Any) -> None:
            given = [include_path] if isinstance(include_path, str | Path) else list(include_path or ())
            for path in given:
                if not Path(path).is_dir():
                    raise UserError(f"include_path {str(path)!r} is not a folder; give the folder with your YAML files")
            kwargs |= {"include_defaults": False} if embedded else {}
            super().__init__(*args, include_path=[str(paths.tasks_dir()), *map(str, given)], **kwargs)

        def match_tasks(self, task_list: list[str]) -> list[str]:
            found = super().match_tasks(task_list)
            for name in task_list if not found else ():
                if not Path(name).is_dir():
                    raise unknown("task", name, sorted(self.all_tasks), "your own YAML files need --include_path")
            return found

    return TaskManager


if __name__ == "__main__":
    main()
else:
    from depthlens.tasks.registered_model import DepthlensLM as DepthlensLM
