"""Parameters of notebooks: which ones a notebook declares, their values in a profile, and whether a value is allowed.

The cell tagged ``parameters`` is read as Python and not line by line as papermill does, because papermill skips a line
whose comment contains an equals sign, and a parameter that is skipped could not be checked. A value must have the type
of the default. Numbers may also be null, which the notebooks use for "no limit".
"""

from __future__ import annotations

import ast
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from depthlens import arguments, paths
from depthlens.ablations import ROUNDED, Dims, expand
from depthlens.errors import UserError, unknown
from depthlens.models import names
from depthlens.models.names import NAMED

if TYPE_CHECKING:  # slow to import
    from nbformat import NotebookNode

MODELS = ("model", "base", "control", "distilled", "organism")  # parameters whose values are names of models
ROLES = (
    "letters", "generation", "continuation", "retrieval", "text", "long_text", "reasoning", "reasoning_continuation",
    "reasoning_choice", "copying",
)  # fmt: skip
TASKS = ("tasks", "more", "knowledge", *ROLES, "written_retrieval")  # and of tasks
PARTS = ("ways", "views", "layers")  # and of parts of the model
_UNREADABLE = object()
ANY = object()  # the default is not a literal, so that nothing is known about its type


def declared(nb: NotebookNode, name: str) -> dict[str, object]:
    """Parameters of a notebook with their defaults."""
    cells = [cell for cell in nb.cells if "parameters" in cell.metadata.get("tags", [])]
    if not cells:
        return {}
    try:
        body = ast.parse(cells[0].source).body
    except SyntaxError as error:
        line = error.lineno
        raise UserError(f"notebook {name}: its parameters cell is not Python (line {line}); repair it") from None
    parameters: dict[str, object] = {}
    for statement in body:
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        for target in targets:
            if isinstance(target, ast.Name):
                parameters[target.id] = _literal(getattr(statement, "value", None))
    return parameters


def assign(values: Mapping[str, object], defaults: Mapping[str, Mapping[str, object]]) -> dict[str, dict[str, object]]:
    """For each notebook those of the values whose parameters it declares, checked against its defaults.

    Args:
        values: Values by parameter; text is read as YAML unless the default is text.
        defaults: For each notebook its declared parameters.

    Raises:
        UserError: a parameter that no notebook declares, or a value of another type than the default.
    """
    declared_somewhere = sorted({parameter for known in defaults.values() for parameter in known})
    for parameter in values:
        if parameter not in declared_somewhere:
            verb = "declares" if len(defaults) == 1 else "declare"
            listed = f"{', '.join(defaults)} {verb}: {', '.join(declared_somewhere) or 'none'}"
            raise UserError(f"no selected notebook has a parameter {parameter!r}; {listed}")
    return {
        name: {p: fit(value, known[p], p, name) for p, value in values.items() if p in known}
        for name, known in defaults.items()
    }


def fit(value: object, default: object, parameter: str, notebook: str) -> object:
    """The value as the notebook gets it.

    Raises:
        UserError: it cannot be read, or has another type than the default.
    """
    parsed = _parse(value, default) if isinstance(value, str) and not isinstance(default, str) else value
    if parsed is not _UNREADABLE and _same_type(parsed, default):
        return float(parsed) if isinstance(default, float) and isinstance(parsed, int) else parsed
    example = "" if default in ("", [], None) or default is ANY else f", like its default {as_yaml(default)}"
    raise UserError(f"parameter {parameter} = {value!r} of notebook {notebook} must be {_kind(default)}{example}")


def check_values(values: Mapping[str, object], notebook: str) -> None:
    """Refuse values that `depthlens.setup_notebook` would refuse, as far as no model or device is needed to know.

    A notebook checks its parameters in its first cells, but a kernel takes seconds to get there.

    Args:
        values: Every parameter with its value.
        notebook: For the error.

    Raises:
        UserError: the first value that is not allowed.
    """
    try:
        check(**{name: value for name, value in values.items() if value is not ANY})
        for model in named(values, MODELS):
            names.configuration(names.find(model))
        _check_tasks(named(values, TASKS), values.get("include_path"))
    except UserError as error:
        raise UserError(f"notebook {notebook}: {error}") from None


def check_twin(values: Mapping[str, object], given: Mapping[str, object], notebook: str) -> None:
    """Refuse a model of one's own in a notebook that compares it with a twin, where the twin is that of another model.

    Raises:
        UserError: the twin is not named.
    """
    if "distilled" in values and "model" in given and "distilled" not in given:
        kinds = {row.alias: (row.family, row.size) for row in NAMED}
        model, distilled = str(values["model"]), str(values["distilled"])
        if kinds.get(model) != kinds.get(distilled):
            fault = f"notebook {notebook}: distilled {distilled!r} is no twin of model {model!r}"
            raise UserError(f"{fault}; name one that was trained from it: -p distilled NAME")


