"""The way of a row through the layers: a condition compiled once, for whatever walks layers or counts their passes.

The clean row passes layers 0, 1, 2 and so on. A condition leaves layers out, puts something known in the place of some,
or passes some again. Until its way, or what it does to a layer, differs from the clean row's, its row is the clean row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from depthlens.ablations.conditions import Condition


@dataclass(frozen=True)
class Route:
    """The steps of a row.

    Attributes:
        layers: The layer of each step, in order. One that is skipped is not among them, one that is passed again is
            there again.
        replaced: Layers in whose place something known is put: the row gets to them and does not pass them.
        edited: Layers at which the row differs from the clean one in another way than by its steps.
        fork: The first step at which the row leaves the clean one; one more than there are of these, if it never does.
    """

    layers: tuple[int, ...]
    replaced: frozenset[int]
    edited: frozenset[int]
    fork: int

    def passed(self, first: int = 0) -> int:
        """How often the row passes a layer from a step on."""
        return sum(layer not in self.replaced for layer in self.layers[first:])

    def visit(self, step: int) -> int:
        """How often the row has been at the layer of a step before."""
        return self.layers[:step].count(self.layers[step])


def of(condition: Condition, n_layers: int, entered: Iterable[Condition] = ()) -> Route:
    """The route of a condition.

    Args:
        condition: Of the row.
        n_layers: Of the model.
        entered: Conditions in force on the model. Of these, layers that are passed again are of every route.
    """
    again = [a for one in entered for a in one.ablations if a.kind == "repeat"]
    clean = _steps(n_layers, again)
    whole = [a for a in condition.ablations if a.site == "layer" and a.everywhere]
    skipped = {a.layer for a in whole if a.kind == "removal"}
    own = [a for a in condition.ablations if a.kind == "repeat"]
    layers = [layer for layer in _steps(n_layers, again + own) if layer not in skipped]
    edited = {a.layer for a in condition.ablations if a.kind != "repeat"} - skipped
    pairs, shorter = enumerate(zip(layers, clean, strict=False)), min(len(layers), len(clean))
    fork = next((step for step, (layer, other) in pairs if layer != other or layer in edited), shorter)
    if min(edited, default=0) < 0:  # the embedding
        fork = 0
    elif fork == len(layers) == len(clean):
        fork += 1
    return Route(tuple(layers), frozenset(a.layer for a in whole if a.kind == "reference"), frozenset(edited), fork)


def _steps(n_layers: int, again: Iterable) -> list[int]:
    """The layers in order, with those that are passed again; small blocks first, which larger ones then repeat."""
    steps = list(range(n_layers))
    for a in sorted(again, key=lambda a: max(0, a.index - a.layer)):
        first, last = steps.index(a.layer), len(steps) - steps[::-1].index(max(a.layer, a.index))
        steps[first:last] *= 2
    return steps


def schedule(routes: Mapping[int, Route], starts: Mapping[int, int]) -> list[tuple[int, dict[int, int]]]:
    """In which order rows go through layers together: upwards, and again from below for those that pass layers again.

    Args:
        routes: By number of row.
        starts: The first step of each row that is taken; those before are the clean row's.

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
