"""Which workers are asked for, and what is refused before Ray or a model is needed."""

from __future__ import annotations

import sys
import time

import pytest
import tiny
import torch

import depthlens as dl
from depthlens import cluster
from depthlens.cluster import AskedWorkers, pool
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.requests import LoglikelihoodRequest

TASK = "capitals_continuation"


class TestAsked:
    def test_options_count_before_the_environment(self, monkeypatch):
        assert cluster.asked({}) is None
        monkeypatch.setenv("DEPTHLENS_WORKERS", "4")
        monkeypatch.setenv("DEPTHLENS_WORKER_GPUS", "0.5")
        assert cluster.asked({"workers": None}) == AskedWorkers(4, "local", None, 0.5)
        assert cluster.asked({"workers": 2, "ray": "host:1"}) == AskedWorkers(2, "host:1", None, 0.5)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"workers": 0}, "workers 0: give a whole number, at least 1"),
            ({"ray": " "}, "ray ' ': give 'local' or the address"),
            ({"worker_gpus": 1.5, "workers": 1}, "worker_gpus 1.5: give a share of a GPU"),
            ({"worker_cpus": 2}, "worker_cpus 2: no workers are asked for"),
        ],
    )
    def test_a_bad_value_is_one_line(self, lens, options, line):
        with pytest.raises(UserError, match=line):
            dl.layer_sweep(lens, TASK, limit=1, **options)

    def test_what_runs_in_one_process_refuses_workers(self, lens):
        with pytest.raises(UserError, match="workers 2: attribution runs in one process"):
            dl.head_sweep(lens, TASK, limit=1, method="attribution", workers=2)
        with pytest.raises(UserError, match="workers 2: plan runs in one process"):
            dl.plan(lens, TASK, "layers", limit=1, workers=2)


class TestRay:
    def test_without_ray_the_line_says_how_to_install_it(self, lens, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(UserError, match=r"which is not installed here; pip install 'depthlens\[ray\]', or leave"):
            dl.layer_sweep(lens, TASK, limit=1, workers=2)

    @pytest.mark.parametrize("address", ["127.0.0.1:9", "nosuch.invalid:6379", "ray://127.0.0.1:9", "10.0.0.1:port"])
    def test_a_wrong_address_is_one_line_within_seconds(self, lens, address):
        pytest.importorskip("ray")
        start = time.monotonic()
        with pytest.raises(UserError, match=f"^ray '{address}' cannot be joined or started .*; give HOST:PORT"):
            dl.layer_sweep(lens, TASK, limit=1, ray=address)
        assert time.monotonic() - start < 60


def test_a_worker_takes_a_relative_path_from_the_folder_of_the_command(tmp_path, monkeypatch):
    tiny.save(tmp_path / "model", "llama-gqa")
    monkeypatch.chdir(tmp_path)
    lens, shard = dl.load("model"), ([LoglikelihoodRequest((1, 2), (3,))], [dl.parse_condition("L1")])
    worker = pool.Worker(torch.get_num_threads())
    monkeypatch.chdir("/")  # where a worker is that was started before
    shared = pool.models_of(lens, 0), str(tmp_path), "loglikelihood", {"means": None}
    number, answers, _ = worker.compute(shared, 7, shard)
    assert (number, answers) == (7, Engine(lens, progress=False).loglikelihood(*shard))
