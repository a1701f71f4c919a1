"""What callers may hand over: one rule for each name of an argument, the same in Python, notebooks and commands.

A rule refuses with one line that names the value, what is allowed and the fix. Only what can be told without loading
anything is told here: whether a task has so many documents, or a machine such a device, is seen later. No torch.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from depthlens.errors import UserError, unknown

DTYPES = ("auto", "float32", "bfloat16", "float16")
DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("torch", "transformer_lens", "nnsight")
MEASURES = ("task", "answer_logprob", "both")
MOST_SEEDS = 2**32


def loaded(lens: Any) -> None:
    """Refuse what is not a loaded model, first of all the name of one."""
    if isinstance(lens, str | os.PathLike):
        name = os.fspath(lens)
        raise UserError(f"lens {name!r} is the name of a model; load it first: dl.load({name!r})")
    if not (hasattr(lens, "dims") and hasattr(lens, "tokenizer")):
        kind = type(lens).__name__
        raise UserError(f"lens is a {kind}, not a loaded model; load one first: dl.load('smollm2-135m')")


def result(value: Any, name: str = "result") -> None:
    """Refuse what is not the result of a sweep."""
    if not (hasattr(value, "docs") and hasattr(value, "record")):
        fix = "give what a sweep returned, or dl.Result.load(folder)"
        raise UserError(f"{name} is a {type(value).__name__}, not the result of a sweep; {fix}")


def made_by(value: Any, field: str, what: str, name: str) -> None:
    """Refuse what lacks a field that the wanted object has; ``what`` says where to get one."""
    if not hasattr(value, field):
        raise UserError(f"{name} is a {type(value).__name__}; give {what}")


def chosen(name: str, value: Any, known: Iterable[Any]) -> list[str]:
    """One name or several out of those that there are.

    Raises:
        UserError: none, or one that is not there.
    """
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise UserError(f"{name} {value!r}: give a name or a list of names out of: {', '.join(map(str, known))}")
    known = list(known)
    for one in names:
        if one not in known:
            raise unknown(name, one, known)
    return list(names)


def whole(name: str, value: Any, least: int, most: int | None = None, *, of: str = "", fix: str = "") -> None:
    """Refuse what is not a whole number from ``least``, up to ``most`` if there is one."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        span = f" from {least} to {most}" if most is not None else f", at least {least}"
        raise UserError(f"{name} {value!r}: give a whole number{of}{span}{fix}")


def number(name: str, value: Any, least: int | float, most: int | float = math.inf, *, fix: str = "") -> None:
    """Refuse what is not a number within bounds; NaN never is."""
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        span = f"from {least:g} to {most:g}" if most < math.inf else f"at least {least:g}"
        raise UserError(f"{name} {value!r}: give a number, {span}{fix}")


def names(name: str, value: Any, example: str) -> list[str]:
    """A text, or several, as a list.

    Raises:
        UserError: it is neither, has none, one that is not a text or is empty, or one twice.
    """
    given = [value] if isinstance(value, str) else value
    if isinstance(given, Sequence) and not given:
        raise UserError(f"no {name} given; name at least one, e.g. {example}")
    texts = isinstance(given, Sequence) and all(isinstance(text, str) and text.strip() for text in given)
    if not texts:
        raise UserError(f"{name} {value!r}: give a name or a list of names, e.g. [{example!r}]")
    if repeated := next((text for i, text in enumerate(given) if text in given[:i]), None):
        raise UserError(f"{name}: {repeated!r} is named twice; name it once")
    return list(given)


def layers(name: str, value: Any, n_layers: int) -> list[int]:
    """Layers as a list; any iterable of whole numbers will do.

    Raises:
        UserError: it is not several, or has something else in it than layers of the model.
    """
    given = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [None]
    if any(isinstance(n, bool) or not hasattr(n, "__index__") for n in given):
        raise UserError(f"{name} {value!r}: give a list of layers, e.g. [3, 4]")
    if wrong := [n for n in given if not 0 <= n < n_layers]:
        raise UserError(f"{name} {value!r}: layer {wrong[0]} does not exist; layers are 0..{n_layers - 1}")
    return [int(n) for n in given]


