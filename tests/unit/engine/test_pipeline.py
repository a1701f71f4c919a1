"""Walks in threads over devices: one at a time on each, none overtakes, failures and Ctrl-C stop all."""

import threading
import time

import pytest
import torch
from depthlens.engine.pipeline import Pipeline

DEVICES = [torch.device("cpu", i) for i in range(1, 4)]


class Seen:
    """Which walks were on which devices, in order."""

    def __init__(self):
        self.events = []
        self.inside = {}

    def walk(self, number, fail=None):
        def run(enter):
            for device in DEVICES:
                enter(device)
                assert self.inside.get(device) is None, "one walk is on a device at a time"
                self.inside[device] = number
                if fail == device:
                    raise RuntimeError(f"walk {number} fails")
                time.sleep(0.001 * (number % 3))
                self.events.append((device, number))
                self.inside[device] = None

        return run


def test_no_walk_overtakes_another():
    seen = Seen()
    Pipeline(DEVICES).run([seen.walk(i) for i in range(8)])
    for device in DEVICES:
        assert [number for at, number in seen.events if at == device] == list(range(8))


def test_the_first_failure_is_raised_and_the_others_stop():
    seen, pipeline = Seen(), Pipeline(DEVICES)
    walks = [seen.walk(i, fail=DEVICES[1] if i == 2 else None) for i in range(8)]
    with pytest.raises(RuntimeError, match="walk 2 fails"):
        pipeline.run(walks)
    assert not [n for at, n in seen.events if at == DEVICES[1] and n > 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthlens-walk")]
    pipeline.run([Seen().walk(i) for i in range(3)])  # it can be used again
