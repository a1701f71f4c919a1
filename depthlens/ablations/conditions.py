"""Ablations and conditions as plain data, their text form, and their check against a model.

A condition is a frozen set of ablations. Its text form is the same on the command line, in tables and in plots::

    baseline      nothing removed
    L12           layer skipped: its output is its input                          (mode skip)
    L12.attn      attention contribution to the residual stream set to zero       (mode zero)
    L12.mlp       MLP contribution set to zero
    L12.H3        output z of one query head set to zero before the output projection
    L12.KV1       z of every query head that reads key/value head 1 set to zero
    L12.E17       one expert removed: the router chooses among the others
    L8-11         layers 8 to 11 skipped, both ends included
    L3.H1+L9.H2   several at once
    L12@mean      what the layer adds is replaced by the mean of what it adds over a named reference set: its output is
                  its input plus that mean; L12.attn@mean and L12.mlp@mean likewise
    L12.H3@mean   z replaced by its mean over the reference set (heads and KV groups)
    L12@resample  what the layer adds is replaced by what it adds to a stated reference prompt at the same position;
                  L12.attn@resample and L12.mlp@resample likewise, and L12.H3@resample its z (heads and KV groups)
    L12.H3@noise  the part stays, and noise of the norm of what it writes is added to it (any of the first five rows);
                  L12.H3@noise3 draws it with seed 3 in place of 0
    L12x2         the layer run twice: its output goes through it again
    L12[1:]       the part is ablated from position 1 on, so that the first token is spared; L12.H3[1:]@mean likewise
    L12@int4      the part computes with its own weights rounded to 4 bits, or 8 (@int8; any of the first five rows,
                  see `depthlens.models.quantised`)
    L12.H3@donor  the part gets the weights of a donor model (any of the above, see `depthlens.models.pairs`)
    embed@donor, unembed@donor   the donor's embedding; its final norm and unembedding

Conditions are hashable, travel through JSON as their text form, and need no torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypedDict

from depthlens.errors import UserError

ENDS = ("embed", "unembed")  # sites outside the layers
INDEXED = {"head": "H", "kv": "KV", "expert": "E"}  # sites that have a number, and the letters before it
SITES = ("layer", "attn", "mlp", *INDEXED, *ENDS)
# sites of one part, as the words of a sweep (`depthlens.ablations.sweep_words`)
WORDS = {"layer": "layers", "attn": "attn", "mlp": "mlp", "head": "heads", "kv": "kv", "expert": "experts"}
ROUNDED = {"int8": 8, "int4": 4}  # modes that round weights, and to how many bits
WEIGHTS = ("donor", *ROUNDED)  # modes under which a part computes with other weights
MODES = ("mean", "resample", "noise", *WEIGHTS)  # those that are written after an @; removal is not
GRAMMAR = (
    "L12, L12.attn, L12.mlp, L12.H3, L12.KV1 or L8-11, each with an optional [1:] (from position 1 on) and an optional "
    "@mean, @resample, @noise, @int8, @int4 or @donor; L12.E17; L12x2; joined by +"
)

_PART = re.compile(r"(?:L(\d+)(?:-(\d+))?(?:\.(attn|mlp|(H|KV|E)(\d+)))?|(embed|unembed))")
# what is ablated, whether it runs twice, from where on it is ablated, and how
_SUFFIX = re.compile(r"(.*?)(x2)?(?:\[(\d+):\])?(?:@(.*))?", re.DOTALL)


@dataclass(frozen=True)
class Dims:
    """The sizes of a model, against which conditions are checked.

    Attributes:
        d_head: The width of one head's ``z``.
        n_experts: Experts among which each layer's router chooses; 0 for a layer without. () where no layer has any.
        headless: Layers of a hybrid model that have no attention heads.
    """

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int
    n_experts: Sequence[int] = ()
    headless: Sequence[int] = ()

    def __post_init__(self) -> None:
        for name in ("n_experts", "headless"):  # a record holds lists, and sizes are compared and hashed
            object.__setattr__(self, name, tuple(getattr(self, name)))

    @property
    def head_names(self) -> list[str]:
        """Every query head as a condition's text, layer by layer."""
        return [f"L{layer}.H{head}" for layer in range(self.n_layers) for head in range(self.n_heads)]

    def query_heads(self, kv_head: int) -> range:
        """Query heads that read key/value head ``kv_head`` (consecutive, as in grouped-query attention)."""
        size = self.n_heads // self.n_kv_heads
        return range(kv_head * size, (kv_head + 1) * size)


