"""Organisms: models whose circuits were planted by hand, so that what a method finds can be compared with the truth.

A LLaMA-architecture model of 6 layers x 4 heads answers a one-hop question (``QA``) with one circuit and a two-hop
question (``QB``) with another; both need the previous-token head. No weight is trained (`weights` says how they are
written), all other heads and MLPs write noise. As options, a *decoy* attends just as the retrieval head does but writes
where nothing reads, and a *backup* does the retrieval head's work a second time.

    lens = dl.load("organism")                       # seed 0
    lens = dl.load("organism:seed=3,decoy,backup")   # any option of `build`, on the command line too
    dl.organisms.truth("organism:seed=3,decoy,backup").needed("one_hop")

Other options plant *depth*: the number of layers, the layer of each circuit, and circuits for what no prompt says
(`depthlens.organisms.options`). The truth then is what each layer costs:

    name = "organism:n_layers=12,knowledge_layers=2-3,reasoning_layer=8"
    dl.organisms.truth(name).layer_losses("knowledge")

Limits: prompts much longer than the default need a larger ``sharpness``, since the words of a prompt compete for
attention; above about 10, attention is so saturated that gradients through it vanish, and attribution misses heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerFast

from depthlens.errors import UserError, unknown
from depthlens.organisms import circuits, language, weights
from depthlens.organisms.options import KINDS, Options, parse

if TYPE_CHECKING:  # slow to import
    from transformers import LlamaForCausalLM

Head = tuple[int, int]  # layer, head


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
    """

    heads: tuple[PlantedHead, ...]
    options: Options

    @property
    def tasks(self) -> tuple[str, ...]:
        """What the organism can do: names of `depthlens.organisms.language`."""
        options = self.options
        more = ("copying",) if options.copying_layer is not None else ()
        return language.TASKS + more + tuple(t for t, key in circuits.LAYERS_OF.items() if options.layers(key))

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
        known = {layer: len(circuits.words_of(options, task, layer)) for layer in range(options.n_layers)}
        return tuple(1.0 if layer in needed else n / len(language.words()) for layer, n in known.items())

    def role(self, role: str) -> Head:
        """Where the head of a role is.

        Raises:
            UserError: no head has this role.
        """
        places = {h.role: (h.layer, h.head) for h in self.heads}
        if role not in places:
            raise unknown("role", role, places)
        return places[role]

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
        return frozenset((h.layer, h.head) for h in self.heads if task in getattr(h, field))


@dataclass(frozen=True, eq=False)
class Organism:
    """A built organism.

    Attributes:
        options: What it was built from.
        model: The model, float32, in evaluation mode.
        tokenizer: One token a word, ``<bos>`` in front.
        truth: Which heads do what.
    """

    options: Options
    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    truth: Truth


def build(**options: Any) -> Organism:
    """Build an organism in about a second; equal options give equal weights, bit by bit.

    Args:
        options: Those of `Options`.

    Raises:
        UserError: an unknown option, or a value that it cannot have.
    """
    if wrong := next((key for key in options if key not in KINDS), None):
        raise unknown("organism option", wrong, KINDS)
    chosen = Options(**options)
    planted = truth(chosen)
    roles = {(h.layer, h.head): h.role for h in planted.heads}
    return Organism(chosen, weights.plant(roles, chosen), language.tokenizer(chosen.extended), planted)


def truth(organism: str | Options) -> Truth:
    """What is planted in an organism, by its name or options.

    Raises:
        UserError: not the name of an organism.
    """
    options = parse(organism) if isinstance(organism, str) else organism
    one_hop, two_hop, copying = ("one_hop",), ("two_hop",), ("copying",)
    in_context = language.TASKS if options.copying_layer is None else language.TASKS + copying
    retrieval: dict[str, Any] = {"copies": one_hop, "needed_together" if options.backup else "needed": one_hop}
    where, how = options.retrieval_layer, options.reasoning_layer
    # the head that a role gets if its layer has it free
    wanted = [
        (options.previous_layer, 2, "previous_token", {"needed": in_context}),
        (where, 1, "retrieval", retrieval),
        (how, 0, "bridge", {"needed": two_hop}),
        (how + 1, 3, "output", {"copies": two_hop, "needed": two_hop}),
    ]
    if options.decoy:
        wanted.append((where, 3, "decoy", {"copies": one_hop}))
    if options.backup:
        wanted.append((where, 0, "backup", retrieval))
    if options.copying_layer is not None:
        wanted.append((options.copying_layer, 2, "copying", {"copies": copying, "needed": copying}))
    if options.extended:
        asked = tuple(t for t in Truth((), options).tasks if t != "text")
        wanted.append((options.previous_layer, 0, "control", {"needed": asked}))
    heads: list[PlantedHead] = []
    for layer, head, role, true in wanted:
        free = [h for h in range(weights.N_HEADS) if all((p.layer, p.head) != (layer, h) for p in heads)]
        if not free:
            raise UserError(f"organism: layer {layer} has no head left for {role}; plant another circuit elsewhere")
        heads.append(PlantedHead(layer, head if head in free else free[0], role, **true))
    return Truth(tuple(heads), options)
