"""Ablations and conditions as plain data, their text form, their check against a model, and words that mean many.

A condition is a frozen set of ablations. Its text form is the same on the command line, in tables and in plots::

    baseline      nothing removed
    L12           layer skipped: its output is its input                          (mode skip)
    L12.attn      attention contribution to the residual stream set to zero       (mode zero)
    L12.mlp       MLP contribution set to zero
    L12.H3        output z of one query head set to zero before the output projection
    L12.KV1       z of every query head that reads key/value head 1 set to zero
    L8-11         layers 8 to 11 skipped, both ends included
    L3.H1+L9.H2   several at once
    L12@mean      what the layer adds is replaced by the mean of what it adds over a named reference set: its output is
                  its input plus that mean; L12.attn@mean and L12.mlp@mean likewise
    L12.H3@mean   z replaced by its mean over the reference set (heads and KV groups)
    L12@resample  what the layer adds is replaced by what it adds to a stated reference prompt at the same position;
                  L12.attn@resample and L12.mlp@resample likewise, and L12.H3@resample its z (heads and KV groups)
    L12.H3@noise  the part stays, and noise of the norm of what it writes is added to it (any of the first five rows);
                  L12.H3@noise3 draws it with seed 3 in place of 0
    L12x2         the layer run twice: its output goes through it again; L8-14x2 runs each of these twice in a row
    (L8-14)x2     the block run twice: the output of layer 14 goes through layers 8 to 14 again
    L12[1:]       the part is ablated from position 1 on, so that the first token is spared; L12.H3[1:]@mean likewise
    L12[7]        the part is ablated at position 7 alone; L12[3:9] from 3 to 8; L12.attn[7]@resample likewise
    L12*0.9       what the part writes is multiplied by a number (any of the first five rows); L12[1:]*0.9 likewise
    L12@calm      what the part writes is replaced by what a function of yours makes of it (any of the first five rows,
                  see `depthlens.mode`)
    L12@int4      the part computes with its own weights rounded to 4 bits, or 8 (@int8; any of the first five rows,
                  see `depthlens.models.quantised`)
    L12.H3@donor  the part gets the weights of a donor model (any of the above, see `depthlens.models.pairs`)
    embed@donor, unembed@donor   the donor's embedding; its final norm and unembedding

Conditions are hashable, travel through JSON as their text form, and need no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import Any, cast

from depthlens import arguments
from depthlens.ablations import modes
from depthlens.ablations.heads import Head
from depthlens.ablations.modes import BLOCK, BUILT_IN, ENDS, FACTOR, NAMED, SEED
from depthlens.errors import UserError, unknown

INDEXED = {"head": "H", "kv": "KV"}  # sites that have a number, and the letters before it
SITES = ("layer", "attn", "mlp", *INDEXED, *ENDS, BLOCK)
# sites of one part, as the words of a sweep (`expand`)
WORDS = {"layer": "layers", "attn": "attn", "mlp": "mlp", "head": "heads", "kv": "kv"}
GRAMMAR = (
    "L12, L12.attn, L12.mlp, L12.H3, L12.KV1 or L8-11, each with an optional [1:] (from position 1 on), [7] or [3:9] "
    f"and an optional *0.9 (a factor), {', '.join(f'@{name}' for name in NAMED)} (@noise3 has seed 3); L12x2; "
    "(L8-14)x2; joined by +"
)

# what a field is where it does not fit
_NOTHING = {"layer": -1, "index": -1, "start": 0, "stop": 0, SEED: 0, FACTOR: 1.0}
_KINDS = {"head": "head", "kv": "KV group"}  # what the parts with numbers are called
_SIZED = ("blocks", "bottom", "top", "layers", "attn", "mlp", "pairs", "repeats")  # words that may have a number
_ALL_WORDS = (*dict.fromkeys((*WORDS.values(), *_SIZED)), "whole")

_PART = re.compile(r"L(\d+)(?:-(\d{1,5})|\.(attn|mlp)|\.(H|KV)(\d+))?|(embed|unembed)|\(L(\d+)-(\d{1,5})\)")
# what is ablated, then whether it runs twice, or from where on and how it is ablated
_POSITIONS = r"\[(?=[\d:])(\d*)(:?)(\d*)\]"
_MODE = rf"@(?!(?:{'|'.join(name for name in BUILT_IN if name not in NAMED)})$)([^\W\d]\w*)"
_FACTOR = r"\*(-?(?:\d+\.?\d*|\.\d+)(?:e-\d+)?)"
_SUFFIX = re.compile(rf"(.*?)(?:(x2)|(?:{_POSITIONS})?(?:{_MODE}|{_FACTOR})?)", re.DOTALL)
MOST = 1e6  # that a factor may be


@dataclass(frozen=True)
class Dims:
    """The sizes of a model, against which conditions are checked.

    Attributes:
        d_head: The width of one head's ``z``.
        headless: Layers of a hybrid model that have no attention heads.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    headless: Sequence[int] = ()

    @property
    def head_names(self) -> list[str]:
        """Every query head as a condition's text, layer by layer."""
        return [f"L{layer}.H{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    def query_heads(self, kv_head: int) -> range:
        """Query heads that read key/value head ``kv_head`` (consecutive, as in grouped-query attention)."""
        size = self.n_heads // self.n_kv_heads
        return range(kv_head * size, (kv_head + 1) * size)

    def indices(self, site: str, layer: int) -> range:
        """What `Ablation.index` can be at a site of a layer: numbers of heads, groups, last layers; or -1."""
        if site == BLOCK:
            return range(layer + 1, self.n_layers)
        if site in INDEXED:
            return range(0 if layer in self.headless else self.n_heads if site == "head" else self.n_kv_heads)
        return range(-1, 0)


@dataclass(frozen=True, order=True)
class Ablation:
    """One part that is removed or replaced.

    Attributes:
        layer: Layer number from 0; -1 for the sites ``embed`` and ``unembed``.
        site: ``layer``, ``attn``, ``mlp``, ``head``, ``kv``, ``embed``, ``unembed`` or ``block``.
        index: Head or KV group for the sites ``head`` and ``kv``, the last layer of a ``block``,
            else -1.
        mode: ``skip`` (whole layers only), ``zero`` (their parts), ``mean`` (of what the part adds; of a head or KV
            group: of its ``z``), ``resample`` (the same of a reference prompt), ``noise`` (added to what the part
            writes, which stays), ``scale`` (what the part writes is multiplied), ``int8`` or ``int4`` (its weights are
            rounded), ``donor`` (the only mode of ``embed`` and ``unembed``), ``twice`` (layers and blocks), or one of
            your own (`depthlens.mode`).
        start: First position at which the part is ablated, counted from 0 in each token sequence; 1 spares the first
            token. Where the part computes with other weights, or twice, always 0.
        stop: The position before which it ends; 0: the end of the sequence.
        seed: Of the noise; 0 for other modes.
        factor: By which what the part writes is multiplied; 1 for other modes than ``scale``.

    Example:
        >>> dl.parse_condition("L9.H3@mean").ablations[0].mode
        'mean'
    """

    layer: int
    site: str = "layer"
    index: int = -1
    mode: str = ""
    start: int = 0
    stop: int = 0
    seed: int = 0
    factor: float = 1.0

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise UserError(f"unknown ablation site {self.site!r}; allowed: {', '.join(SITES)}")
        if not self.mode and BUILT_IN[first := modes.allowed(self.site)[0]].kind == "removal":
            object.__setattr__(self, "mode", first)
        made = modes.of(self.mode)
        if not self.mode or self.site not in made.sites:
            what = f"mode {self.mode!r}" if self.mode else "removal"
            raise UserError(f"{what} does not fit site {self.site!r}; allowed: {', '.join(modes.allowed(self.site))}")
        free = {"layer": self.site not in ENDS, "index": self.site in (*INDEXED, BLOCK), made.number: True}
        free |= dict.fromkeys(("start", "stop"), made.has_positions)
        for name, nothing in _NOTHING.items():
            value, is_free = getattr(self, name), free.get(name, False)
            if not is_free and value != nothing:
                fault = f"{self}: {name} {value} does not fit site {self.site!r} and mode {self.mode!r}"
                raise UserError(f"{fault}; leave it out")
            if is_free and name == FACTOR:  # there is one zero
                object.__setattr__(self, name, 0.0 + arguments.number("an ablation's factor", value, -MOST, MOST))
            # sweeps make many, and rules take longer; torch computes with 64 bits
            elif is_free and (type(value) is not int or not 0 <= value < 2**63):
                object.__setattr__(self, name, arguments.whole(f"an ablation's {name}", value, 0, 2**63 - 1))

        if self.site == BLOCK and self.index <= self.layer:
            raise UserError(f"block {self.layer}-{self.index} is none of several layers; the first comes first")

    def __str__(self) -> str:
        if self.site in ENDS:
            return self.site + self.suffix
        if self.site == BLOCK:
            return f"(L{self.layer}-{self.index}){self.suffix}"
        part = f".{INDEXED[self.site]}{self.index}" if self.site in INDEXED else f".{self.site}"
        return f"L{self.layer}{'' if self.site == 'layer' else part}{self.suffix}"

    @property
    def suffix(self) -> str:
        """``[1:]@mean`` and the like; "" for a removal at all positions."""
        one = self.stop == self.start + 1
        places = "" if self.everywhere else f"[{self.start}]" if one else f"[{self.start}:{self.stop or ''}]"
        return places + self._how

    @property
    def manner(self) -> str:
        """How it is ablated, wherever: ``skip``, ``mean``, ``noise3``, ``*0.9`` and the like."""
        return self._how.removeprefix("@") if "{" in modes.of(self.mode).written else self.mode

    @property
    def _how(self) -> str:
        made = modes.of(self.mode)
        number = str(self.factor).removesuffix(".0") if made.number == FACTOR else self.seed or ""
        return made.written.format(self.mode, number)

    @property
    def kind(self) -> str:
        """What its mode does, in the words of `depthlens.ablations.modes`."""
        return modes.of(self.mode).kind

    @property
    def everywhere(self) -> bool:
        """Whether no position is spared."""
        return not (self.start or self.stop)


def refuse_overlap(ablations: Iterable[Ablation], what: str) -> None:
    """Raise a `UserError` where two blocks run twice of which each has layers in and outside of the other."""
    blocks = [a for a in ablations if a.site == BLOCK]
    for a, b in ((a, b) for a in blocks for b in blocks if a.layer < b.layer <= a.index < b.index):
        raise UserError(f"{what}: blocks {a} and {b} overlap; name such as are apart, or one within the other")


@dataclass(frozen=True)
class Condition:
    """A frozen set of ablations in sorted order; the empty one is the baseline.

    What is within a part that is replaced as a whole changes nothing; a head's own mode comes before its KV group's.

    Example:
        >>> condition = dl.parse_condition("L3+L9.H3@mean")
        >>> condition.layer, condition.uses("mean")
        (None, True)
    """

    ablations: tuple[Ablation, ...] = ()

    def __post_init__(self) -> None:
        if wrong := [item for item in self.ablations if not isinstance(item, Ablation)]:
            raise UserError(f"condition of {wrong[0]!r}: give ablations, or a text to depthlens.parse_condition")
        ordered = tuple(sorted(self.ablations))
        object.__setattr__(self, "ablations", ordered)
        parts = [(a.layer, a.site, a.index) for a in ordered]
        if len({*parts}) != len(parts):
            fix = "name it once, at one stretch of positions as in [3:6], or give two conditions"
            raise UserError(f"condition {'+'.join(map(str, ordered))!r} names one part twice; {fix}")
        refuse_overlap(ordered, f"condition {self}")
        others = [a for a in ordered if a.kind == "weights"]
        if others and self.uses("noise"):  # whose norm is taken by the weights that are there
            raise UserError(f"condition {self}: @noise and @{others[0].mode} do not go together; drop one of the two")

    def __str__(self) -> str:
        """Consecutive whole layers ablated alike are joined to a block such as ``L8-11``."""

        def block(item: tuple[int, Ablation]) -> tuple:
            i, ablation = item
            return (ablation.suffix, ablation.layer - i) if ablation.site == "layer" else (i,)

        texts = []
        for _, group in groupby(enumerate(self.ablations), block):
            first, *others = (ablation for _, ablation in group)
            texts.append(f"L{first.layer}-{others[-1].layer}{first.suffix}" if others else str(first))
        return "+".join(texts) or "baseline"

    def __bool__(self) -> bool:
        return bool(self.ablations)

    @property
    def layer(self) -> int | None:
        """The layer, where all ablations are in the same one."""
        layers = {a.layer if a.site != BLOCK else -1 for a in self.ablations}
        return layers.pop() if len(layers) == 1 and min(layers) >= 0 else None

    @property
    def head(self) -> int | None:
        """The query head, where the condition is exactly one."""
        return self.ablations[0].index if [a.site for a in self.ablations] == ["head"] else None

    @property
    def modes(self) -> set[str]:
        """The modes that its ablations have."""
        return {a.mode for a in self.ablations}

    def uses(self, *what: str) -> bool:
        """Whether an ablation has a mode of one of these names or kinds, or one that needs one of these things.

        See `depthlens.ablations.modes`.
        """
        return any({made.name, made.kind, made.needs} & {*what} for made in map(modes.of, self.modes))

    def validate(self, dims: Dims) -> Condition:
        """Check every ablation against a model; returns self.

        Raises:
            UserError: a part does not exist in the model, or a mode is not known.
        """
        for a in self.ablations:
            modes.require(a.mode)
            if (layer := a.index if a.site == BLOCK else a.layer) >= dims.n_layers:
                fault = f"condition {self}: layer {layer} does not exist"
                raise UserError(f"{fault}; layers are 0..{dims.n_layers - 1}")
            indices = dims.indices(a.site, a.layer)
            if a.index not in indices:
                kind = _KINDS[a.site]
                fault = f"{kind} {a.index} does not exist; {kind}s are 0..{len(indices) - 1}"
                none = f"layer {a.layer} has no {kind}s; remove L{a.layer}.attn"
                raise UserError(f"condition {self}: {fault if indices else none}")
        return self


BASELINE = Condition()


def parse_condition(text: str) -> Condition:
    """Parse the text form of a condition; ``str`` of the result is its canonical form.

    Raises:
        UserError: a part does not follow the grammar.

    Example:
        >>> str(dl.parse_condition("L9.H3 + L3-4"))
        'L3-4+L9.H3'
    """
    if not isinstance(text, str):
        raise UserError(f"condition {text!r}: write {GRAMMAR}")
    if text.strip() == "baseline":
        return BASELINE
    ablations: list[Ablation] = []
    for part in map(str.strip, text.split("+")):
        named, how = _split(part)
        if not (match := _PART.fullmatch(named)):
            raise UserError(f"condition {text!r}: cannot read {part!r}; write {GRAMMAR}")
        first, last, sublayer, letters, number, end, start, stop = match.groups()
        bottom, top = int(first or start or -1), int(last or stop or first or -1)
        if top < bottom:
            raise UserError(f"condition {text!r}: block {bottom}-{top} runs backwards; write L{top}-{bottom}")
        if start and top > bottom:
            ablations.append(Ablation(bottom, BLOCK, top, **how))
            continue
        site = next((site for site, of in INDEXED.items() if of == letters), sublayer or end or "layer")
        ablations += [Ablation(layer, site, int(number or -1), **how) for layer in range(bottom, top + 1)]
    return Condition(tuple(ablations))


def chosen(conditions: Any, known: Iterable[str]) -> list[str]:
    """Conditions of the known ones in canonical form, however they are written; any other is refused."""
    known = list(known)
    given = arguments.names("condition", conditions, "L12")
    canonical = [text if text in known else str(parse_condition(text)) for text in given]
    return arguments.chosen("condition", canonical, known)


def _split(text: str) -> tuple[str, dict[str, Any]]:
    """What is ablated (a part, or a word such as ``layers``), and the fields of `Ablation` that follow it."""
    # every text matches: the last groups are optional and the first takes the rest
    named, twice, start, colon, stop, name, factor = cast(re.Match[str], _SUFFIX.fullmatch(text)).groups()
    mode, seed = modes.numbered("twice" if twice else "scale" if factor else name or "")
    first = int(start or 0)
    last = int(stop or 0) if colon else first + 1 if start else 0
    if last and last <= first:
        raise UserError(f"condition {text!r}: positions {first} to {last} are none; write [{first}] or [{first}:]")
    return named, {"mode": mode, "start": first, "stop": last, SEED: seed, FACTOR: float(factor or 1)}


def heads_condition(heads: Sequence[tuple[int, int]]) -> Condition:
    """The condition that removes heads together: zero ablation of their z."""
    return parse_condition("+".join(str(Head(*head)) for head in heads) or "baseline")


def expand(spec: str | Iterable[str | Condition], dims: Dims) -> list[Condition]:
    """The conditions that a specification means, baseline first.

    Args:
        spec: Words and conditions, as a comma-separated text or a sequence. Words, each with an optional first position
            and mode as in ``layers@mean``, ``layers[1:]`` or ``heads[1:]@noise3``: ``layers``, ``attn``, ``mlp``,
            ``heads``, ``kv``; ``layersx2``; ``layers:N``, ``attn:N`` and ``mlp:N`` (N of them, evenly
            spread over the depth; all where there are fewer); ``pairs`` (every two layers; ``pairs:N``: every two of N
            that are spread so); ``blocks:N`` (all contiguous blocks of at most N layers); ``repeats`` (every block of
            two layers or more run twice, as in ``(L8-14)x2``; ``repeats:N``: those of N); ``bottom`` and ``top`` (the
            lowest, or highest, 1, 2 .. n_layers layers; ``bottom:N`` and ``top:N`` grow by N layers, in the end to
            all); ``whole@donor`` (every layer and both embeddings: the donor itself).
        dims: The model's sizes.

    Raises:
        UserError: unknown word, malformed condition, or a part that the model does not have.
    """
    allowed = "layers, attn, mlp, heads, kv, blocks:N, layers:N, pairs[:N], repeats[:N], bottom[:N], top[:N]"
    items = [t for t in spec.split(",") if t.strip()] if isinstance(spec, str) else spec
    if not isinstance(items, Iterable) or isinstance(items, Mapping) or not (items := list(items)):
        raise UserError(f"ablate {spec!r}: give {allowed} or conditions")
    conditions = [BASELINE]
    for item in items:
        of_word = _of_word(item.strip(), dims) if isinstance(item, str) else None
        conditions += of_word or [item if isinstance(item, Condition) else parse_condition(item)]
    return list(dict.fromkeys(condition.validate(dims) for condition in conditions))


def _of_word(text: str, dims: Dims) -> list[Condition] | None:
    """The conditions of a word such as ``layers[1:]``; None where a text is not one."""
    word, how = _split(text)
    name, colon, size = word.partition(":")
    if text.isalpha() and text not in (*_ALL_WORDS, "baseline", *ENDS):
        raise unknown("ablation", text, _ALL_WORDS, "conditions such as L12.H3 are allowed, too")
    if name not in _ALL_WORDS or (colon and name not in _SIZED):
        return None
    if (colon or name == "blocks") and not (size.isdecimal() and int(size)):
        raise UserError(f"size {size!r} in {word!r}; give {name}:N with N a whole number, at least 1")
    n_layers, n = dims.n_layers, int(size or 0)
    layers = range(n_layers)
    of_all = min(n or n_layers, n_layers)
    spread = [(2 * i + 1) * n_layers // (2 * of_all) for i in range(of_all)]  # the middle of each n-th of the depth
    if site := next((site for site, of in WORDS.items() if of == name), None):
        return [Condition((Ablation(layer, site, i, **how),)) for layer in spread for i in dims.indices(site, layer)]
    sizes = range(1, min(n, n_layers) + 1) if name == "blocks" else [n] if n else range(2, n_layers + 1)
    lengths = [*range(n or 1, n_layers, n or 1), n_layers]
    runs: dict[str, Sequence[Sequence[int]]] = {"pairs": [*combinations(spread, 2)], "whole": [layers]}
    runs |= {"bottom": [layers[:k] for k in lengths], "top": [layers[-k:] for k in lengths]}
    runs["blocks"] = runs["repeats"] = [layers[i : i + k] for k in sizes for i in range(n_layers - k + 1)]
    if not runs[name]:
        raise UserError(f"{text!r}: no such {name} in {n_layers} layers; give {name}:N with another N")
    if name == "repeats":
        if text != word:
            raise UserError(f"{text!r}: a repeat has no mode and no position; give repeats, or repeats:N for one size")
        return [parse_condition(f"(L{run[0]}-{run[-1]})x2") for run in runs[name]]
    ends = [Ablation(-1, end, **how) for end in ENDS] if name == "whole" else []
    return [Condition((*(Ablation(layer, **how) for layer in run), *ends)) for run in runs[name]]
