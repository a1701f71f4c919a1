"""Checks of arguments: one rule for each name of an argument, the same in Python, notebooks and commands.

A rule refuses a value with one line that names the value, what is allowed and the fix. Rules load nothing: whether a
task has so many documents, or a machine has such a device, is checked later. Numbers and lists may be those of NumPy,
pandas and torch; what the functions return are Python's own. No torch.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from pathlib import Path
from typing import Any

from depthlens.errors import UserError, unknown

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
SCHEMES = ("int8", "int4", "nf4")  # of `depthlens.models.quantised`
DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("torch", "transformer_lens", "nnsight")
MEASURES = ("task", "answer_logprob", "token_logprob", "both")
TEXT_SETS = ("embedded", "c4")
N_SEEDS = 2**32


def plain(value: Any) -> Any:
    """Numbers, texts and collections of NumPy, pandas and torch as Python's own; a set as a sorted list.

    Ranges, and whatever is none of these, stay as they are.
    """
    if type(value) in (str, int, float, bool):  # most of a record, quickly
        return value
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, set | frozenset):
        return sorted(map(plain, value), key=str)
    if isinstance(value, Mapping):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | KeysView | ValuesView | Iterator):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    return value


def loaded(lens: Any) -> None:
    """Refuse a value that is not a loaded model, such as the name of one; parts that were replaced are found anew."""
    if isinstance(lens, str | os.PathLike):
        name = os.fspath(lens)
        raise UserError(f"lens {name!r} is the name of a model; load it first: dl.load({name!r})")
    if not (hasattr(lens, "dims") and hasattr(lens, "tokenizer")):
        kind = type(lens).__name__
        raise UserError(f"lens is a {kind}, not a loaded model; load one first: dl.load('smollm2-135m')")
    lens.bind()


def result(value: Any, name: str = "result") -> None:
    """Refuse a value that is not the result of a sweep."""
    if not (hasattr(value, "docs") and hasattr(value, "record")):
        fix = "give what a sweep returned, or dl.Result.load(folder)"
        raise UserError(f"{name} is a {type(value).__name__}, not the result of a sweep; {fix}")


def made_by(value: Any, field: str, what: str, name: str) -> None:
    """Refuse a value without the field ``field``; ``what`` says which object is needed and where to get one."""
    if not hasattr(value, field):
        raise UserError(f"{name} is a {type(value).__name__}; give {what}")


def chosen(name: str, value: Any, known: Iterable[Any]) -> list[str]:
    """One name or several of the known ones, as a list.

    Raises:
        UserError: no name, or one that is not known.
    """
    value = plain(value)
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not names:
        raise UserError(f"{name} {value!r}: give a name or a list of names out of: {', '.join(map(str, known))}")
    known = list(known)
    for item in names:
        if item not in known:
            raise unknown(name, item, known)
    return list(names)


def whole(name: str, value: Any, low: int, high: int | None = None, *, of: str = "", fix: str = "") -> int:
    """A whole number from ``low`` up to ``high``, both included; any other value is refused."""
    value = plain(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < low or (high is not None and value > high):
        span = f" from {low} to {high}" if high is not None else f", at least {low}"
        raise UserError(f"{name} {value!r}: give a whole number{of}{span}{fix}")
    return value


def whole_or_text(text: str | None) -> int | str | None:
    """A whole number where a text of the command line is one, else the text, which the rule of its option refuses."""
    try:
        return None if text is None else int(text)
    except ValueError:
        return text


def number(name: str, value: Any, low: int | float, high: int | float = math.inf, *, fix: str = "") -> int | float:
    """A number from ``low`` to ``high``, both included; any other value is refused, and so is NaN."""
    value = plain(value)
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
        span = f"from {low:g} to {high:g}" if high < math.inf else f"at least {low:g}"
        raise UserError(f"{name} {value!r}: give a number, {span}{fix}")
    return value


def settings_of(text: str | None) -> dict[str, object] | None:
    """Settings by name, from ``name=value,name=value``; values are YAML.

    Raises:
        UserError: another text.
    """
    if text is None:
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(name.strip() and value.strip() for name, _, value in pairs):
        raise UserError(f"gen_kwargs {text!r}: give NAME=VALUE, several with commas, e.g. temperature=0.6,top_p=0.95")
    import yaml

    try:
        return {name.strip(): yaml.safe_load(value) for name, _, value in pairs}
    except yaml.YAMLError as error:
        raise UserError(
            f"gen_kwargs {text!r}: a value cannot be read; give numbers, true, false or plain text"
        ) from error


def names(name: str, value: Any, example: str) -> list[str]:
    """A text, or several, as a list.

    Raises:
        UserError: no text, one that is empty, one that occurs twice, or a value of another type.
    """
    value = plain(value)
    texts = [value] if isinstance(value, str) else value
    if isinstance(texts, Sequence) and not texts:
        raise UserError(f"no {name} given; name at least one, e.g. {example}")
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise UserError(f"{name} {value!r}: give a name or a list of names, e.g. [{example!r}]")
    if repeated := next((text for i, text in enumerate(texts) if text in texts[:i]), None):
        raise UserError(f"{name}: {repeated!r} is named twice; name it once")
    return list(texts)


def layers(name: str, value: Any, n_layers: int) -> list[int]:
    """Layers as a list, from any iterable of whole numbers.

    Raises:
        UserError: it is not iterable, or contains something else than layers of the model.
    """
    value = plain(value)
    numbers = _items(value)
    if numbers is None or not all(map(_is_whole, numbers)):
        raise UserError(f"{name} {value!r}: give a list of layers, e.g. [3, 4]")
    if missing := [n for n in numbers if not 0 <= n < n_layers]:
        raise UserError(f"{name} {value!r}: layer {missing[0]} does not exist; layers are 0..{n_layers - 1}")
    return numbers


def heads(name: str, value: Any) -> list[tuple[int, int]]:
    """Heads as (layer, head).

    Raises:
        UserError: it is not a list of such pairs.
    """
    value = plain(value)
    pairs = _items(value)
    if pairs is None or not all(_is_pair(pair) for pair in pairs):
        raise UserError(f"{name} {value!r}: give a list of heads as (layer, head), e.g. [(3, 0)]")
    return [(layer, head) for layer, head in pairs]


def _is_pair(value: Any) -> bool:
    """Whether a value is two whole numbers from 0."""
    return isinstance(value, Sequence) and len(value) == 2 and all(_is_whole(n) and n >= 0 for n in value)


def _items(value: Any) -> list[Any] | None:
    """The items of an iterable that is not a text."""
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str | bytes) else None


def _is_whole(value: Any) -> bool:
    """Whether a value is a whole number; a bool is not."""
    return isinstance(value, int) and not isinstance(value, bool)


def documents(limit: int | None) -> int | None:
    """A limit that any machine can count to; more documents than a task has mean all of them."""
    return None if limit is None else min(limit, sys.maxsize)


def slice_of(text: str) -> slice:
    """A slice as text, ``START:STOP`` or ``START:STOP:STEP``; each may be left out, as in Python.

    Raises:
        UserError: another text, or a step that does not go forward.
    """
    if not re.fullmatch(r"(-?\d+)?:(-?\d+)?(:\d*)?", text) or text.endswith(":0"):
        raise UserError(f"samples {text!r}: give START:STOP or START:STOP:STEP, e.g. 0:100:2 or 1::2")
    return slice(*(int(part) if part else None for part in text.split(":")))


def check(**values: Any) -> dict[str, Any]:
    """Check values against the rules of their names; a name without a rule is a mistake of ours.

    Returns:
        The values, as `plain` ones.
    """
    values = {name: plain(value) for name, value in values.items()}
    for name, value in values.items():
        RULES[name](name, value)
    return values


def _optional(rule: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
    return lambda name, value: None if value is None else rule(name, value)


def _limit(name: str, value: Any) -> None:
    whole(name, value, 1, of=" of documents", fix=", or leave it out for all")


def _samples(name: str, value: Any) -> None:
    if isinstance(value, Mapping) and value:
        for task, some in value.items():
            _samples(f"{name} of {task}", some)
    elif isinstance(value, str):
        slice_of(value)
    else:
        numbers = _items(value)
        if isinstance(value, Mapping) or not numbers or not all(_is_whole(n) and n >= 0 for n in numbers):
            fix = "give numbers of documents, e.g. range(0, 100, 2), a slice such as '1::2', or either by task"
            raise UserError(f"{name} {value!r}: {fix}")
        if repeated := [n for n in numbers if numbers.count(n) > 1] if len(set(numbers)) < len(numbers) else []:
            raise UserError(f"{name}: document {repeated[0]} is named twice; name it once")


def _num_fewshot(name: str, value: Any) -> None:
    whole(name, value, 0, of=" of examples", fix=", or leave it out for the task's own")


def _batch_tokens(name: str, value: Any) -> None:
    whole(name, value, 1, fix=", or leave it out to have it chosen")


def _seed(name: str, value: Any) -> None:
    whole(name, value, 0, N_SEEDS - 1)


def _workers(name: str, value: Any) -> None:
    whole(name, value, 1, fix=", or leave it out to compute in this process")


def _ray(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} {value!r}: give 'local' or the address of a cluster, such as 10.0.0.1:6379")


def _worker_cpus(name: str, value: Any) -> None:
    whole(name, value, 1, of=" of CPU threads", fix=", or leave it out")


def _worker_gpus(name: str, value: Any) -> None:
    number(name, value, 0)
    if not value or (value > 1 and value != int(value)):
        raise UserError(f"{name} {value!r}: give a share of a GPU such as 0.5, or a whole number, or leave it out")


def _flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise UserError(f"{name} {value!r}: give True or False")


def _text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise UserError(f"{name} {value!r}: give a text, or leave it out")


def _filled_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} {value!r}: give a text, such as '</think>', or leave it out")


def _settings(name: str, value: Any) -> None:
    if not isinstance(value, Mapping) or not value or not all(isinstance(key, str) for key in value):
        raise UserError(f"{name} {value!r}: give settings by name, e.g. {{'temperature': 0.6, 'max_gen_toks': 1024}}")


def _folder(name: str, value: Any) -> None:
    if not isinstance(value, str | os.PathLike) or not os.fspath(value) or not Path(value).is_dir():
        path = os.fspath(value) if isinstance(value, os.PathLike) else value
        raise UserError(f"{name} {path!r} is not a folder; give the folder with your task YAML files")


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
    several = value.split(",") if isinstance(value, str) else [""]
    for one in several:
        kind, _, index = one.partition(":")
        wrong = kind not in DEVICES or (":" in one and not (kind == "cuda" and index.isdigit()))
        if wrong or (len(several) > 1 and not index):
            raise unknown(name, value, [*DEVICES, "cuda:N", "several, as cuda:0,cuda:1"])
    if len({int(one.partition(":")[2] or 0) for one in several}) < len(several):
        raise UserError(f"{name} {value!r}: a GPU is named twice; name each once, as cuda:0,cuda:1")


def _offload(name: str, value: Any) -> None:
    if value != "disk":
        raise UserError(f"{name} {value!r}: give 'disk', or leave it out to hold the whole model in memory")


def _prompts(name: str, value: Any) -> None:
    if _items(value) is None or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(f"{name} {value!r}: give a list of prompts, none of them empty")


def _tasks(name: str, value: Any) -> None:
    names("tasks", value, "capitals_continuation")


RULES: dict[str, Callable[[str, Any], None]] = {
    "apply_chat_template": _flag,
    "backend": _one_of(BACKENDS),
    "batch_tokens": _optional(_batch_tokens),
    "device": _device,
    "dtype": _one_of(DTYPES),
    "enable_thinking": _optional(_flag),
    "gen_kwargs": _optional(_settings),
    "include_path": _optional(_folder),
    "limit": _optional(_limit),
    "measure": _one_of(MEASURES),
    "num_fewshot": _optional(_num_fewshot),
    "offload": _optional(_offload),
    "quantize": _optional(_one_of(SCHEMES)),
    "out": _optional(_out),
    "progress": _flag,
    "ray": _optional(_ray),
    "resample_prompts": _optional(_prompts),
    "samples": _optional(_samples),
    "seed": _seed,
    "system_instruction": _optional(_text),
    "tasks": _tasks,
    "text_set": _one_of(TEXT_SETS),
    "think_end_token": _optional(_filled_text),
    "worker_cpus": _optional(_worker_cpus),
    "worker_gpus": _optional(_worker_gpus),
    "workers": _optional(_workers),
}
