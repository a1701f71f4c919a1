"""Three nodes of one CPU each (`ray.cluster_utils.Cluster`) give what one process gives, or say in one line why not."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray_losses
import tiny
import transplants
from ray_nodes import wait_for
from stores import CHOICE, WRITTEN, counts, run

import depthlens as dl
from depthlens import cluster, provenance
from depthlens.ablations import BASELINE
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.requests import LoglikelihoodRequest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]
DRIVER = """
import signal
import sys
import torch
import depthlens as dl
from ray_losses import sweep
from pathlib import Path
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background of a script ignore it
address, store, out, workers, limit = sys.argv[1:]
lens = dl.load("organism")
try:
    result = sweep(lens, Path(store), int(limit), workers=int(workers), ray=address)
except KeyboardInterrupt as stop:
    sys.exit(f"Interrupted: {stop}")
result.save(out)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("models") / "model", "llama-gqa", max_position_embeddings=4096)


@pytest.fixture(scope="module")
def lens(folder):
    return dl.load(folder)


def sweep(lens, nodes, *arguments, **options):
    return run(lens, None, *arguments, workers=3, ray=nodes.address, **options)


def driver(nodes, *arguments) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, nodes.address, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["tests", os.environ.get("PYTHONPATH", "")])},
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
    )


class TestResults:
    @pytest.mark.parametrize(
        ("ablate", "options"),
        [
            ("layers@mean", {"measure": "both"}),
            ("attn", {"gen_kwargs": {"temperature": 1.3}, "tasks": [WRITTEN]}),
            pytest.param("layers@donor", {"donor": True}, marks=pytest.mark.nightly),
            pytest.param(["L1.H1@resample"], {"resample_prompts": ["one two", "A b c"]}, marks=pytest.mark.nightly),
        ],
    )
    def test_they_are_those_of_one_process(self, nodes, lens, ablate, options, tmp_path):
        if "donor" in options:
            transplants.other(lens).model.save_pretrained(tmp_path)
            lens.tokenizer.save_pretrained(tmp_path)
            options = options | {"donor": tmp_path}
        alone, there = run(lens, None, ablate, **options), sweep(lens, nodes, ablate, **options)
        assert alone.docs.drop(columns="value").equals(there.docs.drop(columns="value")), "texts and predictions"
        # float32: another composition of batches rounds otherwise
        assert (alone.docs["value"] - there.docs["value"]).abs().max() < 1e-5
        assert there.record["workers"] == {
            **{"n": 3, "ray": nodes.address, "cpus": 1, "gpus": 0.0},
            "repeated_shards": 0,
        }
        assert there.record["work"]["rows"] == alone.record["work"]["rows"]

    def test_a_second_run_computes_nothing_and_an_fsspec_store_will_do(self, nodes, lens):
        where = "memory://ray-test"
        options = {"tasks": [CHOICE], "workers": 3, "ray": nodes.address}
        first, second = run(lens, where, **options), run(lens, where, **options)
        assert counts(first) == (0, counts(second)[0]) and counts(second)[1] == 0 < counts(second)[0]
        assert first.docs.equals(second.docs)


@pytest.mark.nightly
class TestRefusals:
    def refused(self, lens, nodes, match, **options):
        with pytest.raises(UserError, match=match) as error:
            sweep(lens, nodes, "L0", tasks=[CHOICE], **options)
        assert "\n" not in str(error.value)

    def test_more_workers_than_the_cluster_can_give(self, nodes, lens):
        self.refused(lens, nodes, "workers 3: Ray has room for 0 with 2 CPUs each", worker_cpus=2)
        with pytest.raises(UserError, match=r"workers 4: Ray has room for 3 with 1 CPU each \(its 3 nodes have 3 CPUs"):
            run(lens, None, workers=4, ray=nodes.address)

    def test_another_version(self, nodes, lens, monkeypatch):
        real = provenance.version
        monkeypatch.setattr(provenance, "version", lambda name: "2.0.1" if name == "torch" else real(name))
        self.refused(
            lens, nodes, r"a worker on \S+ has torch 2\.\S+, this process has 2.0.1; install the same versions"
        )

    def test_a_model_that_was_changed_here(self, nodes, folder):
        changed = dl.load(folder)
        changed.model.model.layers[2].mlp.up_proj.weight.data.mul_(1.5)
        self.refused(
            changed, nodes, r"is another on the workers .* save it where they see it, with lens.model.save_pre"
        )

    def test_what_fails_twice_ends_with_its_error(self, nodes, lens):
        workers = cluster.workers_of({"workers": 3, "ray": nodes.address})
        engine = Engine(lens, workers=workers, progress=False)
        no_token = LoglikelihoodRequest((1, 10**6), (2,))
        with pytest.raises(UserError, match="1 rows failed twice on workers: IndexError"):
            engine.loglikelihood([no_token], [BASELINE])


class TestLosses:
    @pytest.mark.parametrize("lost", [["worker"], pytest.param(["worker", "node"], marks=pytest.mark.nightly)])
    def test_a_worker_and_then_a_node_are_killed(self, nodes, tmp_path, lost):
        lens = dl.load(ray_losses.MODEL)
        alone = ray_losses.sweep(lens)
        found = ray_losses.disturbed(nodes, lens, tmp_path, random.Random(1), lost)
        if "node" in lost:
            nodes.nodes.append(nodes.add())
        assert found["killed"] == lost
        assert ray_losses.equal(alone.docs, found["result"].docs)
        assert found["workers"]["repeated_shards"] <= 2, "each cost no more than its shard in flight"
        assert found["result"].record["store"]["rows_computed"] == alone.record["work"]["rows"]

    @pytest.mark.nightly
    def test_a_killed_driver_goes_on_and_two_do_nothing_twice(self, nodes, tmp_path):
        limit, store = 40, tmp_path / "store"
        nodes.ray.shutdown()  # this process gives its workers back
        killed = driver(nodes, store, tmp_path / "killed", 2, limit)
        wait_for(lambda: ray_losses.parts(store) >= 2)
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.wait() == -signal.SIGKILL and not (tmp_path / "killed").exists()
        left = ray_losses.parts(store)
        pair = [driver(nodes, store, tmp_path / str(i), 1, limit) for i in range(2)]
        assert [one.wait() for one in pair] == [0, 0], [one.stderr.read() for one in pair]
        alone = ray_losses.sweep(dl.load(ray_losses.MODEL), limit=limit)
        found = [dl.Result.load(tmp_path / str(i)) for i in range(2)]
        assert all(ray_losses.equal(alone.docs, one.docs) for one in found)
        computed = [one.record["store"]["rows_computed"] for one in found]
        assert all(computed), "each did some of it"
        kept = alone.record["work"]["rows"] - sum(computed)
        assert kept > 0 and left >= 2, "what the killed one had stored was not computed again"