def with_first_layers(values: Mapping[str, object], n_layers: int | None) -> dict[str, object]:
    """Values that name models, of whose layers so many are loaded at most; None: of all, and there is none."""
    cut: dict[str, object] = {}
    if n_layers is None:
        return cut
    for name in MODELS:
        if isinstance(value := values.get(name), str):
            cut[name] = names.first_layers(value, n_layers)
        elif isinstance(value, list):
            cut[name] = [names.first_layers(model, n_layers) for model in value]
    return cut


def check(**values: object) -> None:
    """Check values against the rules of their names; one without a rule passes.

    Raises:
        UserError: the first value that is not allowed.
    """
    for name, value in values.items():
        if rule := RULES.get(name, RULES["limit"] if name.endswith("_limit") else None):
            rule(name, value)
    if "distilled" in values and values["distilled"] == values.get("model"):
        raise UserError(f"distilled {values['distilled']!r}: it is the model itself; name one that was trained from it")
    if "ks" in values and values.get("draws") == 0:
        raise UserError("draws 0: lists of heads are compared with random ones; give at least 10")


def check_parts(values: Mapping[str, Any], dims: Dims) -> None:
    """Refuse parts that a model does not have, before anything is computed.

    Raises:
        UserError: the first such value, by the name of its parameter.
    """
    for name in PARTS:
        if (value := values.get(name)) is not None:
            try:
                expand(value if isinstance(value, str) else [f"L{p}" if isinstance(p, int) else p for p in value], dims)
            except UserError as error:
                raise UserError(f"{name} {value!r}: {error}") from None


def named(values: Mapping[str, object], parameters: Sequence[str]) -> list[str]:
    """The texts that are values of some parameters, or in lists that are."""
    lists = [value if isinstance(value, list | tuple) else [value] for value in map(values.get, parameters)]
    return [item for items in lists for item in items if isinstance(item, str)]


def _check_tasks(names: list[str], include_path: object) -> None:
    """Refuse tasks that do not exist; lm-eval is imported only where one is not embedded, because that is slow."""
    embedded = paths.embedded_names()
    if others := [name for name in names if name not in embedded]:
        from depthlens.tasks.harness import task_manager

        task_manager(others, str(include_path) if include_path else None)


def _whole(low: int, *, optional: bool = False) -> Callable[[str, Any], object]:
    """The rule of a whole number from ``low`` on."""
    return lambda name, value: None if optional and value is None else arguments.whole(name, value, low)


def _each(rule: Callable[[str, Any], object], low: int = 1, high: int | None = None) -> Callable[[str, Any], None]:
    """The rule of a list of ``low`` to ``high`` values that each keep a rule."""

    def check_list(name: str, value: Any) -> None:
        if not isinstance(value, Sequence) or isinstance(value, str) or not low <= len(value) <= (high or sys.maxsize):
            most = f" and at most {high}" if high else ""
            raise UserError(f"{name} {value!r}: give a list of at least {low}{most}")
        for item in value:
            rule(name, item)

    return check_list


def _model(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        names.find(value)  # says what a name can be


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} {value!r}: give a text that is not empty")


def _layers(name: str, value: Any) -> None:
    if value is not None and not isinstance(value, str):
        _each(_whole(0))(name, value)


def _views(name: str, value: Any) -> None:
    _each(_text)(name, value)
    if "layers" not in value:
        raise UserError(f"{name} {value!r}: name layers among them, the view that all others are held against")


# one rule for each name of a parameter; those that the experiments have, too, are theirs
RULES: dict[str, Callable[[str, Any], object]] = {
    **{name: rule for name, rule in arguments.RULES.items() if name not in ("store", "donor")},  # no notebook has them
    **dict.fromkeys(("attention_layers", "every", "max_size", "n_needles", "prompts"), _whole(1)),
    **dict.fromkeys(("removed", "rounded", "top"), _whole(1)),
    **dict.fromkeys(("context_lengths", "ks"), _each(_whole(1))),
    **dict.fromkeys(("head_limit", "texts"), _whole(2, optional=True)),
    "model": _model,
    **dict.fromkeys(("organism", "distilled", "position", "prompt", "written_retrieval"), _text),
    **dict.fromkeys(("more", "knowledge"), _each(_text, 0)),
    **dict.fromkeys(("ways", *ROLES), _each(_text)),
    **dict.fromkeys(("base", "control"), _each(_text, 0, 1)),
    "check": _whole(3),
    "depths": _each(lambda name, value: arguments.number(name, value, 0, 1)),
    "draws": lambda name, value: None if value == 0 else arguments.whole(name, value, 10),
    "layers": _layers,
    "max_tokens": _whole(2),
    "metrics": lambda name, value: None if value is None else _each(_text)(name, value),
    "race": arguments.RULES["progress"],
    "rounding": lambda name, value: arguments.chosen(name, value, ROUNDED),
    "seeds": _each(arguments.RULES["seed"]),
    "skip_first": _whole(0),
    "tolerance": lambda name, value: arguments.number(name, value, 0),
    "views": _views,
}


