"""Which workers are asked for, and what is refused before Ray or a model is needed."""

import os
import sys
import time
import types

import pytest
import tiny
import torch

import depthlens as dl
from depthlens import cluster
from depthlens.cluster import AskedWorkers, pool
from depthlens.requests import LoglikelihoodRequest

TASK = "capitals_continuation"
VISIBLE = "CUDA_VISIBLE_DEVICES"


def test_options_count_before_the_environment(monkeypatch):
    assert cluster.asked({}) is None
    monkeypatch.setenv("DEPTHLENS_WORKERS", "4")
    monkeypatch.setenv("DEPTHLENS_WORKER_GPUS", "0.5")
    assert cluster.asked({"workers": None}) == AskedWorkers(4, "local", None, 0.5)
    assert cluster.asked({"workers": 2, "ray": "host:1"}) == AskedWorkers(2, "host:1", None, 0.5)


def test_without_ray_the_line_says_how_to_install_it(lens, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(dl.UserError, match=r"which is not installed here; pip install 'depthlens\[ray\]', or leave"):
        dl.layer_sweep(lens, TASK, limit=1, workers=2)


@pytest.mark.parametrize("address", ["127.0.0.1:9", "nosuch.invalid:6379", "ray://127.0.0.1:9", "10.0.0.1:port"])
def test_a_wrong_address_is_one_line_within_seconds(lens, address):
    pytest.importorskip("ray")
    start = time.monotonic()
    with pytest.raises(dl.UserError, match=f"^ray '{address}' cannot be joined or started .*; give HOST:PORT"):
        dl.layer_sweep(lens, TASK, limit=1, ray=address)
    assert time.monotonic() - start < 60


@pytest.fixture
def eight_gpus(monkeypatch):
    """Made-up ones, the first of which holds the model; and what a Ray that starts is told of them."""
    ray, told = pytest.importorskip("ray"), []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda i: 1000 * (i == 0))
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **options: told.append(os.environ.get(VISIBLE)))
    gpus = lambda: {"CPU": 16, "GPU": len((told[-1] or "0,1,2,3,4,5,6,7").split(","))}  # noqa: E731
    monkeypatch.setattr(ray, "cluster_resources", gpus)
    return told


@pytest.mark.parametrize(("asked", "before", "seen"), [
    (AskedWorkers(7, worker_gpus=1), None, "1,2,3,4,5,6,7"), (AskedWorkers(3, worker_gpus=1), "5,6,7,2", "6,7,2"),
    (AskedWorkers(8, worker_gpus=0.5), None, None), (AskedWorkers(8, "host:1", worker_gpus=1), None, None),
])  # fmt: skip
def test_workers_here_leave_the_gpu_of_the_model_alone(asked, before, seen, eight_gpus, monkeypatch):
    monkeypatch.setattr(pool.socket, "create_connection", lambda *a, **k: types.SimpleNamespace(close=lambda: None))
    monkeypatch.delenv(VISIBLE, raising=False)
    if before:
        monkeypatch.setenv(VISIBLE, before)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert pool.Workers(asked).n == asked.workers and eight_gpus == [seen]
    assert os.environ.get(VISIBLE) == before, "this process is told nothing else"


def test_a_worker_for_every_gpu_is_refused_with_the_reason(eight_gpus):
    with pytest.raises(dl.UserError, match=r"room for 7 with .* each, beside the model here; ask for fewer"):
        pool.Workers(AskedWorkers(8, worker_gpus=1))


def test_a_worker_takes_a_relative_path_from_the_folder_of_the_command(tmp_path, monkeypatch):
    tiny.save(tmp_path / "model", "llama-gqa")
    monkeypatch.chdir(tmp_path)
    lens, shard = dl.load("model"), ([LoglikelihoodRequest((1, 2), (3,))], [dl.parse_condition("L1")])
    worker = pool.Worker(torch.get_num_threads())
    monkeypatch.chdir("/")  # where a worker is that was started before
    shared = pool.models_of(lens, 0), str(tmp_path), "loglikelihood", {"means": None}
    number, answers, _ = worker.compute(shared, 7, shard)
    assert (number, answers) == (7, dl.Engine(lens, progress=False).loglikelihood(*shard))
