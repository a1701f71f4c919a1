"""Parameters of notebooks: which ones a notebook takes, their values in a profile, and whether a value is allowed.

A notebook declares the few that its first page needs. Others, such as a device, reach it through its set-up: papermill
makes every value that is given a name of the notebook, and `setup_notebook` finds it there.

The cell tagged ``parameters`` is read as Python and not line by line as papermill does, because papermill skips a line
whose comment contains an equals sign, and a parameter that is skipped could not be checked. Values are checked by the
rules of their names (`depthlens.arguments`); what another notebook calls by a name of its own is its affair.
"""

from __future__ import annotations

import ast
import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from depthlens import arguments, paths
from depthlens.ablations import Dims, expand
from depthlens.errors import UserError, blaming, concerning, unknown
from depthlens.models import names

if TYPE_CHECKING:  # slow to import
    from nbformat import NotebookNode

MODELS = ("model", "base", "control", "distilled", "organism")  # parameters whose values are names of models
TASKS = ("tasks", "more", "knowledge", "roles")  # and of tasks
PARTS = ("ways", "layers")  # and of parts of the model
DOCUMENTS = ("limit", "num_fewshot", "seed", "include_path")
CHAT = ("apply_chat_template", "enable_thinking")
WRITING = ("gen_kwargs", "think_end_token")
# what a notebook takes undeclared, by the call of its set-up and the attributes of its study
ASKED: dict[str, tuple[str, ...]] = {
    "setup_notebook": (*arguments.LOADING, "seed", "out"),
    "documents": DOCUMENTS,
    "halves": DOCUMENTS,
    "options": (*DOCUMENTS, *CHAT),
    "chat": CHAT,
    "writing": WRITING,
}


def declared(nb: NotebookNode, name: str) -> dict[str, object]:
    """Parameters that a notebook takes, with their defaults; a default that is no literal counts as None.

    They are those of its parameters cell, and with None those that it asks its set-up for: `ASKED`, and what it names
    in ``study.get("NAME", ...)``.
    """
    source = next((cell.source for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])), "")
    try:
        body = ast.parse(source).body
    except SyntaxError as error:
        line = error.lineno
        raise UserError(f"notebook {name}: its parameters cell is not Python (line {line}); repair it") from None
    parameters: dict[str, object] = {}
    for statement in body:
        if isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            default = None
            with contextlib.suppress(ValueError):
                default = ast.literal_eval(statement.value or "None")
            parameters |= {target.id: default for target in targets if isinstance(target, ast.Name)}
    code = "\n".join(cell.source for cell in nb.cells if cell.cell_type == "code")
    asked = [p for place in re.findall(r"\b(?:dl|study)\.(\w+)", code) for p in ASKED.get(place, ())]
    asked += re.findall(r'\bstudy\.get\(\s*"(\w+)"', code)
    return dict.fromkeys(asked) | parameters