class Profiles:
    """``profiles.yml``: named sets of parameter values for the whole suite.

    A profile with ``_extends`` has the values of another one where it gives none of its own, ``_all`` and each notebook
    taken by themselves.
    """

    def __init__(self, path: Path, defaults: Mapping[str, Mapping[str, object]]) -> None:
        self._path, self._defaults = path, defaults
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else {}
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
        self._profiles: dict[str, dict] = content or {}
        if not isinstance(self._profiles, dict) or not all(isinstance(p, dict) for p in self._profiles.values()):
            raise UserError(f"{path} must map profile names to notebooks and their parameters")

    def order(self, profile: str | None) -> list[str] | None:
        """The notebooks that ``all`` means under a profile; None where it means every one."""
        order = self._profile(profile).get("_order")
        for name in order or []:
            if name not in self._defaults:
                raise unknown("notebook", name, self._defaults, f"(in _order of profile {profile} of {self._path})")
        return list(order) if order else None

    def n_layers(self, profile: str | None) -> int | None:
        """How many layers of each model are loaded at most, the first ones; None: all."""
        n = self._profile(profile).get("_layers")
        return None if n is None else arguments.whole(f"_layers of profile {profile} of {self._path}", n, 1)

    def values(self, profile: str | None) -> dict[str, dict[str, object]]:
        """For every notebook the profile's parameter values; its own replace those under ``_all``."""
        content = self._profile(profile)
        where = f"profile {profile} of {self._path}"
        values: dict[str, dict[str, object]] = {}
        for name in content:
            if name not in self._defaults and name not in ("_all", "_layers", "_order"):
                raise unknown("notebook", name, self._defaults, f"(in {where})")
        try:
            shared = assign(content.get("_all") or {}, self._defaults)
            for name, known in self._defaults.items():
                values[name] = shared[name] | assign(content.get(name) or {}, {name: known})[name]
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        return values

    def _profile(self, profile: str | None) -> dict:
        if profile is None:
            return {}
        if profile not in self._profiles:
            raise unknown("profile", profile, self._profiles, f"profiles are in {self._path}")
        own = dict(self._profiles[profile])
        if (base := own.pop("_extends", None)) is None:
            return own
        if str(base) not in self._profiles or "_extends" in self._profiles[base]:
            plain = [name for name, content in self._profiles.items() if "_extends" not in content]
            raise unknown("profile", base, plain, f"(in _extends of profile {profile} of {self._path})")
        extended = self._profiles[base]
        merged = {name: (extended.get(name) or {}) | values for name, values in own.items() if isinstance(values, dict)}
        return extended | own | merged


def _literal(node: ast.expr | None) -> object:
    try:
        return ast.literal_eval(node) if node is not None else ANY
    except ValueError:
        return ANY


def _parse(text: str, default: object) -> object:
    """The value that a text means where ``default`` is no text; ``_UNREADABLE`` where it means none."""
    if isinstance(default, float):
        with contextlib.suppress(ValueError):
            return float(text)  # YAML reads 1e-3 as text
    if text.strip() in ("null", "~", "None"):
        return None
    names = isinstance(default, list) and default and all(isinstance(item, str) for item in default)
    try:  # in a list of names, `no` and `1` are names too
        value = yaml.load(text, yaml.BaseLoader) if names else yaml.safe_load(text)
    except yaml.YAMLError:
        return _UNREADABLE
    return _UNREADABLE if value is None else value


def _same_type(value: object, default: object) -> bool:
    if default is ANY or default is None:
        return True
    if isinstance(default, bool) or isinstance(value, bool):
        return isinstance(default, bool) and isinstance(value, bool)
    if isinstance(default, int | float):
        return value is None or isinstance(value, int) or (isinstance(value, float) and isinstance(default, float))
    if isinstance(default, list) and isinstance(value, list):
        kinds = {type(item) for item in default}
        return len(kinds) != 1 or all(_same_type(item, default[0]) for item in value)
    return isinstance(value, type(default))


def _kind(default: object) -> str:
    """In words, what a value must be to have the type of a default."""
    if isinstance(default, list) and default:
        item = _kind(default[0]).removeprefix("a ")
        return f"a list of {item}" if isinstance(default[0], str) else f"a list of {item}s"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    return names.get(type(default), "readable YAML" if default is None or default is ANY else "a mapping")


def as_yaml(value: object) -> str:
    """A value in one line of YAML, as the command line reads it."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).removesuffix("...\n").strip()
