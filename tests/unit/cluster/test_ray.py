"""Three nodes of one CPU each (`ray.cluster_utils.Cluster`) give what one process gives, or say in one line why not."""

import random
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
import transplants
from ray_nodes import Nodes, wait_for
from refusals import refused
from stores import CHOICE, WRITTEN, parts, run

import depthlens as dl
from depthlens.errors import UserError

MODEL, TASKS = "organism", ["organism_one_hop", "organism_two_hop_generative"]
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


@pytest.fixture(scope="module")
def folder(saved):
    return saved(max_position_embeddings=4096)


@pytest.fixture(scope="module")
def lens(folder):
    return dl.load(folder)


def sweep(lens, nodes, *arguments, **options):
    return run(lens, None, *arguments, workers=3, ray=nodes.address, **options)


@pytest.mark.parametrize(("ablate", "options"), [
    ("layers@mean", {"measure": "both"}),
    ("attn", {"gen_kwargs": {"temperature": 1.3}, "tasks": [WRITTEN]}),
    pytest.param("layers@donor", {"donor": True}, marks=pytest.mark.nightly),
    pytest.param(["L1.H1@resample"], {"resample_prompts": ["one two", "A b c"]}, marks=pytest.mark.nightly),
])  # fmt: skip
def test_they_are_those_of_one_process(nodes, lens, ablate, options, tmp_path):
    if "donor" in options:
        options = options | {"donor": tiny.save(tmp_path, transplants.other(lens))}
    alone, there = run(lens, None, ablate, **options), sweep(lens, nodes, ablate, **options)
    rounded = ["value", "margin"]
    assert alone.docs.drop(columns=rounded).equals(there.docs.drop(columns=rounded)), "texts and predictions"
    # float32: another composition of batches rounds otherwise
    assert (alone.docs[rounded] - there.docs[rounded]).abs().max().max() < 1e-5
    assert there.record["workers"] == {"n": 3, "ray": nodes.address, "cpus": 1, "gpus": 0.0}
    assert there.record["work"]["rows"] == alone.record["work"]["rows"]


@pytest.mark.nightly
def test_a_model_that_was_changed_here_and_too_many_workers_are_refused(nodes, lens, folder):
    changed = dl.load(folder)
    changed.model.model.layers[2].mlp.up_proj.weight.data.mul_(1.5)
    with pytest.raises(UserError, match=r"is another on a worker \(fingerprint\); load .* saved where workers see it"):
        sweep(changed, nodes, "L0", tasks=[CHOICE])
    refused(r"workers 4: Ray has room for 3 with 1 CPUs and 0 GPUs each", run, lens, None, workers=4, ray=nodes.address)


def swept(lens: dl.Lens, folder: Path | None = None, limit: int = 40, **options: Any) -> dl.Result:
    store = None if folder is None else str(folder)
    return dl.condition_sweep(lens, TASKS, "heads", limit=limit, store=store, progress=False, **options)


def disturbed(nodes: Nodes, lens: dl.Lens, folder: Path, chance: random.Random, lost: Sequence[str]) -> dict[str, Any]:
    """A sweep during which workers or nodes are killed, one after another.

    Returns:
        How many were killed, what the record says of workers, and the result.
    """
    killed: list[str] = []

    def disturb() -> None:
        for what in lost:
            seen = len(parts(folder))
            # the head's worker may write before others have started
            wait_for(lambda seen=seen: len(parts(folder)) > seen and any(map(nodes.pids, nodes.nodes[1:])))
            other_than_head = [one for one in nodes.nodes[1:] if nodes.pids(one)]
            (nodes.kill_node if what == "node" else nodes.kill_worker)(chance.choice(other_than_head))
            killed.append(what)

    nodes.nodes += [nodes.add() for what in lost if what == "node"]  # room for the workers of one that is lost
    thread = threading.Thread(target=disturb)
    thread.start()
    result = swept(lens, folder, workers=len(nodes.nodes) - lost.count("node"), ray=nodes.address)
    thread.join()
    return {"killed": killed, "workers": result.record["workers"], "result": result}


@pytest.mark.parametrize("lost", [["worker"], pytest.param(["worker", "node"], marks=pytest.mark.nightly)])
def test_a_worker_and_then_a_node_are_killed(nodes, tmp_path, lost):
    lens = dl.load(MODEL)
    alone = swept(lens)
    found = disturbed(nodes, lens, tmp_path, random.Random(1), lost)
    assert found["killed"] == lost
    # float32: other batches round otherwise
    pd.testing.assert_frame_equal(alone.docs, found["result"].docs, rtol=0, atol=1e-4)
    assert found["result"].record["store"]["rows_computed"] == alone.record["work"]["rows"]


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray")
    torch.set_num_threads(1)
    made = Nodes(3)
    yield made
    made.close()
