"""What an organism is built from, and the text form of it: ``organism:seed=3,decoy,backup``; no torch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any

from depthlens.errors import UserError, unknown

PREFIX = "organism"  # names of organisms begin with it
MOST_LAYERS = 48
MOST_WRITING = 4  # layers; with more, what each takes off is within the noise of what it takes it from
CIRCUITS = ("copying_layer", "knowledge_layers", "letter_layers", "text_layers", "writing_layers")


@dataclass(frozen=True)
class Options:
    """What an organism is built from; the text form is `name`.

    An option for one layer takes its number. An option for layers takes a range such as ``"2-3"`` or one number, and
    its circuit is cut into equal pieces, one a layer. ``None`` leaves the circuit out. One of the last five options
    adds to the language: `depthlens.organisms.language`.

    Attributes:
        seed: Of codes, noise and rotations.
        noise: Mean norm that every other head and MLP writes, in units of 8, the size of a word's code. It is stated
            for 6 layers; with more layers each writes less, so that the stream ends with the same noise.
        leak: Factor on the noise that falls where the circuit reads.
        eps: Noise on planted weights, relative to their norm.
        n_kv_heads: Key/value heads: 4, or 2 or 1 for grouped-query attention.
        tied_embeddings: One matrix embeds and unembeds.
        decoy: Plant a head that attends to the answer and writes it where nothing reads.
        backup: Plant a second retrieval head.
        sharpness: Attention logits of a perfect match. Needs to grow with the logarithm of the prompt's length.
        n_layers: Number of layers.
        previous_layer: Layer of the previous-token head, and of the head that reads the question's control token.
        retrieval_layer: Layer of the retrieval head, of its decoy and of its backup.
        reasoning_layer: Layer of the first head of the two-hop circuit; the second is in the next layer.
        copying_layer: Layer of the head that copies a sequence.
        knowledge_layers: Layers whose MLPs know a word's value; of m layers each knows every m-th word.
        letter_layers: Layers whose MLPs know a word's letter, likewise.
        text_layers: Layers whose MLPs know the word that follows a word in plain text, likewise.
        writing_layers: Layers whose MLPs hold back a token that is no answer. Without one of them the model writes
            that token, while the order of the answers does not change.
        fragile: Every layer turns the codes of the stream, and what reads them reads turned ones. Every task needs
            every layer.
        reasoning_strength: Factor on what the two heads of the two-hop circuit write. Below 1 they are found in the
            same layers and answer fewer questions.
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
    n_layers: int = 6
    previous_layer: int = 1
    retrieval_layer: int = 2
    reasoning_layer: int = 3
    copying_layer: int | None = None
    knowledge_layers: str | None = None
    letter_layers: str | None = None
    text_layers: str | None = None
    writing_layers: str | None = None
    fragile: bool = False
    reasoning_strength: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63:
            raise UserError(f"organism option seed={self.seed}: give a whole number from 0")
        if self.n_kv_heads not in (1, 2, 4):
            raise UserError(f"organism option n_kv_heads={self.n_kv_heads}: allowed: 1, 2, 4")
        for key in ("noise", "leak", "eps", "sharpness", "reasoning_strength"):
            value, above = getattr(self, key), key in ("sharpness", "reasoning_strength")
            if not math.isfinite(value) or value < 0 or (above and value == 0):
                fix = "above 0" if above else "from 0"
                raise UserError(f"organism option {key}={value}: give a number {fix}")
        self._check_layers()
        for key in ("tied_embeddings", "n_kv_heads"):
            if self.extended and (getattr(self, key) is True or getattr(self, key) == 1):
                given = next(name for name in CIRCUITS if getattr(self, name) is not None)
                raise UserError(f"organism option {key} does not go with {given}; leave one of them out")

    def _check_layers(self) -> None:
        if not 4 <= self.n_layers <= MOST_LAYERS:
            raise UserError(f"organism option n_layers={self.n_layers}: give a whole number from 4 to {MOST_LAYERS}")
        last = self.n_layers - 1
        below = self.previous_layer + 1  # heads that match words read what the previous-token head wrote
        limits = {"previous_layer": (0, last - 2), "retrieval_layer": (below, last)}
        limits |= {"reasoning_layer": (below, last - 1), "copying_layer": (below, last)}
        for key, (low, high) in limits.items():
            value = getattr(self, key)
            if value is not None and not low <= value <= high:
                raise UserError(f"organism option {key}={value}: give a layer from {low} to {high}")
        for key in CIRCUITS[1:]:
            layers = self.layers(key)
            # what is known is read where the control head, in the attention of previous_layer, says what is asked
            first = 0 if key == "writing_layers" else self.previous_layer
            if layers and not first <= layers[0] <= layers[-1] <= last:
                raise UserError(f"organism option {key}={getattr(self, key)}: give layers from {first} to {last}")
        if len(self.layers("writing_layers")) > MOST_WRITING:
            raise UserError(f"organism option writing_layers={self.writing_layers}: give at most {MOST_WRITING} layers")

    @property
    def extended(self) -> bool:
        """Whether the organism speaks the extended language."""
        return any(getattr(self, key) is not None for key in CIRCUITS)

    def layers(self, key: str) -> range:
        """The layers of an option that takes a range; none where it was not given.

        Raises:
            UserError: a value that is no range.
        """
        value = getattr(self, key)
        if value is None:
            return range(0)
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", value)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise UserError(f"organism option {key}={value}: give a layer or a range of layers, as 2 or 2-3")
        return range(int(found[1]), int(found[2] or found[1]) + 1)

    @property
    def name(self) -> str:
        """The name `depthlens.load` takes, with every option that is not the default."""
        parts = []
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                parts.append(f.name if value is True else f"{f.name}={value}")
        return PREFIX + (":" + ",".join(parts) if parts else "")


# type of each option, by its annotation
KINDS: dict[str, Any] = {
    field.name: {"int": int, "float": float, "bool": bool, "str": str}[str(field.type).split(" |")[0]]
    for field in fields(Options)
}
KIND_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a layer or a range of layers"}


def is_name(name: str) -> bool:
    """Whether a model's name asks for an organism (its options may still be wrong)."""
    return name.partition(":")[0] == PREFIX


def parse(name: str) -> Options:
    """Read a name such as ``organism:seed=3,noise=0.5,decoy`` or ``organism:n_layers=12,knowledge_layers=2-3``.

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