@dataclass(frozen=True, order=True)
class Ablation:
    """One part that is removed or replaced.

    Attributes:
        layer: Layer number from 0; -1 for the sites ``embed`` and ``unembed``.
        site: ``layer``, ``attn``, ``mlp``, ``head``, ``kv``, ``expert``, ``embed`` or ``unembed``.
        index: Head, KV group or expert for the sites ``head``, ``kv`` and ``expert``, else -1.
        mode: ``skip`` (whole layers only), ``zero`` (their parts), ``mean`` (of what the part adds; of a head or KV
            group: of its ``z``), ``resample`` (the same of a reference prompt), ``noise`` (added to what the part
            writes, which stays), ``int8`` or ``int4`` (its weights are rounded), ``donor`` (the only mode of ``embed``
            and ``unembed``), or ``twice`` (whole layers only). An expert can only be removed (``zero``).
        start: First position at which the part is ablated, counted from 0 in each token sequence; 1 spares the first
            token. Where the part computes with other weights, or twice, always 0.
        seed: Of the noise; 0 for other modes.
    """

    layer: int
    site: str = "layer"
    index: int = -1
    mode: str = ""
    start: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("layer", "index", "start", "seed"):
            value = getattr(self, name)
            if isinstance(value, bool) or not hasattr(value, "__index__"):
                raise UserError(f"{name} {value!r} of an ablation: give a whole number")
        if self.site not in SITES:
            raise UserError(f"unknown ablation site {self.site!r}; allowed: {', '.join(SITES)}")
        if self.site in ENDS and self.mode != "donor":
            raise UserError(f"{self.site} can only be taken from a donor; write {self.site}@donor")
        removal = "skip" if self.site == "layer" else "zero"
        if not self.mode:
            object.__setattr__(self, "mode", removal)
        allowed = [removal]
        if self.site != "expert":
            allowed += MODES
        if self.site == "layer":
            allowed.append("twice")
        if self.mode not in allowed:
            raise UserError(f"mode {self.mode!r} does not fit site {self.site!r}; allowed: {', '.join(allowed)}")
        if self.site in ENDS:
            object.__setattr__(self, "layer", -1)
        elif self.layer < 0:
            raise UserError(f"layer {self.layer} is negative; layers count from 0")
        if (self.index >= 0) != (self.site in INDEXED):
            fault = f"index {self.index} does not fit site {self.site!r}"
            raise UserError(f"{fault}; heads, KV groups and experts have one, other sites -1")
        self._check_start_and_seed()

    def _check_start_and_seed(self) -> None:
        for name in ("start", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} {getattr(self, name)} of an ablation is negative; give a whole number from 0")
        if self.start and self.mode in (*WEIGHTS, "twice"):
            whose = {"donor": "a donor's part", "twice": "a layer run twice"}.get(
                self.mode, "a part with rounded weights"
            )
            raise UserError(f"{self}: {whose} computes at all positions; leave [{self.start}:] out")
        if self.seed and self.mode != "noise":
            raise UserError(f"seed {self.seed} does not fit mode {self.mode!r}; only noise has one, leave it out")

    def __str__(self) -> str:
        if self.site in ENDS:
            return self.site + self.suffix
        part = f".{INDEXED[self.site]}{self.index}" if self.site in INDEXED else f".{self.site}"
        return f"L{self.layer}{'' if self.site == 'layer' else part}{self.suffix}"

    @property
    def suffix(self) -> str:
        """``[1:]@mean`` and the like; "" for a removal at all positions."""
        if self.mode == "twice":
            return "x2"
        places = f"[{self.start}:]" if self.start else ""
        mode = "" if self.mode in ("skip", "zero") else f"@{self.mode}{self.seed or ''}"
        return places + mode


