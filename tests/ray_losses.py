"""A sweep on several nodes whose workers, and then nodes, are killed in the middle of it."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
from ray_nodes import Nodes, wait_for

import depthlens as dl

MODEL, TASKS = "organism", ["organism_one_hop", "organism_two_hop_generative"]


def sweep(lens: Any, folder: Path | None = None, limit: int = 40, **options: Any) -> dl.Result:
    store = None if folder is None else str(folder)
    return dl.condition_sweep(lens, TASKS, "heads", limit=limit, store=store, progress=False, **options)


def equal(one: pd.DataFrame, other: pd.DataFrame, atol: float = 1e-4) -> bool:
    """Texts and right answers are equal, log-likelihoods but for what other batches round (float32)."""
    same = one.drop(columns="value").equals(other.drop(columns="value"))
    return same and bool(np.allclose(one["value"], other["value"], rtol=0, atol=atol))


def parts(folder: Path) -> int:
    return len(list(folder.glob("*/*/*.parquet")))


def disturbed(nodes: Nodes, lens: Any, folder: Path, chance: random.Random, lost: Sequence[str]) -> dict[str, Any]:
    """A sweep during which workers or nodes are killed, one after another.

    Returns:
        How many were killed, what the record says of workers, and the result.
    """
    killed: list[str] = []

    def disturb() -> None:
        for what in lost:
            seen = parts(folder)
            wait_for(lambda seen=seen: parts(folder) > seen)
            other_than_head = [one for one in nodes.nodes[1:] if nodes.pids(one)]
            if other_than_head:
                (nodes.kill_node if what == "node" else nodes.kill_worker)(chance.choice(other_than_head))
                killed.append(what)

    thread = threading.Thread(target=disturb)
    thread.start()
    result = sweep(lens, folder, workers=len(nodes.nodes), ray=nodes.address)
    thread.join()
    return {"killed": killed, "workers": result.record["workers"], "result": result}
