"""Several walks at once over a model that is spread over devices, so that no device waits for the others.

The work of a pack is cut into parts, by conditions or, where these are few, by requests. Each part walks in a thread of
its own. A walk enters a device when the walk before it has left, so that part k + 1 is on the first device while part k
is on the second, as micro-batches are in GPipe (arXiv 1811.06965). One walk is on a device at a time, because a walk
hooks the layers that it passes, and none overtakes another, because later ones need the clean row of the first. What is
computed does not depend on when a part enters, and answers are stored when all parts are done.

With n devices and m equal parts the devices are idle for (n - 1) of m + n - 1 turns. Layers that conditions fork off at
early have less to do than later ones, which pass all rows, so that the last device is the busiest.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence

import torch

from depthlens.ablations import Condition
from depthlens.engine import prefix_tree
from depthlens.engine.wavefront import CleanRow, fork_layer
from depthlens.models.lens import Lens

PARTS = 8  # for each device: they are idle for at most a ninth of the time that one part takes on all
Enter = Callable[[torch.device], None]  # waits for a device, and leaves the one before
Part = tuple[prefix_tree.Pack, list[int], CleanRow]  # a pack, indices of conditions, and the clean row


class _Stopped(Exception):
    """Another part has failed."""


class Pipeline:
    """Walks over devices, each in a thread.

    Args:
        devices: In the order in which a walk passes them.
    """

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._stage = {device: i for i, device in enumerate(devices)}
        self._turn = threading.Condition()
        self._inside: dict[int, int] = {}  # number of the walk that is in a stage
        self._left: list[float] = []  # of each walk, how many stages it has left or passed over
        self._stopped = False

    def run(self, walks: Sequence[Callable[[Enter], None]]) -> None:
        """Run walks that call what they are given before they use a device; a single one runs in this thread.

        Raises:
            Exception: of the first walk, in their order, that failed; the others are stopped.
        """
        if len(walks) == 1:
            walks[0](lambda device: None)
            return
        self._left, self._inside, self._stopped = [0.0] * len(walks), {}, False
        errors: dict[int, BaseException] = {}

        def work(i: int) -> None:
            try:
                walks[i](lambda device: self._enter(i, self._stage[device]))
            except BaseException as e:  # noqa: BLE001  # raised again by `run`
                errors[i] = e
            finally:
                self._finish(i, failed=i in errors)

        threads = [threading.Thread(target=work, args=(i,), name=f"depthlens-walk-{i}") for i in range(len(walks))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException:  # Ctrl-C
            with self._turn:
                self._stopped = True
                self._turn.notify_all()
            for thread in threads:
                thread.join()
            raise
        for i in sorted(errors, key=lambda i: (isinstance(errors[i], _Stopped), i)):
            raise errors[i]

    def _enter(self, walk: int, stage: int) -> None:
        """Wait until a stage is free and the walk before has left it."""
        with self._turn:
            if self._inside.get(stage) == walk and not self._stopped:
                return
            self._leave(walk)
            self._left[walk] = max(self._left[walk], stage)
            self._turn.notify_all()
            self._turn.wait_for(
                lambda: self._stopped or (stage not in self._inside and (walk == 0 or self._left[walk - 1] > stage))
            )
            if self._stopped:
                raise _Stopped
            self._inside[stage] = walk

    def _leave(self, walk: int) -> None:
        for stage in [stage for stage, other in self._inside.items() if other == walk]:
            del self._inside[stage]
            self._left[walk] = max(self._left[walk], stage + 1)

    def _finish(self, walk: int, *, failed: bool) -> None:
        with self._turn:
            self._leave(walk)
            self._left[walk] = math.inf
            self._stopped = self._stopped or failed
            self._turn.notify_all()


def parts(
    lens: Lens,
    tokens: Sequence[Sequence[int]],
    pack: prefix_tree.Pack,
    group: list[int],
    conditions: Sequence[Condition],
    clean: CleanRow,
    per_device: int = PARTS,
) -> list[Part]:
    """The work of a pack, cut so that the devices of a model are busy; whole on one device.

    Args:
        lens: A loaded model.
        tokens: Of all requests.
        pack: The pack.
        group: Indices of the conditions, those that come first walk first.
        conditions: All of them.
        clean: The clean row of the pack, which the first part walks if it was not walked before.
        per_device: How many parts for each device.
    """
    places = [lens.device_of(layer) for layer in range(lens.dims.n_layers)]
    borders = sum(a != b for a, b in zip(places, places[1:], strict=False))
    embeddings = any(a.layer < 0 for c in group for a in conditions[c].ablations)  # replaced for a whole walk
    n = per_device * (borders + 1)
    if not borders or borders + 1 > len(set(places)) or embeddings:
        return [(pack, group, clean)]
    if len(group) < borders + 1 and len(pack.sequences) > 1 and clean.final is None and not clean.layers:
        return [(prefix_tree.build(tokens, some), group, CleanRow(frozenset())) for some in _cut(pack.sequences, n)]
    cut = _cut(group, n)
    if clean.final is None:
        # n_layers, of the whole model, is no layer, but says that the clean row is needed
        clean.layers |= {fork_layer(conditions[c], lens.dims.n_layers) for some in cut[1:] for c in some}
    return [(pack, some, clean) for some in cut]


def _cut(items: Sequence[int], n: int) -> list[list[int]]:
    """Items in at most so many runs of about equal length."""
    n = min(n, len(items))
    return [list(items[len(items) * i // n : len(items) * (i + 1) // n]) for i in range(n)]
