"""What is removed: ablations and conditions as plain data, their text form, and their check against a model.

A condition is a frozen set of ablations, written the same way on the command line, in tables and in plots::

    baseline      nothing removed
    L12           layer skipped: its output is its input                          (mode skip)
    L12.attn      attention contribution to the residual stream set to zero       (mode zero)
    L12.mlp       MLP contribution set to zero
    L12.H3        output z of one query head set to zero before the output projection
    L12.KV1       z of every query head that reads key/value head 1 set to zero
    L8-11         layers 8 to 11 skipped, both ends included
    L3.H1+L9.H2   several at once
    L12.H3@mean   replaced by the mean over a named reference set instead of removed (any of the above)
    L12.H3@resample   z replaced by that of a stated reference prompt at the same position (heads and KV groups)

No torch in here: conditions are hashable, travel through JSON as their text form and can be built anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from depthlens.errors import UserError

SITES = ("layer", "attn", "mlp", "head", "kv")
MODES = ("skip", "zero", "mean", "resample")
GRAMMAR = "L12, L12.attn, L12.mlp, L12.H3, L12.KV1 or L8-11, each with an optional @mean, joined by +"

_PART = re.compile(r"L(\d+)(?:-(\d+))?(?:\.(attn|mlp|H(\d+)|KV(\d+)))?(?:@(\w+))?")


@dataclass(frozen=True)
class Dims:
    """The sizes of a model, which conditions are checked against (`d_head`: width of one head's ``z``)."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_model: int
    d_head: int

    def query_heads(self, kv_head: int) -> range:
        """Query heads that read key/value head ``kv_head`` (consecutive, as in grouped-query attention)."""
        size = self.n_heads // self.n_kv_heads
        return range(kv_head * size, (kv_head + 1) * size)


@dataclass(frozen=True, order=True)
class Ablation:
    """One removed part.

    Attributes:
        layer: Layer number from 0.
        site: ``layer``, ``attn``, ``mlp``, ``head`` or ``kv``.
        index: Head or KV group for the sites ``head`` and ``kv``, else -1.
        mode: ``skip`` (whole layers only), ``zero`` (all other sites), ``mean``, or ``resample`` (heads and KV groups).
    """

    layer: int
    site: str = "layer"
    index: int = -1
    mode: str = ""

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise UserError(f"unknown ablation site {self.site!r}; allowed: {', '.join(SITES)}")
        removal = "skip" if self.site == "layer" else "zero"
        if not self.mode:
            object.__setattr__(self, "mode", removal)
        allowed = (removal, "mean", "resample") if self.site in ("head", "kv") else (removal, "mean")
        if self.mode not in allowed:
            raise UserError(f"mode {self.mode!r} does not fit site {self.site!r}; allowed: {', '.join(allowed)}")
        if self.layer < 0:
            raise UserError(f"layer {self.layer} is negative; layers count from 0")
        if (self.index >= 0) != (self.site in ("head", "kv")):
            fault = f"index {self.index} does not fit site {self.site!r}"
            raise UserError(f"{fault}: heads and KV groups have one")

    def __str__(self) -> str:
        return f"L{self.layer}{self._suffix}"

    @property
    def _suffix(self) -> str:
        own = {"layer": "", "head": f".H{self.index}", "kv": f".KV{self.index}"}
        return own.get(self.site, f".{self.site}") + (f"@{self.mode}" if self.mode in ("mean", "resample") else "")

    def covers(self, other: Ablation, dims: Dims | None = None) -> bool:
        """Whether removing ``self`` leaves ``other`` nothing to remove (membership of a group needs ``dims``)."""
        if self.layer != other.layer or self == other:
            return False
        if self.site == other.site:
            return self.index == other.index
        if self.site == "layer":
            return True
        if self.site == "attn":
            return other.site in ("head", "kv")
        if self.site == "kv" and other.site == "head" and dims is not None:
            return other.index in dims.query_heads(self.index)
        return False


@dataclass(frozen=True)
class Condition:
    """A frozen set of ablations, kept sorted; the empty one is the baseline."""

    ablations: tuple[Ablation, ...] = ()

    def __post_init__(self) -> None:
        ordered = tuple(sorted(self.ablations))
        if len(set(ordered)) != len(ordered):
            raise UserError(f"condition {'+'.join(map(str, ordered))!r} names one part twice; name it once")
        object.__setattr__(self, "ablations", ordered)
        self._refuse_overlap(None)

    def _refuse_overlap(self, dims: Dims | None) -> None:
        for one in self.ablations:
            for other in self.ablations:
                if one.covers(other, dims):
                    fault = f"condition {self}: {other} has no effect of its own beside {one}"
                    raise UserError(f"{fault}; drop one of the two")

    def __str__(self) -> str:
        if not self.ablations:
            return "baseline"
        return "+".join(_runs(self.ablations))

    def __bool__(self) -> bool:
        return bool(self.ablations)

    @property
    def layer(self) -> int | None:
        """The layer, where all ablations lie in one."""
        layers = {a.layer for a in self.ablations}
        return layers.pop() if len(layers) == 1 else None

    @property
    def head(self) -> int | None:
        """The query head, where the condition is exactly one."""
        return self.ablations[0].index if [a.site for a in self.ablations] == ["head"] else None

    @property
    def first_layer(self) -> int | None:
        """The first layer that the condition touches: everything below it equals the baseline."""
        return self.ablations[0].layer if self.ablations else None

    @property
    def uses_mean(self) -> bool:
        return any(a.mode == "mean" for a in self.ablations)

    @property
    def uses_resample(self) -> bool:
        return any(a.mode == "resample" for a in self.ablations)

    def validate(self, dims: Dims) -> Condition:
        """Check every ablation against a model; returns self.

        Raises:
            UserError: naming the part that does not exist and the range that does.
        """

        def within(what: str, index: int, count: int) -> None:
            if index >= count:
                fault = f"condition {self}: {what} {index} does not exist"
                raise UserError(f"{fault}; {what.split()[-1]}s are 0..{count - 1}")

        for a in self.ablations:
            within("layer", a.layer, dims.n_layers)
            if a.site == "head":
                within("head", a.index, dims.n_heads)
            if a.site == "kv":
                within("KV group", a.index, dims.n_kv_heads)
        self._refuse_overlap(dims)
        return self


BASELINE = Condition()


def _runs(ablations: tuple[Ablation, ...]) -> list[str]:
    """Text of each ablation, runs of consecutive whole layers of one mode joined into ``L8-11``."""
    texts: list[str] = []
    i = 0
    while i < len(ablations):
        a, j = ablations[i], i
        if a.site == "layer":
            while (
                j + 1 < len(ablations)
                and ablations[j + 1].site == "layer"
                and ablations[j + 1].mode == a.mode
                and ablations[j + 1].layer == ablations[j].layer + 1
            ):
                j += 1
        texts.append(str(a) if i == j else f"L{a.layer}-{ablations[j].layer}{a._suffix}")
        i = j + 1
    return texts


def parse(text: str) -> Condition:
    """Parse the text form of a condition; ``str`` of the result is its canonical form.

    Raises:
        UserError: naming the part that does not follow the grammar.
    """
    if text.strip() == "baseline":
        return BASELINE
    ablations: list[Ablation] = []
    for part in text.strip().split("+"):
        match = _PART.fullmatch(part.strip())
        if not match:
            raise UserError(f"condition {text!r}: cannot read {part.strip()!r}; write {GRAMMAR}")
        first, last, place, head, kv, mode = match.groups()
        if mode not in (None, "mean", "resample"):
            fix = "write @mean or @resample, or nothing to remove"
            raise UserError(f"condition {text!r}: unknown mode '@{mode}'; {fix}")
        lo, hi = int(first), int(last or first)
        if hi < lo:
            raise UserError(f"condition {text!r}: block {lo}-{hi} runs backwards; write L{hi}-{lo}")
        if last and place:
            raise UserError(f"condition {text!r}: a block is of whole layers; join sublayers with +")
        site = "head" if head else "kv" if kv else place or "layer"
        index = int(head or kv or -1)
        ablations += [Ablation(layer, site, index, mode or "") for layer in range(lo, hi + 1)]
    return Condition(tuple(ablations))


def expand(spec: str | Iterable[str | Condition], dims: Dims) -> list[Condition]:
    """Turn what the user asks to ablate into conditions, baseline first.

    Args:
        spec: ``layers``, ``attn``, ``mlp``, ``heads``, ``kv``, ``blocks:N`` (all contiguous blocks of 2..N
            layers and single layers), each with an optional mode as in ``layers@mean``; or conditions, as a
            comma-separated text or a sequence.
        dims: The model's sizes.

    Raises:
        UserError: unknown word, malformed condition, or a part the model does not have.
    """
    if isinstance(spec, str):
        word, _, mode = spec.strip().partition("@")
        whole = _whole(word, mode, dims)
        items: list[str | Condition] = [t for t in spec.split(",") if t.strip()] if whole is None else whole
    else:
        items = list(spec)
    if not items:
        words = "layers, attn, mlp, heads, kv, blocks:N or conditions"
        raise UserError(f"nothing to ablate in {spec!r}; give {words}")
    conditions = [BASELINE]
    for item in items:
        condition = (parse(item) if isinstance(item, str) else item).validate(dims)
        if condition not in conditions:
            conditions.append(condition)
    return conditions


def _whole(word: str, mode: str, dims: Dims) -> list[Condition] | None:
    """Conditions of a whole-model word, or None where ``word`` is not one."""
    layers = range(dims.n_layers)
    name, _, size = word.partition(":")
    if name == "blocks":
        if not size.isdigit() or not 1 <= int(size) <= dims.n_layers:
            fault = f"block size {size!r} in {word!r}"
            raise UserError(f"{fault}; give blocks:N with N from 1 to {dims.n_layers}")
        parts = [
            [Ablation(layer, mode=mode) for layer in range(start, start + n)]
            for n in range(1, int(size) + 1)
            for start in range(dims.n_layers - n + 1)
        ]
    elif word == "layers":
        parts = [[Ablation(layer, mode=mode)] for layer in layers]
    elif word in ("attn", "mlp"):
        parts = [[Ablation(layer, word, mode=mode)] for layer in layers]
    elif word in ("heads", "kv"):
        site, count = ("head", dims.n_heads) if word == "heads" else ("kv", dims.n_kv_heads)
        parts = [[Ablation(layer, site, i, mode)] for layer in layers for i in range(count)]
    else:
        return None
    return [Condition(tuple(p)) for p in parts]