@dataclass(frozen=True)
class Condition:
    """A frozen set of ablations in sorted order; the empty one is the baseline.

    What is within a part that is replaced as a whole changes nothing; a head's own mode comes before its KV group's.
    """

    ablations: tuple[Ablation, ...] = ()

    def __post_init__(self) -> None:
        for item in self.ablations:
            if not isinstance(item, Ablation):
                raise UserError(f"condition of {item!r}: give ablations, or a text to depthlens.parse_condition")
        ordered = tuple(sorted(self.ablations))
        object.__setattr__(self, "ablations", ordered)
        parts = [(a.layer, a.site, a.index) for a in ordered]
        if len({*parts}) != len(parts):
            raise UserError(f"condition {'+'.join(map(str, ordered))!r} names one part twice; name it once")
        modes = {a.mode for a in ordered}
        if "noise" in modes and (others := [f"@{mode}" for mode in WEIGHTS if mode in modes]):
            raise UserError(f"condition {self}: @noise and {others[0]} do not go together; drop one of the two")
        other_mlps = {a.layer for a in ordered if a.mode in WEIGHTS and a.site in ("layer", "mlp")}
        if expert := next((a for a in ordered if a.site == "expert" and a.layer in other_mlps), None):
            raise UserError(f"condition {self}: {expert} is of an MLP that has other weights; drop one of the two")

    def __str__(self) -> str:
        return "+".join(_block_texts(self.ablations)) or "baseline"

    def __bool__(self) -> bool:
        return bool(self.ablations)

    @property
    def layer(self) -> int | None:
        """The layer, where all ablations are in the same one."""
        layers = {a.layer for a in self.ablations}
        return layers.pop() if len(layers) == 1 and min(layers) >= 0 else None

    @property
    def head(self) -> int | None:
        """The query head, where the condition is exactly one."""
        return self.ablations[0].index if [a.site for a in self.ablations] == ["head"] else None

    @property
    def first_layer(self) -> int | None:
        """The first layer that the condition changes; layers below equal the baseline (0 for the embeddings)."""
        return max(0, self.ablations[0].layer) if self.ablations else None

    def runs_twice(self, layer: int) -> bool:
        """Whether a layer runs twice."""
        return any((a.layer, a.mode) == (layer, "twice") for a in self.ablations)

    def uses(self, *modes: str) -> bool:
        """Whether an ablation has one of these modes."""
        return any(a.mode in modes for a in self.ablations)

    @property
    def uses_positions(self) -> bool:
        """Whether what it does at a token depends on where the token stands."""
        return any(a.start or a.mode in ("mean", "resample", "noise") for a in self.ablations)

    def validate(self, dims: Dims) -> Condition:
        """Check every ablation against a model; returns self.

        Raises:
            UserError: a part does not exist in the model.
        """
        for a in self.ablations:
            parts = [("layer", a.layer, dims.n_layers)]
            parts += [("head", a.index, dims.n_heads)] if a.site == "head" else []
            parts += [("KV group", a.index, dims.n_kv_heads)] if a.site == "kv" else []
            if a.site == "expert" and a.layer < dims.n_layers:
                parts.append(("expert", a.index, self._n_experts(a, dims)))
            if a.site in ("head", "kv") and a.layer in dims.headless:
                those = f"{len(dims.headless)} of {dims.n_layers} layers have none, e.g. L{dims.headless[0]}"
                raise UserError(
                    f"condition {self}: layer {a.layer} has no attention heads ({those}); remove L{a.layer}.attn"
                )
            for kind, index, count in parts:
                if index >= count:
                    fault = f"condition {self}: {kind} {index} does not exist"
                    raise UserError(f"{fault}; {kind.split()[-1]}s are 0..{count - 1}")
        for layer, n_experts in enumerate(dims.n_experts):
            if sum((a.layer, a.site) == (layer, "expert") for a in self.ablations) == n_experts > 0:
                fix = f"keep one, or write L{layer}.mlp"
                raise UserError(f"condition {self}: layer {layer} has {n_experts} experts, and all are removed; {fix}")
        return self

    def _n_experts(self, ablation: Ablation, dims: Dims) -> int:
        """Experts of the ablation's layer, which is refused where it has none."""
        if not any(dims.n_experts):
            raise UserError(f"condition {self}: the model has no experts; name layers, attention, MLPs or heads")
        if not dims.n_experts[ablation.layer]:
            those = ", ".join(f"L{layer}" for layer, n in enumerate(dims.n_experts) if n)
            raise UserError(f"condition {self}: layer {ablation.layer} has no experts; {those} have some")
        return dims.n_experts[ablation.layer]


