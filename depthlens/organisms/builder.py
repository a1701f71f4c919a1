"""Organisms: models whose circuits were planted by hand, so that what a method finds can be compared with the truth.

A LLaMA-architecture model of 6 layers x 4 heads answers a one-hop question (``QA``) with one circuit and a two-hop
question (``QB``) with another; both need the previous-token head. No weight is trained (`weights` says how they are
written), all other heads and MLPs write noise. As options, a *decoy* attends just as the retrieval head does but writes
where nothing reads, and a *backup* does the retrieval head's work a second time.

    lens = dl.load("organism")                       # seed 0
    lens = dl.load("organism:seed=3,decoy,backup")   # any of `Options`, on the command line too
    dl.organisms.truth("organism:seed=3,decoy,backup").needed("one_hop")

Other options plant *depth*: the number of layers, the layer of each circuit, and circuits for what no prompt says
(`Options`). The truth then is what each layer costs:

    name = "organism:n_layers=12,knowledge_layers=2-3,reasoning_layer=8"
    dl.organisms.truth(name).layer_losses("knowledge")

Limits: prompts much longer than the default need a larger ``sharpness``, since the words of a prompt compete for
attention; above about 10, attention is so saturated that gradients through it vanish, and attribution misses heads.

Importing this module imports no torch.
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from depthlens import arguments
from depthlens.ablations import AnyHead, Head, heads_of
from depthlens.errors import UserError, unknown

if TYPE_CHECKING:
    import pandas as pd
from depthlens.organisms import language

N_HEADS = 4  # of a layer
PREFIX = "organism"  # names of organisms begin with it
MOST_LAYERS = 48
MOST_WRITING = 4  # layers; with more, what each takes off is within the noise of what it takes it from
LAYERS_OF = {"knowledge": "knowledge_layers", "letters": "letter_layers", "text": "text_layers"}  # tasks learned
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
        reasoning_strength: Factor on what the two heads of the two-hop circuit write. Below 1 they are found in the
            same layers and answer fewer questions.

    Example:
        >>> dl.organisms.Options(seed=3, decoy=True).name
        'organism:seed=3,decoy'
    """

    seed: int = 0
    noise: float = 0.4
    leak: float = 0.3
    eps: float = 0.05
    n_kv_heads: int = 4
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
    reasoning_strength: float = 1.0

    def __post_init__(self) -> None:
        last = arguments.whole("organism option n_layers", self.n_layers, 4, MOST_LAYERS) - 1
        below = self.previous_layer + 1  # heads that match words read what the previous-token head wrote
        limits: dict[str, tuple[int, Any]] = {"seed": (0, 2**63 - 1), "previous_layer": (0, last - 2)}
        limits |= {"reasoning_layer": (below, last - 1)}
        limits |= dict.fromkeys(("retrieval_layer", "copying_layer"), (below, last))
        limits |= dict.fromkeys(("noise", "leak", "eps", "sharpness", "reasoning_strength"), (0, 1e6))
        for key, (low, high) in limits.items():
            if (value := getattr(self, key)) is not None:
                arguments.numeric(type(high), low, high)(f"organism option {key}", value)
        if self.n_kv_heads not in (1, 2, 4) or (self.extended and self.n_kv_heads == 1):
            raise UserError(f"organism option n_kv_heads={self.n_kv_heads}: give 4 or 2, or 1 without more circuits")
        for key in CIRCUITS[1:]:
            # what is known is read where the control head, in the attention of previous_layer, says what is asked
            first = 0 if key == "writing_layers" else self.previous_layer
            layers, most = self.layers(key), MOST_WRITING if key == "writing_layers" else MOST_LAYERS
            if layers and not (first <= layers[0] <= layers[-1] <= last and len(layers) <= most):
                fix = f"give layers from {first} to {last}, at most {most}"
                raise UserError(f"organism option {key}={getattr(self, key)}: {fix}")

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
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", str(value))
        if not found or not (layers := range(int(found[1]), int(found[2] or found[1]) + 1)):
            raise UserError(f"organism option {key}={value}: give a layer or a range of layers, as 2 or 2-3")
        return layers

    @property
    def name(self) -> str:
        """The name `depthlens.load` takes, with every option that is not the default."""
        given = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        parts = [key if value is True else f"{key}={value}" for key, value in given]
        return PREFIX + (":" + ",".join(parts) if parts else "")


# type of each option, by its annotation
KINDS = {field.name: getattr(builtins, str(field.type).removesuffix(" | None")) for field in fields(Options)}


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
        try:
            if key in options or bool(equals) == (KINDS[key] is bool):
                raise ValueError("give decoy and backup as they are, the others a value, and each once")
            options[key] = KINDS[key](value) if equals else True
        except ValueError as e:
            raise UserError(f"organism option {part} in {name!r}: {e}") from e
    return Options(**options)


def words_of(options: Options, task: str, layer: int) -> list[str]:
    """The words that the MLP of a layer knows for a learned task: of m layers each knows every m-th word."""
    layers = options.layers(LAYERS_OF[task]) if task in LAYERS_OF else range(0)
    return list(language.words()[layers.index(layer) :: len(layers)]) if layer in layers else []


