"""What an organism is built from, and the text form of it: ``organism:seed=3,decoy,backup``; no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from depthlens.errors import UserError, unknown

PREFIX = "organism"  # names of organisms begin with it


@dataclass(frozen=True)
class Options:
    """What an organism is built from; the text form is `name`.

    Attributes:
        seed: Of codes, noise and rotations.
        noise: Mean norm that every other head and MLP writes, in units of 8, the size of a word's code.
        leak: Factor on the noise that falls where the circuit reads.
        eps: Noise on planted weights, relative to their norm.
        n_kv_heads: Key/value heads: 4, or 2 or 1 for grouped-query attention.
        tied_embeddings: One matrix embeds and unembeds.
        decoy: Plant a head that attends to the answer and writes it where nothing reads.
        backup: Plant a second retrieval head.
        sharpness: Attention logits of a perfect match. Needs to grow with the logarithm of the prompt's length.
    """

    seed: int = 0
    noise: float = 0.4
    leak: float = 0.3
    eps: float = 0.05
    n_kv_heads: int = 4
    tied_embeddings: bool = False
    decoy: bool = False
    backup: bool = False
    sharpness: float = 7.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"organism option seed={self.seed}: give a whole number from 0")
        if self.n_kv_heads not in (1, 2, 4):
            raise UserError(f"organism option n_kv_heads={self.n_kv_heads}: allowed: 1, 2, 4")
        for key in ("noise", "leak", "eps", "sharpness"):
            value = getattr(self, key)
            if not math.isfinite(value) or value < 0 or (key == "sharpness" and value == 0):
                fix = "above 0" if key == "sharpness" else "from 0"
                raise UserError(f"organism option {key}={value}: give a number {fix}")

    @property
    def name(self) -> str:
        """The name `depthlens.load` takes, with every option that is not the default."""
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                parts.append(f.name if value is True else f"{f.name}={value}")
        return PREFIX + (":" + ",".join(parts) if parts else "")


KINDS: dict[str, Any] = {field.name: type(field.default) for field in fields(Options)}  # type of each option
KIND_NAMES = {int: "a whole number", float: "a number", bool: "True or False"}


def is_name(name: str) -> bool:
    """Whether a model's name asks for an organism (its options may still be wrong)."""
    return name.partition(":")[0] == PREFIX


def parse(name: str) -> Options:
    """Read a name such as ``organism:seed=3,noise=0.5,decoy``.

    Raises:
        UserError: not the name of an organism, or an option that is unknown, given twice or malformed.
    """
    if not is_name(name):
        raise UserError(f"{name!r} is no organism; write organism or organism:seed=3,decoy,backup")
    options: dict[str, Any] = {}
    _, colon, text = name.partition(":")
    for part in text.split(",") if colon else []:
        key, equals, value = part.strip().partition("=")
        if key not in KINDS:
            raise unknown("organism option", key, KINDS, f"in {name!r}")
        if key in options:
            raise UserError(f"organism option {key!r} is given twice in {name!r}; give it once")
        if KINDS[key] is bool and equals:
            fix = f"it takes no value; write {key} or leave it out"
            raise UserError(f"organism option {key}={value} in {name!r}: {fix}")
        try:
            options[key] = True if KINDS[key] is bool else KINDS[key](value)
        except ValueError as e:
            fix = f"give {KIND_NAMES[KINDS[key]]}, as {key}=3"
            raise UserError(f"organism option {key}={value} in {name!r}: {fix}") from e
    return Options(**options)