BASELINE = Condition()


class How(TypedDict):
    """How a part is ablated, see `Ablation`."""

    mode: str
    start: int
    seed: int


def _block(item: tuple[int, Ablation]) -> tuple:
    """What the ablations of one block have in common; takes the place of an ablation in its condition, too."""
    i, ablation = item
    return (ablation.suffix, ablation.layer - i) if ablation.site == "layer" else (i,)


def _block_texts(ablations: tuple[Ablation, ...]) -> list[str]:
    """Text of each ablation; consecutive whole layers ablated alike are joined to a block such as ``L8-11``."""
    blocks = [[ablation for _, ablation in group] for _, group in groupby(enumerate(ablations), _block)]
    texts = []
    for first, *others in blocks:
        texts.append(f"L{first.layer}-{others[-1].layer}{first.suffix}" if others else str(first))
    return texts


def parse_condition(text: str) -> Condition:
    """Parse the text form of a condition; ``str`` of the result is its canonical form.

    Raises:
        UserError: a part does not follow the grammar.
    """
    if not isinstance(text, str):
        raise UserError(f"condition {text!r}: write {GRAMMAR}")
    if text.strip() == "baseline":
        return BASELINE
    ablations: list[Ablation] = []
    for part in text.strip().split("+"):
        named, how = split(part.strip())
        match = _PART.fullmatch(named)
        if not match:
            raise UserError(f"condition {text!r}: cannot read {part.strip()!r}; write {GRAMMAR}")
        first, last, part_of_layer, letter, number, embedding = match.groups()
        if how["mode"] and how["mode"] not in (*MODES, "twice"):
            fix = "write @mean, @resample, @noise (@noise3 has seed 3), @int8, @int4 or @donor, or nothing to remove"
            raise UserError(f"condition {text!r}: unknown mode '@{how['mode']}'; {fix}")
        if embedding:
            ablations.append(Ablation(-1, embedding, **how))
            continue
        bottom, top = int(first), int(last or first)
        if top < bottom:
            raise UserError(f"condition {text!r}: block {bottom}-{top} runs backwards; write L{top}-{bottom}")
        if last and part_of_layer:
            raise UserError(f"condition {text!r}: a block is of whole layers; join sublayers with +")
        site = next((site for site, letters in INDEXED.items() if letters == letter), part_of_layer or "layer")
        index = int(number or -1)
        ablations += [Ablation(layer, site, index, **how) for layer in range(bottom, top + 1)]
    return Condition(tuple(ablations))


def split(text: str) -> tuple[str, How]:
    """What is ablated (a part, or a word such as ``layers``), and the mode, start and seed that follow it."""
    match = _SUFFIX.fullmatch(text)
    assert match  # its last groups are optional and its first takes the rest
    named, start, mode = match[1], int(match[3] or 0), match[4] or ""
    seeded = re.fullmatch(r"noise(\d+)", mode)
    if match[4] == "" or mode == "twice" or (match[2] and mode):
        named = text  # an @ with nothing after it, or what is not written so: nothing reads as a part
    elif match[2]:
        mode = "twice"
    return named, {"mode": "noise" if seeded else mode, "start": start, "seed": int(seeded[1]) if seeded else 0}


def heads_condition(heads: Sequence[Head], suffix: str = "") -> Condition:
    """The condition that removes heads together: zero ablation of their z, or what a suffix such as ``@mean`` says."""
    if suffix:
        return parse_condition("+".join(f"L{layer}.H{head}{suffix}" for layer, head in heads))
    return Condition(tuple(Ablation(layer, "head", head) for layer, head in heads))


Head = tuple[int, int]  # layer, head
