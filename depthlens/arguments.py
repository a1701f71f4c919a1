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
from typing import Any, NamedTuple

from depthlens.errors import UserError, unknown

DTYPES = ("auto", "float32", "float64", "bfloat16", "float16")
SCHEMES = ("int8", "int4", "nf4")  # of `depthlens.models.quantised`
DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("torch", "transformer_lens", "nnsight")
MEASURES = ("task", "answer_logprob", "token_logprob", "both")
TEXT_SETS = ("embedded", "c4")
N_SEEDS = 2**32
Rule = Callable[[str, Any], object]  # refuses a value of an argument, by its name


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


def _optional(rule: Rule) -> Rule:
    return lambda name, value: None if value is None else rule(name, value)


def _whole(low: int, high: int | None = None, of: str = "", fix: str = "") -> Rule:
    return lambda name, value: whole(name, value, low, high, of=of, fix=fix)


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


def _ray(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{name} {value!r}: give 'local' or the address of a cluster, such as 10.0.0.1:6379")


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


def _one_of(allowed: Sequence[str]) -> Rule:
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


class Option(NamedTuple):
    """An option of experiments, as notebooks, Python and commands have it.

    Attributes:
        rule: Refuses a value.
        default: Where it is not given.
        help: What a command says of it.
        metavar: What stands for its value there; "": it is a flag.
        flag: How a command spells it, where that is not its name.
        recorded: Whether it decides scores, and so stands in the record of a result.
    """

    rule: Rule
    default: Any = None
    help: str = ""
    metavar: str = ""
    flag: str = ""
    recorded: bool = True


# of every experiment that asks tasks (`depthlens.EvalOptions`)
OPTIONS: dict[str, Option] = {
    "limit": Option(
        _optional(_whole(1, of=" of documents", fix=", or leave it out for all")),
        help="Documents of each task. [default: all]",
        metavar="N",
    ),
    "samples": Option(
        _optional(_samples),
        help="Which documents, as a slice of Python: 0:100:2, or 1::2 for every other.",
        metavar="A:B:C",
    ),
    "num_fewshot": Option(
        _optional(_whole(0, of=" of examples", fix=", or leave it out for the task's own")),
        help="Examples in each prompt. [default: what the task says]",
        metavar="N",
        recorded=False,
    ),
    "include_path": Option(_optional(_folder), help="Folder with your own lm-eval task files (YAML).", metavar="DIR"),
    "seed": Option(_whole(0, N_SEEDS - 1), 0, help="Seed of the choice of examples, and of drawn tokens.", metavar="N"),
    "apply_chat_template": Option(_flag, False, help="Wrap prompts in the tokenizer's chat template."),
    "system_instruction": Option(_optional(_text), help="Text before every prompt.", metavar="TEXT"),
    "gen_kwargs": Option(
        _optional(_settings),
        help="How answers are written, over what the tasks say: max_gen_toks, temperature, top_p, top_k, min_p, "
        "do_sample, until. Tokens that are drawn depend on --seed.",
        metavar="NAME=VALUE,...",
    ),
    "think_end_token": Option(
        _optional(_filled_text),
        help="What ends the thinking of a reasoning model, such as '</think>'.",
        metavar="TEXT",
    ),
    "enable_thinking": Option(
        _optional(_flag), help="For chat templates that can switch it.", flag="--enable-thinking/--no-thinking"
    ),
    "measure": Option(
        _one_of(MEASURES),
        "task",
        help="task: the task's own metrics; answer_logprob: log-likelihood of the reference answer; "
        "token_logprob: the same per token; both: task and answer_logprob.",
        metavar="NAME",
    ),
    "backend": Option(
        _one_of(BACKENDS), "torch", help="What removes the parts: torch, transformer_lens or nnsight.", metavar="NAME"
    ),
    "batch_tokens": Option(
        _optional(_whole(1, fix=", or leave it out to have it chosen")),
        help="Tokens of one batch. [default: chosen by free memory]",
        metavar="N",
        recorded=False,
    ),
    "store": Option(
        lambda name, value: None,  # `depthlens.store.parts.open_store` checks it
        "auto",
        help="Folder or URL that keeps answers, so that nothing is computed twice; none keeps nothing. "
        "auto is what DEPTHLENS_STORE names, else the user's data folder.",
        metavar="DIR|URL",
        recorded=False,
    ),
    "progress": Option(_flag, True, recorded=False),
    "workers": Option(
        _optional(_whole(1, fix=", or leave it out to compute in this process")),
        help="Compute in N processes through Ray (pip install 'depthlens[ray]'), each with the model. "
        "[default: in this process, or with --ray as many as fit]",
        metavar="N",
        recorded=False,
    ),
    "ray": Option(
        _optional(_ray),
        help="A Ray cluster (HOST:PORT, as 'ray start --head' prints it), or a Ray on this machine. "
        "[default: local with --workers]",
        metavar="ADDRESS|local",
        recorded=False,
    ),
    "worker_cpus": Option(
        _optional(_whole(1, of=" of CPU threads", fix=", or leave it out")),
        help="CPU threads of each worker. [default: its share of this machine, else 1]",
        metavar="N",
        recorded=False,
    ),
    "worker_gpus": Option(
        _optional(_worker_gpus),
        help="GPUs of each worker; 0.5 shares one. [default: as many as the model has here]",
        metavar="N",
        recorded=False,
    ),
}
# of a model that is loaded by name
LOADING: dict[str, Option] = {
    "dtype": Option(
        _one_of(DTYPES),
        "auto",
        help="Type of the weights: auto, float32, float64, bfloat16 or float16.",
        metavar="TYPE",
    ),
    "device": Option(_device, "auto", help="auto, cpu, mps, cuda:N or cuda:0,cuda:1.", metavar="NAME"),
    "quantize": Option(
        _optional(_one_of(SCHEMES)),
        help="int8, int4 or nf4: keep the weights of layers in so many bits.",
        metavar="SCHEME",
    ),
    "offload": Option(
        _optional(_offload),
        help="disk: read layers when they are needed, for models larger than memory.",
        metavar="disk",
    ),
    "remote": Option(_flag, False, help="Run on the servers of NDIF, which have the weights; needs NDIF_API_KEY."),
}
RULES: dict[str, Rule] = {
    **{name: option.rule for name, option in OPTIONS.items() if name != "store"},
    **{name: option.rule for name, option in LOADING.items() if name != "remote"},
    "out": _optional(_out),
    "resample_prompts": _optional(_prompts),
    "tasks": _tasks,
    "text_set": _one_of(TEXT_SETS),
}
