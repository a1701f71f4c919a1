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


def test_a_walk_is_on_a_device_while_the_next_is_on_the_one_before():
    """Each waits there until the next one has come, which it could not if devices waited for whole walks."""
    n, came = 6, {(device, i): threading.Event() for device in DEVICES for i in range(6)}

    def walk(i):
        def run(enter):
            for before, device in zip([None, *DEVICES], DEVICES, strict=False):
                enter(device)
                came[device, i].set()
                if before and i + 1 < n:
                    assert came[before, i + 1].wait(timeout=30), f"walk {i + 1} waits for {device}"

        return run

    Pipeline(DEVICES).run([walk(i) for i in range(n)])


def test_one_walk_runs_in_the_calling_thread():
    seen = []
    Pipeline(DEVICES).run([lambda enter: seen.append((enter(DEVICES[0]), threading.current_thread()))])
    assert seen == [(None, threading.main_thread())]


def test_the_first_failure_is_raised_and_the_others_stop():
    seen, pipeline = Seen(), Pipeline(DEVICES)
    walks = [seen.walk(i, fail=DEVICES[1] if i == 2 else None) for i in range(8)]
    with pytest.raises(RuntimeError, match="walk 2 fails"):
        pipeline.run(walks)
    assert not [n for at, n in seen.events if at == DEVICES[1] and n > 1]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthlens-walk")]
    pipeline.run([Seen().walk(i) for i in range(3)])  # it can be used again


def test_walks_that_come_round_again_share_devices():
    """As in decoding: every token passes all devices."""
    inside, steps, last_began = set(), [], threading.Event()

    def walk(number):
        def run(enter):
            for step in range(5):
                for device in DEVICES:
                    enter(device)
                    assert device not in inside
                    inside.add(device)
                    time.sleep(0.0005)
                    inside.remove(device)
                    if number == 2:
                        last_began.set()
                # the first, before its last step, waits for the last one as long as a busy machine needs
                assert (number, step) != (0, 3) or last_began.wait(60), "they take turns"
                steps.append((number, step))

        return run

    Pipeline(DEVICES).run([walk(i) for i in range(3)])
    assert len(steps) == 15


def test_ctrl_c_stops_all_walks(monkeypatch):
    started = threading.Event()

    def forever(enter):
        while True:
            for device in DEVICES:
                enter(device)
                started.set()
                time.sleep(0.001)

    join = threading.Thread.join

    def interrupted(self, timeout=None):
        if self.name == "depthlens-walk-0" and started.wait(10):
            started.clear()
            monkeypatch.setattr(threading.Thread, "join", join)
            raise KeyboardInterrupt
        join(self, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Pipeline(DEVICES).run([forever, forever])
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("depthlens-walk")]