def heads(name: str, value: Any) -> list[tuple[int, int]]:
    """Heads as (layer, head).

    Raises:
        UserError: it is not a list of such pairs.
    """
    given = list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else [None]
    found = []
    for head in given:
        pair = tuple(head) if isinstance(head, Sequence) and not isinstance(head, str) else ()
        if len(pair) != 2 or any(isinstance(n, bool) or not hasattr(n, "__index__") or n < 0 for n in pair):
            raise UserError(f"{name} {value!r}: give a list of heads as (layer, head), e.g. [(3, 0)]")
        found.append((int(pair[0]), int(pair[1])))
    return found


def documents(limit: int | None) -> int | None:
    """A limit that any machine can count to; more documents than a task has are all of them."""
    return None if limit is None else min(limit, sys.maxsize)


def check(**given: Any) -> None:
    """Hold values against the rules of their names; a name without a rule is a mistake of ours."""
    for name, value in given.items():
        RULES[name](name, value)


def _optional(rule: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    return lambda name, value: None if value is None else rule(name, value)


def _limit(name: str, value: Any) -> None:
    whole(name, value, 1, of=" of documents", fix=", or leave it out for all")


def _num_fewshot(name: str, value: Any) -> None:
    whole(name, value, 0, of=" of examples", fix=", or leave it out for the task's own")


def _batch_tokens(name: str, value: Any) -> None:
    whole(name, value, 1, fix=", or leave it out to have it chosen")


def _seed(name: str, value: Any) -> None:
    whole(name, value, 0, MOST_SEEDS - 1)


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} {value!r}: give True or False")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} {value!r}: give a text, or leave it out")


def _folder(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or not Path(value).is_dir():
        shown = os.fspath(value) if isinstance(value, os.PathLike) else value
        raise UserError(f"{name} {shown!r} is not a folder; give the folder with your task YAML files")


def _out(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value).strip() or "\0" in os.fspath(value):
        raise UserError(f"{name} {value!r}: give the path of a folder, such as runs/mine, or leave it out")
    path = Path(value)
    if any(part.is_file() for part in (path, *path.parents)):
        raise UserError(f"cannot write to {str(path)!r}: it, or a part of the path, is a file; name a folder")


def _one_of(allowed: Sequence[str]) -> Callable[[str, Any], None]:
    def rule(name: str, value: Any) -> None:
        if not isinstance(value, str) or value not in allowed:
            raise unknown(name, value, allowed)

    return rule


def _device(name: str, value: Any) -> None:
    kind, _, index = value.partition(":") if isinstance(value, str) else ("", "", "")
    if kind not in DEVICES or (":" in value and not (kind == "cuda" and index.isdigit())):
        raise unknown(name, value, [*DEVICES, "cuda:N"])


def _offload(name: str, value: Any) -> None:
    if value != "disk":
        raise UserError(f"{name} {value!r}: give 'disk', or leave it out to hold the whole model in memory")


def _prompts(name: str, value: Any) -> None:
    texts = isinstance(value, Sequence) and not isinstance(value, str)
    if not texts or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{name} {value!r}: give a list of prompts, none of them empty")


def _tasks(name: str, value: Any) -> None:
    names("tasks", value, "capitals_continuation")


RULES: dict[str, Callable[[str, Any], None]] = {
    "apply_chat_template": _flag,
    "backend": _one_of(BACKENDS),
    "batch_tokens": _optional(_batch_tokens),
    "device": _device,
    "dtype": _one_of(DTYPES),
    "include_path": _optional(_folder),
    "limit": _optional(_limit),
    "measure": _one_of(MEASURES),
    "num_fewshot": _optional(_num_fewshot),
    "offload": _optional(_offload),
    "out": _optional(_out),
    "progress": _flag,
    "resample_prompts": _optional(_prompts),
    "seed": _seed,
    "system_instruction": _optional(_text),
    "tasks": _tasks,
}
