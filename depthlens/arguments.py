"""Checks of arguments: one rule for each name of an argument, the same in Python, notebooks and commands.

A rule refuses a value with one line that names the value, what is allowed and the fix. Rules load nothing: whether a
task has so many documents, or a machine has such a device, is checked later. Numbers and lists may be those of NumPy,
pandas and torch; what the functions return are Python's own. No torch.
"""

from __future__ import annotations

import contextlib
import inspect
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, get_type_hints

from depthlens.errors import UserError, unknown

BACKENDS = ("torch", "transformer_lens", "nnsight")
TEXT_SETS = ("embedded", "c4")
_SLICE = r"(-?\d+)?:(-?\d+)?(:(0*[1-9]\d*)?)?"  # START:STOP:STEP; each may be left out, as in Python
_DEVICES = r"auto|cpu|mps(:0)?|cuda|cuda:\d+(,cuda:\d+)*"


@dataclass(frozen=True)
class Rule:
    """What a value of an argument must be.

    Attributes:
        fits: Whether a value is.
        give: The same in words, as the line says them that refuses a value.
        metavar: What stands for it in the help of a command; "": it is a flag.
        read: Reads a value from the text of a command.
        allowed: The names of which it must be one, where there are such; the line then says which are similar.
    """

    fits: Callable[[Any], object]
    give: str = ""
    metavar: str = ""
    read: Callable[[str], Any] = str
    allowed: Sequence[str] = ()

    def __call__(self, name: str, value: Any) -> Any:
        """The value as a `plain` one.

        Args:
            name: Name of the argument.
            value: Its value.

        Raises:
            UserError: it is not what it must be.
        """
        value = plain(value)
        if self.fits(value):
            return value
        if self.allowed:
            raise unknown(name, value, self.allowed)
        shown = repr(value)
        raise UserError(f"{name} {shown if len(shown) <= 300 else f'{shown[:300]}...'}: give {self.give}")


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
        return (tuple if isinstance(value, tuple) else list)(map(plain, value))
    return value


def _is_text(value: Any) -> bool:
    """Whether a value is a text that is not empty."""
    return isinstance(value, str) and bool(value.strip())


