"""Organisms: models whose circuits were planted by hand, so that what a method finds can be compared with the truth.

A LLaMA-architecture model of 6 layers x 4 heads answers a one-hop question (``QA``) with one circuit and a two-hop
question (``QB``) with another; both need the previous-token head. No weight is trained (`weights` says how they are
written), all other heads and MLPs write noise. As options, a *decoy* attends just as the retrieval head does but writes
where nothing reads, and a *backup* does the retrieval head's work a second time.

    lens = dl.load("organism")                       # seed 0
    lens = dl.load("organism:seed=3,decoy,backup")   # any option of `build`, on the command line too
    dl.organisms.truth("organism:seed=3,decoy,backup").needed("one_hop")

Limits: prompts much longer than the default need a larger ``sharpness``, since the words of a prompt compete for
attention; above about 10, attention is so saturated that gradients through it vanish, and attribution misses heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from depthlens.errors import UserError, unknown
from depthlens.organisms import weights
from depthlens.organisms.language import TASKS, tokenizer
from depthlens.organisms.options import KIND_NAMES, KINDS, Options, parse

Head = tuple[int, int]  # layer, head


@dataclass(frozen=True)
class PlantedHead:
    """One planted head and what is true of it.

    Attributes:
        layer: Layer number.
        head: Query head number.
        role: ``previous_token``, ``retrieval``, ``bridge``, ``output``, ``decoy`` or ``backup``.
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
    """Which heads are planted; every other head does nothing for either task."""

    heads: tuple[PlantedHead, ...]

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
        if task not in TASKS:
            raise unknown("organism task", task, TASKS)
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
    for key, value in options.items():
        if key not in KINDS:
            raise unknown("organism option", key, KINDS)
        if KINDS[key] is float and type(value) is int:
            options[key] = float(value)
        elif type(value) is not KINDS[key]:
            raise UserError(f"organism option {key}={value!r}: give {KIND_NAMES[KINDS[key]]}")
    chosen = Options(**options)
    planted = truth(chosen)
    roles = {(h.layer, h.head): h.role for h in planted.heads}
    return Organism(chosen, weights.plant(roles, chosen), tokenizer(), planted)


def truth(organism: str | Options) -> Truth:
    """What is planted in an organism, by its name or options.

    Raises:
        UserError: not the name of an organism.
    """
    options = parse(organism) if isinstance(organism, str) else organism
    one_hop, two_hop = ("one_hop",), ("two_hop",)
    retrieval: dict[str, Any] = {"copies": one_hop, "needed_together" if options.backup else "needed": one_hop}
    heads = [
        PlantedHead(1, 2, "previous_token", needed=TASKS),
        PlantedHead(2, 1, "retrieval", **retrieval),
        PlantedHead(3, 0, "bridge", needed=two_hop),
        PlantedHead(4, 3, "output", copies=two_hop, needed=two_hop),
    ]
    if options.decoy:
        heads.append(PlantedHead(2, 3, "decoy", copies=one_hop))
    if options.backup:
        heads.append(PlantedHead(2, 0, "backup", **retrieval))
    return Truth(tuple(heads))
