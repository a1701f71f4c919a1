"""The way of a row through the layers: a condition compiled once, for whatever walks layers or counts their passes.

The clean row passes layers 0, 1, 2 and so on. A condition leaves layers out, puts something known in the place of some,
or passes some again. As long as the steps of two conditions are equal, and what they do at them, one row is enough for
both: routes form a trie, whose nodes are rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from depthlens.ablations.conditions import Ablation, Condition

Edits = frozenset[Ablation]
FIRST, END = -1, -2  # what stands for the embedding and for what comes after the layers, where these are numbers


@dataclass(frozen=True)
class Route:
    """The steps of a row.

    Attributes:
        layers: The layer of each step, in order. One that is skipped is not among them, one that is passed again is
            there again.
        edits: What is done at a layer; `FIRST`: at embedding and unembedding.
        replaced: Layers in whose place something known is put: the row gets to them and does not pass them.
    """

    layers: tuple[int, ...]
    edits: Mapping[int, Edits]
    replaced: frozenset[int]

    def passed(self, first: int = 0) -> int:
        """How often the row passes a layer from a step on."""
        ahead = self.layers[first:]
        return len(ahead) - sum(map(ahead.count, self.replaced))

    def visit(self, step: int) -> int:
        """How often the row has been at the layer of a step before."""
        return self.layers[:step].count(self.layers[step])

    def kind(self, step: int) -> tuple[int, int, bool]:
        """The layer of a step, how often the row has been there before, and whether it is replaced."""
        return self.layers[step], self.visit(step), self.layers[step] in self.replaced


class Fork(NamedTuple):
    """Where a row leaves another one: it has the state of that one before a step.

    Attributes:
        row: The one that it leaves.
        step: Of both rows. A row that never leaves the other one has one step less.
    """

    row: int
    step: int


def of(condition: Condition, n_layers: int, entered: Iterable[Condition] = ()) -> Route:
    """The route of a condition.

    Args:
        condition: Of the row.
        n_layers: Of the model.
        entered: Conditions in force on the model. Of these, layers that are passed again are of every route.
    """
    steps, again = list(range(n_layers)), [a for one in (*entered, condition) for a in one.ablations]
    # small blocks first, which larger ones then repeat
    for a in sorted((a for a in again if a.kind == "repeat"), key=lambda a: max(0, a.index - a.layer)):
        first, last = steps.index(a.layer), len(steps) - steps[::-1].index(max(a.layer, a.index))
        steps[first:last] *= 2
    whole = [a for a in condition.ablations if a.site == "layer" and a.everywhere]
    skipped = {a.layer for a in whole if a.kind == "removal"}
    edits: dict[int, Edits] = {}
    for a in condition.ablations:
        if a.kind != "repeat" and a.layer not in skipped:
            edits[a.layer] = edits.get(a.layer, frozenset()) | {a}
    replaced = frozenset(a.layer for a in whole if a.kind == "reference")
    return Route(tuple(layer for layer in steps if layer not in skipped), edits, replaced)


def forks(ways: Mapping[int, Route]) -> dict[int, Fork]:
    """Where each row leaves the one that has its steps until then.

    Args:
        ways: Routes by number of row, the clean one first.
    """
    nodes, leads, found, clean = dict[tuple, int](), dict[int, int](), dict[int, Fork](), next(iter(ways))
    for c, way in ways.items():
        path: list[int] = []  # a number for each beginning: nothing but the embedding, then one step more
        for layer in (FIRST, *way.layers, END):
            beginning = (path[-1] if path else None, layer, way.edits.get(layer))
            path.append(nodes.setdefault(beginning, len(nodes)))
        known = [leads[node] for node in path if node in leads]
        step = max(0, len(known) - 1)
        found[c] = Fork(known[-1] if step else clean, step)  # an embedding alone is made anew
        leads |= dict.fromkeys(path[len(known) :], c)
    return found


def schedule(routes: Mapping[int, Route], starts: Mapping[int, int]) -> list[tuple[int, dict[int, int]]]:
    """In which order rows go through layers together: upwards, and again from below for those that pass layers again.

    Args:
        routes: By number of row.
        starts: The first step of each row that is taken; those before are of a row that it leaves.

    Returns:
        Layers, with the step of each row that is at the layer then.
    """
    at, found, layer = dict.fromkeys(routes, 0), list[tuple[int, dict[int, int]]](), 0
    while ahead := {row: route.layers[at[row]] for row, route in routes.items() if at[row] < len(route.layers)}:
        layer = min((other for other in ahead.values() if other >= layer), default=min(ahead.values()))
        here = {row: at[row] for row, other in ahead.items() if other == layer}
        at |= {row: step + 1 for row, step in here.items()}
        if taken := {row: step for row, step in here.items() if step >= starts[row]}:
            found.append((layer, taken))
    return found
