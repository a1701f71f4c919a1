"""A sweep on three nodes whose workers, and then nodes, are killed in the middle of it.

    python tests/ray_losses.py FOLDER --times 10

prints, for each time, whether the result is that of an undisturbed sweep in one process, and how many shards were
computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import threading
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import pandas as pd
import torch
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


def disturbed(
    nodes: Nodes, lens: Any, folder: Path, limit: int, chance: random.Random, *, node: bool
) -> dict[str, Any]:
    """A sweep during which a worker is killed, and then another worker or a node.

    Returns:
        How many were killed, what the record says of workers, and the result.
    """
    killed: list[str] = []

    def disturb() -> None:
        for what in ("worker", "node" if node else "worker"):
            seen = parts(folder)
            wait_for(lambda seen=seen: parts(folder) > seen)
            other_than_head = [one for one in nodes.nodes[1:] if nodes.pids(one)]
            if other_than_head:
                (nodes.kill_node if what == "node" else nodes.kill_worker)(chance.choice(other_than_head))
                killed.append(what)

    thread = threading.Thread(target=disturb)
    thread.start()
    result = sweep(lens, folder, limit, workers=len(nodes.nodes), ray=nodes.address)
    thread.join()
    return {"killed": killed, "workers": result.record["workers"], "result": result}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--limit", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lens = dl.load(MODEL)
    alone = sweep(lens, limit=args.limit)
    nodes, chance = Nodes(3), random.Random(0)
    for i in range(args.times):
        with_node = i % 2 == 1
        found = disturbed(nodes, lens, args.folder / str(i), args.limit, chance, node=with_node)
        result = found.pop("result")
        rows = result.record["store"]["rows_computed"]
        found |= {"equal": equal(alone.docs, result.docs), "rows": rows, "parts": parts(args.folder / str(i))}
        print(json.dumps(found), flush=True)
        if with_node:
            nodes.nodes.append(nodes.add())
    nodes.close()


if __name__ == "__main__":
    main()
