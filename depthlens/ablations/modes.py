"""The modes, in one table that all others ask: what is done to a part, at which sites, and what that needs.

What each kind of mode does, and what follows from it:

- ``removal``: nothing takes the place of what a part writes. Any backend and a server can do it.
- ``reference``: what was measured over a reference takes its place. A whole layer is not passed then, as under a
  removal.
- ``change``: something made of what the part writes takes its place, so that the part has to be passed and has to be
  added to the residual stream as it is. What is made is a function here, or one of `depthlens.backends.changes`.
- ``weights``: the part computes with other weights. No position can be spared.
- ``repeat``: layers are passed again. No position can be spared.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from depthlens.errors import UserError, unknown

ENDS = ("embed", "unembed")  # sites outside the layers
BLOCK = "block"  # the site of layers from one to another, as one part
PARTS = ("layer", "attn", "mlp", "head", "kv")  # sites that write into the residual stream, or z of heads
SEED, FACTOR = "seed", "factor"


@dataclass(frozen=True, eq=False)
class Mode:
    """What is done to a part.

    Attributes:
        name: As in conditions.
        kind: ``removal``, ``reference``, ``change``, ``weights`` or ``repeat``; see above.
        sites: Which parts it can be done to.
        exported: At which of these the weights of a checkpoint can hold it, where no position is spared.
        needs: What comes from elsewhere: ``means`` of texts, a ``prompt`` or a ``donor``; "": nothing does.
        number: The field of `depthlens.ablations.conditions.Ablation` that says more, `SEED` or `FACTOR`; "": none.
        bits: Of weights that are rounded; 0: they are not.
        written: How a condition's text has it behind a part, with the name and the number.
        function: Of a change: what makes it, see `mode`; None: `depthlens.backends.changes` has what does.
        key: Of one's own: what stands for the function in a store; None: nothing is stored.
    """

    name: str
    kind: str
    sites: tuple[str, ...] = PARTS
    exported: tuple[str, ...] = ()
    needs: str = ""
    number: str = ""
    bits: int = 0
    written: str = "@{}{}"
    function: Callable[..., Any] | None = None
    key: str | None = None

    @property
    def has_positions(self) -> bool:
        """Whether some positions can be spared."""
        return self.kind in ("removal", "reference", "change")

    @property
    def remote(self) -> bool:
        """Whether a server, which has no depthlens and whose weights are not here, can do it."""
        return self.kind in ("removal", "reference") and self.needs != "prompt"


# of a site the first one is the removal, where there is one
BUILT_IN = {
    made.name: made
    for made in (
        Mode("skip", "removal", ("layer",), exported=("layer",), written=""),
        Mode("zero", "removal", PARTS[1:], exported=PARTS[1:], written=""),
        Mode("mean", "reference", needs="means"),
        Mode("resample", "reference", needs="prompt"),
        Mode("noise", "change", number=SEED),
        Mode("scale", "change", number=FACTOR, exported=PARTS[1:], written="*{1}"),
        Mode("int8", "weights", bits=8, exported=PARTS[:3]),
        Mode("int4", "weights", bits=4, exported=PARTS[:3]),
        Mode("donor", "weights", (*PARTS, *ENDS), needs="donor"),
        Mode("twice", "repeat", ("layer", BLOCK), exported=("layer", BLOCK), written="x2"),
    )
}
NAMED = [name for name, made in BUILT_IN.items() if made.written.startswith("@")]  # modes that follow an @
_own: dict[str, Mode] = {}


def mode(name: str, function: Callable[..., Any] | None = None, *, key: str | None = None) -> Any:
    """Give a name to a mode of your own, so that conditions such as ``L12@calm`` and ``L12.attn[5:]@calm`` have it.

    The function is called as ``function(written, positions, tokens)`` and returns what takes the place of ``written``:
    a tensor of the same shape, dtype and device.

    - ``written``: what the part writes. Shape [row, pos, d_model]: of a layer what it adds to the residual stream, of
      attention and MLP their output. Of a head its z, shape [row, pos, d_head], and of a KV group those of its query
      heads side by side. It may be written to.
    - ``positions``: where each token stands in its text, from 0. Shape [row, pos].
    - ``tokens``: their ids. Shape [row, pos].

    Rows of many texts and conditions come together, in pieces and in any order, and while texts are written each token
    comes alone. So what the function returns at a place may depend on what is written there, on the position and on
    the token, and on nothing else. This is tried with random numbers when a model first meets the mode.

    Args:
        name: A name that Python could have for a variable. The same name again replaces the function.
        function: See above; None: the next function is the one, as in ``@dl.mode("calm")``.
        key: What stands for the function in a store: another function, or other numbers in it, need another key.
            Without one no answer under the mode is kept.

    Returns:
        The function.

    Raises:
        UserError: a name that conditions have already or cannot have, a function that cannot be called, or a key that
            is not a text.

    Example:
        >>> @dl.mode("half")
        ... def half(written, positions, tokens):
        ...     return written / 2
        >>> dl.next_token(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo", ["L2@half"], k=1).columns.tolist()
        ['baseline', 'L2@half']
    """
    if not isinstance(name, str) or not name.isidentifier() or numbered(name)[0] in BUILT_IN:
        raise UserError(f"mode {name!r}: give a name of letters, digits and _ that no mode has ({', '.join(BUILT_IN)})")
    if not (key is None or (isinstance(key, str) and key)):
        raise UserError(f"key {key!r} of mode {name!r}: give a text such as 'v1', or leave it out")
    if function is None:
        return partial(mode, name, key=key)
    if not callable(function):
        raise UserError(f"mode {name!r} of {function!r}: give a function of what is written, positions and tokens")
    _own[name] = Mode(name, "change", function=function, key=key)
    return function


def of(name: str) -> Mode:
    """The mode of a name; one that is not known is a mode of one's own whose function is not here."""
    return BUILT_IN.get(name) or _own.get(name) or Mode(name, "change")


def numbered(name: str) -> tuple[str, int]:
    """The mode and the seed of what follows an @, such as ``noise3``."""
    plain = name.rstrip("0123456789")
    seeded = plain in BUILT_IN and BUILT_IN[plain].number == SEED
    return (plain, int(name[len(plain) :] or 0)) if seeded else (name, 0)


def keys(names: Collection[str]) -> dict[str, str | None]:
    """What stands in a store for the functions of modes of one's own, by name."""
    return {name: of(name).key for name in names if name not in BUILT_IN}


def allowed(site: str) -> list[str]:
    """Names of the modes of a site, without those of one's own."""
    return [name for name, made in BUILT_IN.items() if site in made.sites]


def require(name: str) -> None:
    """Raise a `UserError` where a mode is not known here."""
    if name not in BUILT_IN and name not in _own:
        raise unknown("mode", name, [*NAMED, *_own], "depthlens.mode names a function of yours")