@dataclass(frozen=True)
class PlantedHead:
    """One planted head and what is true of it.

    Attributes:
        layer: Layer number.
        head: Query head number.
        role: ``previous_token``, ``retrieval``, ``bridge``, ``output``, ``decoy``, ``backup``, ``control`` or
            ``copying``.
        copies: Tasks in which it attends to the answer from the last position.
        needed: Tasks that fail when it alone is removed.
        needed_together: Tasks that fail only when it and every other head that says the same are removed.
    """

    layer: int
    head: int
    role: str
    copies: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    needed_together: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The condition that removes it."""
        return f"L{self.layer}.H{self.head}"


@dataclass(frozen=True)
class Truth:
    """What is planted; every other head and layer does nothing for any task.

    Attributes:
        heads: The planted heads.
        options: What the organism is built from.

    Example:
        >>> truth = dl.organisms.truth("organism")
        >>> truth.tasks, truth.role("bridge")
        (('one_hop', 'two_hop'), L3.H0)
    """

    heads: tuple[PlantedHead, ...]
    options: Options

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the organism can do: names of `depthlens.organisms.language`."""
        options = self.options
        more = ("copying",) if options.copying_layer is not None else ()
        return language.TASKS + more + tuple(t for t, key in LAYERS_OF.items() if options.layers(key))

    def layer_losses(self, task: str, *, written: bool = False) -> tuple[float, ...]:
        """Share of a task's prompts that fail when a layer is skipped, for each layer.

        A choice among options that fails is a guess, so its score falls to chance; a written answer that fails is
        wrong. The share of a learned task is that of the words which the layer knows.

        Args:
            task: One of ``tasks``.
            written: The answer is written, not chosen among options.

        Raises:
            UserError: a task that this organism cannot do.
        """
        needed = {layer for layer, _ in self.needed(task) | self.needed_together(task)}
        options = self.options
        if written:
            needed |= set(options.layers("writing_layers"))
        known = {layer: len(words_of(options, task, layer)) for layer in range(options.n_layers)}
        return tuple(1.0 if layer in needed else n / len(language.words()) for layer, n in known.items())

    def role(self, role: str) -> Head:
        """Where the head of a role is."""
        return {h.role: Head(h.layer, h.head) for h in self.heads}[role]

    def needed(self, task: str) -> frozenset[Head]:
        """Heads each of which the task cannot do without."""
        return self._where("needed", task)

    def needed_together(self, task: str) -> frozenset[Head]:
        """Heads that replace each other: the task fails without all of them, but not without a single one."""
        return self._where("needed_together", task)

    def copies(self, task: str) -> frozenset[Head]:
        """Heads that attend to the answer in the prompt, needed or not."""
        return self._where("copies", task)

    def _where(self, field: str, task: str) -> frozenset[Head]:
        if task not in self.tasks:
            raise unknown("organism task", task, self.tasks)
        return frozenset(Head(h.layer, h.head) for h in self.heads if task in getattr(h, field))


def compare(named: Mapping[str, Collection[AnyHead]], true: Collection[AnyHead]) -> pd.DataFrame:
    """What each method of finding heads misses and names wrongly, where the heads that matter are known.

    Args:
        named: Heads by method.
        true: Heads that matter.

    Returns:
        One row a method: named, missed, wrong (as "L2.H1, L2.H3", or "none").

    Example:
        >>> true = dl.organisms.truth("organism").needed("one_hop")
        >>> dl.organisms.compare({"copying": copying.top(1), "removal": scores.top(2)}, true)
                        named missed wrong
        copying         L2.H1  L1.H2  none
        removal  L1.H2, L2.H1   none  none
    """
    import pandas as pd  # what asks for names of models alone is quick without

    known, table = {*heads_of("true", [*true])}, {}
    for method, heads in named.items():
        found = {*heads_of(method, [*heads])}
        table[method] = {"named": found, "missed": known - found, "wrong": found - known}
    return pd.DataFrame(table).T.map(lambda heads: ", ".join(map(str, sorted(heads))) or "none")


def truth(organism: str | Options) -> Truth:
    """What is planted in an organism, by its name or options.

    Raises:
        UserError: not the name of an organism.

    Example:
        >>> sorted(dl.organisms.truth("organism").needed("one_hop"))
        [L1.H2, L2.H1]
    """
    options = parse(organism) if isinstance(organism, str) else organism
    one_hop, two_hop, copying = ("one_hop",), ("two_hop",), ("copying",)
    in_context = language.TASKS if options.copying_layer is None else language.TASKS + copying
    retrieval: dict[str, Any] = {"copies": one_hop, "needed_together" if options.backup else "needed": one_hop}
    where, how = options.retrieval_layer, options.reasoning_layer
    asked = tuple(t for t in Truth((), options).tasks if t != "text")
    # the layer, None where it is not planted, and the head that a role gets if its layer has it free
    wanted: list[tuple[int | None, int, str, dict[str, Any]]] = [
        (options.previous_layer, 2, "previous_token", {"needed": in_context}),
        (where, 1, "retrieval", retrieval),
        (how, 0, "bridge", {"needed": two_hop}),
        (how + 1, 3, "output", {"copies": two_hop, "needed": two_hop}),
        (where if options.decoy else None, 3, "decoy", {"copies": one_hop}),
        (where if options.backup else None, 0, "backup", retrieval),
        (options.copying_layer, 2, "copying", {"copies": copying, "needed": copying}),
        (options.previous_layer if options.extended else None, 0, "control", {"needed": asked}),
    ]
    heads: list[PlantedHead] = []
    for layer, head, role, true in wanted:
        if layer is None:
            continue
        free = [h for h in range(N_HEADS) if all((p.layer, p.head) != (layer, h) for p in heads)]
        if not free:
            raise UserError(f"organism: layer {layer} has no head left for {role}; plant another circuit elsewhere")
        heads.append(PlantedHead(layer, head if head in free else free[0], role, **true))
    return Truth(tuple(heads), options)