def _is_list(value: Any, fits: Callable[[Any], object]) -> bool:
    """Whether a value is a list of such items."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and all(map(fits, value))


def _are_different(value: Any, fits: Callable[[Any], object]) -> bool:
    """Whether a value is a list of such items, at least one and each once."""
    return _is_list(value, fits) and 0 < len(set(value)) == len(value)


def _are_samples(value: Any) -> bool:
    """Whether a value chooses documents of a task, or of several by name."""
    some = value.values() if isinstance(value, Mapping) and value else [value]
    return all(re.fullmatch(_SLICE, s) if isinstance(s, str) else _are_different(s, WHOLE.fits) for s in some)


def _are_devices(value: Any) -> bool:
    """Whether a value names a device, or several GPUs, each once."""
    return isinstance(value, str) and bool(re.fullmatch(_DEVICES, value)) and _are_different(value.split(","), _is_text)


def _is_path(value: Any) -> bool:
    """Whether a value can be the path of a folder."""
    return isinstance(value, str | os.PathLike) and _is_text(os.fspath(value)) and "\0" not in os.fspath(value)


def _is_share(value: Any) -> bool:
    """Whether a value is a share of one GPU, or a whole number of them."""
    return bool(numeric(float, 0).fits(value) and (0 < value <= 1 or value % 1 == 0 < value))


def or_none(rule: Rule) -> Rule:
    """The rule of a value that may be left out."""
    return replace(rule, fits=lambda value: value is None or rule.fits(value), give=f"{rule.give}, or leave it out")


def numeric(kind: type, low: int | float, high: int | float = math.inf, of: str = "", fix: str = "") -> Rule:
    """The rule of a number from ``low`` to ``high``, both included; of an int as ``kind`` it is a whole one."""
    kinds = int if kind is int else int | float

    def fits(value: Any) -> bool:
        return isinstance(value, kinds) and not isinstance(value, bool) and low <= value <= high

    what, form = ("a whole number", "") if kind is int else ("a number", "g")
    span = f", at least {low:{form}}" if high == math.inf else f" from {low:{form}} to {high:{form}}"
    return Rule(fits, f"{what}{of}{span}{fix}", "N", kind)


def list_of(item: Rule, low: int = 1, high: int | float = math.inf) -> Rule:
    """The rule of a list of ``low`` to ``high`` items, for each of which there is a rule."""
    size = f"at least {low}" if high == math.inf else f"{low}" if low == high else f"{low} to {high}"
    return Rule(lambda v: _is_list(v, item.fits) and low <= len(v) <= high, f"a list of {size}, each {item.give}")


def one_of(*allowed: str) -> Rule:
    """The rule of one of some names."""
    return Rule(lambda value: isinstance(value, str) and value in allowed, metavar="NAME", allowed=allowed)


def _names(example: str) -> Rule:
    """The rule of a name, or several, each once."""
    give = f"a name or a list of names, each once, e.g. [{example!r}]"
    return Rule(lambda value: _is_text(value) or _are_different(value, _is_text), give)


def _read_settings(text: str) -> Any:
    """Settings as lm-eval reads them from ``name=value,name=value``."""
    from lm_eval.utils import simple_parse_args_string  # slow to import

    return simple_parse_args_string(text)


FLAG = Rule(lambda value: isinstance(value, bool), "True or False")
TEXT = Rule(_is_text, "a text that is not empty")
WHOLE = numeric(int, 0)


class Option(NamedTuple):
    """An option of experiments, as notebooks, Python and commands have it.

    Attributes:
        rule: What its value must be; None is allowed, too, where it is the default.
        default: Where it is not given.
        help: What a command says of it.
        flag: How a command spells it, where that is not its name.
        many: Whether a command takes it several times, and has a list of its values.
    """

    rule: Rule
    default: Any = None
    help: str = ""
    flag: str = ""
    many: bool = False


_SAMPLES = Rule(
    _are_samples,
    "numbers of documents, each once, e.g. range(0, 100, 2), START:STOP:STEP such as '1::2', or either by task",
    "A:B:C",
)
_FOLDER = Rule(lambda v: _is_path(v) and os.path.isdir(v), "a folder that exists, with your task YAML files", "DIR")
_SETTINGS = Rule(
    lambda value: isinstance(value, Mapping) and bool(value) and all(map(_is_text, value)) and "" not in value.values(),
    "settings by name, e.g. {'temperature': 0.6, 'max_gen_toks': 1024}, for a command NAME=VALUE,NAME=VALUE",
    "NAME=VALUE,...",
    _read_settings,
)
_SHARE = Rule(_is_share, "a share of a GPU such as 0.5, or a whole number", "N", float)
_PLACES = ("auto", "cpu", "cuda", "mps", "cuda:N", "several, each once, as cuda:0,cuda:1")
_DEVICE = Rule(_are_devices, metavar="NAME", allowed=_PLACES)
_REMOTE = Rule(lambda v: isinstance(v, bool) or v == "local", "True, False, or 'local' to simulate a server")
_PROMPTS = Rule(
    lambda value: _is_list(value, _is_text) or numeric(int, 1).fits(value),
    "a list of prompts, none of them empty, or how many are made",
    "TEXT",
)
_DONOR = Rule(lambda value: not isinstance(value, str) or _is_text(value), "a model", "MODEL")
PATH = Rule(_is_path, "the path of a folder, such as runs/mine")
_ADDRESS = Rule(_is_text, "'local' or the address of a cluster, such as 10.0.0.1:6379", "ADDRESS|local")


class EvalOptions(TypedDict, total=False):
    """Options of every experiment that asks tasks; each may be left out. Its rule and default are part of its type.

    The help of commands says of each what is said here.

    Attributes:
        limit: Documents of each task, from the first on; all by default.
        samples: Which documents, instead of ``limit``: a slice of Python as text, such as ``0:100:2``, or ``1::2`` for
            every other one. In Python also their numbers, as ``range(0, 100, 2)``, or a dictionary of either by task.
        num_fewshot: Worked examples before each question; by default as many as the task says.
        include_path: Folder with your own lm-eval task files (YAML).
        seed: Seed of the choice of examples, and of tokens that are drawn; 0 by default.
        apply_chat_template: Wrap prompts in the model's chat template.
        system_instruction: Text before every prompt.
        gen_kwargs: How answers are written, over what the tasks say, with lm-eval's names: max_gen_toks, until,
            do_sample, temperature, top_p, top_k, min_p. Tokens that are drawn depend on the seed, the condition and the
            document alone.
        think_end_token: Text that ends what a reasoning model thinks, such as ``</think>``; only what follows is the
            answer.
        enable_thinking: Argument of chat templates that have it; by default the template's own way.
        measure: ``task`` (default): the task's own metrics; ``answer_logprob``: log-likelihood of the reference answer
            in nats; ``token_logprob``: the same per token of the answer; ``both``: the task's own metrics and
            ``answer_logprob``.
        donor: Model whose weights ``@donor`` conditions put in place, e.g. ``layers@donor``; in Python a name or a
            loaded one (`depthlens.with_donor`).
        resample_prompts: Prompt whose parts ``@resample`` conditions put in place; of several each in turn, and scores
            are means over them. In Python a list, or a number, which makes so many of documents of the first task that
            are not evaluated, in the form of the prompts that are scored, with their reference answers.
        backend: What applies the conditions: ``torch`` (default), ``transformer_lens`` or ``nnsight``.
        batch_tokens: Tokens of one batch; chosen by device and free memory by default.
        store: Folder or URL where answers are read and kept, so that nothing is computed twice; none, in Python None:
            nowhere. By default auto: what DEPTHLENS_STORE names, else the user's data folder.
        progress: Show progress bars; True by default.
        workers: Number of processes that compute, each with the model, through Ray (pip install 'depthlens[ray]'). By
            default this process computes, or with ``ray`` as many as fit. Environment variables (DEPTHLENS_WORKERS and
            so on) stand for this option and the next three where they are not given.
        ray: The address of a cluster, as 'ray start --head' prints it, or ``local`` (default with ``workers``): a Ray
            that is started on this machine.
        worker_cpus: CPU threads of each worker; by default its share of a local machine's cores, else 1.
        worker_gpus: GPUs of each worker, below 1 a share of one; by default as many as the model has here.

    Example:
        >>> options = dl.EvalOptions(limit=8, measure="both", progress=False)
        >>> result = dl.condition_sweep(lens, "organism_one_hop", ["L2"], **options)
        >>> result.docs["metric"].unique().tolist()
        ['acc', 'answer_logprob']
    """

    limit: Annotated[int | None, Option(numeric(int, 1, of=" of documents"))]
    samples: Annotated[str | Sequence[int] | Mapping[str, str | Sequence[int]] | None, Option(_SAMPLES)]
    num_fewshot: Annotated[int | None, Option(numeric(int, 0, of=" of examples"))]
    include_path: Annotated[str | Path | None, Option(_FOLDER)]
    seed: Annotated[int, Option(numeric(int, 0, 2**32 - 1), 0)]
    apply_chat_template: Annotated[bool, Option(FLAG, False)]
    system_instruction: Annotated[str | None, Option(Rule(lambda value: isinstance(value, str), "a text", "TEXT"))]
    gen_kwargs: Annotated[Mapping[str, Any] | None, Option(_SETTINGS)]
    think_end_token: Annotated[str | None, Option(Rule(_is_text, "a text, such as '</think>'", "TEXT"))]
    enable_thinking: Annotated[bool | None, Option(FLAG, flag="--enable-thinking/--no-thinking")]
    measure: Annotated[str, Option(one_of("task", "answer_logprob", "token_logprob", "both"), "task")]
    donor: Annotated[Any, Option(_DONOR)]
    resample_prompts: Annotated[Sequence[str] | int | None, Option(_PROMPTS, flag="--resample-prompt", many=True)]
    backend: Annotated[str, Option(one_of(*BACKENDS), "torch")]
    batch_tokens: Annotated[int | None, Option(numeric(int, 1))]
    # `depthlens.store.parts` checks it
    store: Annotated[Any, Option(Rule(lambda value: True, metavar="DIR|URL"), "auto")]
    progress: Annotated[bool, Option(FLAG, True)]
    workers: Annotated[int | None, Option(numeric(int, 1))]
    ray: Annotated[str | None, Option(_ADDRESS)]
    worker_cpus: Annotated[int | None, Option(numeric(int, 1, of=" of CPU threads"))]
    worker_gpus: Annotated[float | None, Option(_SHARE)]


def described(thing: Any) -> dict[str, tuple[str, str]]:
    """What a docstring says of arguments or attributes by name: what stands in parentheses, and the words."""
    entries = re.findall(r"^    (\w+)(?: \((.*?)\))?: (.*(?:\n {8}.*)*)", inspect.getdoc(thing) or "", re.MULTILINE)
    return {name: (kind, " ".join(words.replace("``", "").split())) for name, kind, words in entries}


def _options_of(kind: type) -> dict[str, Option]:
    """The options in the types of a class, with what its docstring says of each."""
    said, types = described(kind), get_type_hints(kind, include_extras=True)
    return {name: of.__metadata__[0]._replace(help=said[name][1]) for name, of in types.items()}


class LoadOptions(TypedDict, total=False):
    """Options of a model that is loaded by its name, as commands have them; `depthlens.load` says more.

    Attributes:
        dtype: Type of the weights: auto, float32, float64, bfloat16, float16.
        device: auto, cpu, mps, cuda:N or cuda:0,cuda:1.
        quantize: int8, int4 or nf4: keep the weights of layers in so many bits.
        offload: disk: read layers when they are needed, for models larger than memory.
        remote: Run on the servers of NDIF, which have the weights; needs NDIF_API_KEY.
    """

    dtype: Annotated[str, Option(one_of("auto", "float32", "float64", "bfloat16", "float16"), "auto")]
    device: Annotated[str, Option(_DEVICE, "auto")]
    quantize: Annotated[str | None, Option(one_of("int8", "int4", "nf4"))]
    offload: Annotated[str | None, Option(Rule(lambda value: value == "disk", "'disk'", "disk"))]
    remote: Annotated[bool | str, Option(_REMOTE, False)]


OPTIONS, LOADING = map(_options_of, (EvalOptions, LoadOptions))
# of these the record of a result says nothing: they decide no score, differ from task to task, or have their own entry
UNRECORDED: tuple[str, ...] = ("num_fewshot", "donor", "batch_tokens", "store", "progress")
UNRECORDED += ("workers", "ray", "worker_cpus", "worker_gpus")
COMMANDS = OPTIONS | LOADING


RULES = {name: o.rule if o.default is not None else or_none(o.rule) for name, o in COMMANDS.items()}
# of other arguments of experiments, and of parameters of notebooks
_TEXTS, _LAYERS, _COUNT, _FROM_2 = list_of(TEXT), list_of(WHOLE), numeric(int, 1), numeric(int, 2)
_TEN = Rule(lambda n: numeric(int, 10).fits(n) or n == 0, "a whole number, at least 10, or 0 for none")
RULES |= {
    **dict.fromkeys(("attention_layers", "every", "max_size", "n_needles", "prompts"), _COUNT),
    **dict.fromkeys(("removed", "rounded", "top", "max_new_tokens"), _COUNT),
    **dict.fromkeys(("context_lengths", "ks"), list_of(_COUNT)),
    **dict.fromkeys(("organism", "distilled", "position", "prompt", "other_prompt"), TEXT),
    **dict.fromkeys(("base", "control"), list_of(TEXT, 0, 1)),
    **dict.fromkeys(("more", "knowledge"), list_of(TEXT, 0)),
    **dict.fromkeys(("ways", "prompt_conditions"), _TEXTS),
    **dict.fromkeys(("metrics", "claims"), or_none(_TEXTS)),
    **dict.fromkeys(("minutes", "tolerance"), numeric(float, 0)),
    **dict.fromkeys(("core", "anti"), _LAYERS),
    "check": numeric(int, 3),
    "depths": list_of(numeric(float, 0, 1)),
    "draws": _TEN,
    "layers": Rule(lambda v: isinstance(v, str | None) or _LAYERS.fits(v), "layers, as [3, 4], or as 'layers:4'"),
    "max_tokens": _FROM_2,
    "organism_limit": COMMANDS["limit"].rule,
    "out": or_none(PATH),
    "prompt_answers": list_of(TEXT, 2, 2),
    "race": FLAG,
    "roles": or_none(Rule(lambda value: isinstance(value, dict), "tasks by role, as {'letters': ['mmlu']}")),
    "rounding": one_of("int4", "int8"),
    "tasks": _names("capitals_continuation"),
    "text_set": one_of(*TEXT_SETS),
    "texts": or_none(_TEN),
}


def check(**values: Any) -> dict[str, Any]:
    """Check values against the rules of their names; a name without a rule is a mistake of ours.

    Returns:
        The values, as `plain` ones.
    """
    given = {name: RULES[name](name, value) for name, value in values.items()}
    if given.get("limit") is not None and (samples := given.get("samples")) is not None:
        raise UserError(f"limit {given['limit']} and samples {samples!r} both choose documents; give one of them")
    return given


def read(texts: Mapping[str, Any]) -> dict[str, Any]:
    """Values of options as a command or the environment gives them: texts, flags, or None; they are checked."""
    values = dict(texts)
    for name, text in texts.items():
        if isinstance(text, str):
            with contextlib.suppress(ValueError):  # the rule of an option refuses what cannot be read
                values[name] = RULES[name].read(text)
    return check(**values)


def whole(name: str, value: Any, low: int, high: int | float = math.inf, *, of: str = "", fix: str = "") -> int:
    """A whole number from ``low`` up to ``high``, both included; any other value is refused."""
    return numeric(int, low, high, of, fix)(name, value)


def number(name: str, value: Any, low: int | float, high: int | float = math.inf, *, fix: str = "") -> int | float:
    """A number from ``low`` to ``high``, both included; any other value is refused, and so is NaN."""
    return numeric(float, low, high, fix=fix)(name, value)


def names(name: str, value: Any, example: str) -> list[str]:
    """A name, or several, each once, as a list; any other value is refused."""
    value = _names(example)(name, value)
    return [value] if isinstance(value, str) else list(value)


def chosen(name: str, value: Any, known: Iterable[Any]) -> list[str]:
    """One name or several of the known ones, as a list; any other value is refused."""
    known = list(known)
    for item in (found := names(name, value, next(iter(known), ""))):
        if item not in known:
            raise unknown(name, item, known)
    return found


def layers(name: str, value: Any, n_layers: int) -> list[int]:
    """Layers of a model as a list; any other value is refused."""
    give = f"a list of layers, e.g. [0, 1]; layers are 0..{n_layers - 1}"
    return list(Rule(list_of(numeric(int, 0, n_layers - 1), 0).fits, give)(name, value))


def loaded(lens: Any) -> None:
    """Refuse a value that is not a loaded model, such as the name of one; parts that were replaced are found anew."""
    if not hasattr(lens, "dims"):
        name = str(lens) if _is_path(lens) else "smollm2-135m"
        raise UserError(f"lens is a {type(lens).__name__}; give a loaded model, such as dl.load({name!r})")
    lens.bind()