def assign(values: Mapping[str, object], defaults: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """For each notebook those of the values whose parameters it declares; see `fit`.

    Args:
        values: Values by parameter.
        defaults: For each notebook its declared parameters.

    Raises:
        UserError: a parameter that no notebook declares.
    """
    declared_somewhere = sorted({parameter for known in defaults.values() for parameter in known})
    for parameter in values:
        if parameter not in declared_somewhere:
            raise unknown("parameter", parameter, declared_somewhere, f"(of {', '.join(defaults)})")
    return {
        name: {p: fit(value, known[p]) for p, value in values.items() if p in known} for name, known in defaults.items()
    }


def fit(value: object, default: object) -> object:
    """The value as the notebook gets it: text is read as Python or YAML, unless the default is text, too."""
    if not isinstance(value, str) or isinstance(default, str) or not value.strip():
        return value
    with contextlib.suppress(ValueError, SyntaxError, TypeError):  # `1e-3` and `None`, which are text in YAML
        return ast.literal_eval(value.strip())
    with contextlib.suppress(yaml.YAMLError):
        return yaml.safe_load(value)
    return value


def check(values: Mapping[str, Any]) -> None:
    """Refuse what no model or device is needed to refuse: values by the rules of their names, and unknown names.

    A value without a rule passes. `depthlens run` asks before a kernel starts, since that takes seconds, and
    `setup_notebook` in the kernel.

    Raises:
        UserError: the first value that is not allowed.
    """
    for name, value in values.items():
        if rule := arguments.RULES.get(name):
            rule(name, value)
    if "distilled" in values and values["distilled"] == values.get("model"):
        raise UserError(f"distilled {values['distilled']!r}: it is the model itself; name one that was trained from it")
    if "ks" in values and values.get("draws") == 0:
        raise UserError("draws 0: lists of heads are compared with random ones; give at least 10")
    if "model" in values:
        names.find(values["model"])
    for model in [] if values.get("remote") else named(values, MODELS):
        names.configuration(names.find(model))
    # lm-eval is imported only where a task is not embedded, because that is slow
    if others := sorted({*named(values, TASKS)} - paths.embedded_names()):
        from depthlens.tasks.harness import task_manager

        task_manager(others, values.get("include_path"))


def check_parts(values: Mapping[str, Any], dims: Dims) -> None:
    """Refuse parts that a model does not have, before anything is computed.

    Raises:
        UserError: the first such value, by the name of its parameter.
    """
    for name in PARTS:
        if (value := values.get(name)) is not None:
            with concerning(f"{name} {value!r}"):
                expand(value if isinstance(value, str) else [f"L{p}" if isinstance(p, int) else p for p in value], dims)


def named(values: Mapping[str, object], parameters: Sequence[str]) -> list[str]:
    """The texts that are values of some parameters, or in lists or lists by role that are."""

    def texts(value: Any) -> list[str]:
        inside = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
        return [value] if isinstance(value, str) else [text for item in inside for text in texts(item)]

    return texts(list(map(values.get, parameters)))


def read_profile(
    path: Path, profile: str | None, defaults: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, dict[str, object]], int | None]:
    """A profile of a file; the values of a notebook replace those under ``_all``.

    Args:
        path: The file.
        profile: Name of the profile; None: the notebooks' defaults.
        defaults: For each notebook its declared parameters.

    Returns:
        For every notebook its values by parameter, and how many layers of each model are loaded, the first ones; None:
        all are.

    Raises:
        UserError: it does not exist, or names a notebook or parameter that does not.
    """
    if profile is None:
        return {name: {} for name in defaults}, None
    kinds = OSError, yaml.YAMLError, TypeError, ValueError, AttributeError
    with blaming(f"{path} does not map profiles to parameters", "repair it", kinds):
        profiles = {name: dict(of) for name, of in yaml.safe_load(path.read_text(encoding="utf-8")).items()}
    if profile not in profiles:
        raise unknown("profile", profile, profiles, f"profiles are in {path}")
    own = profiles[profile]
    shared, n_layers = own.pop("_all", {}), own.pop("_layers", None)
    with concerning(f"profile {profile} of {path}"):
        values = assign(shared, defaults)
        for name, of_notebook in own.items():
            arguments.one_of(*defaults)("notebook", name)
            values[name] |= assign(of_notebook or {}, {name: defaults[name]})[name]
    return values, n_layers


def with_first_layers(values: Mapping[str, object], n_layers: int | None) -> dict[str, object]:
    """Values that name models, of whose layers so many are loaded at most; none where all are."""
    if n_layers is None:
        return {}

    def cut(value: Any) -> Any:
        return list(map(cut, value)) if isinstance(value, list) else names.first_layers(value, n_layers)

    return {name: cut(values[name]) for name in MODELS if values.get(name)}


def as_yaml(value: object) -> str:
    """A value in one line of YAML, as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
