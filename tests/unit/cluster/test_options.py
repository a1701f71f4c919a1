"""Which workers are asked for, and what is refused before Ray or a model is needed."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading

import pytest
import tiny

import depthlens as dl
from depthlens import cli
from depthlens.cluster import options as cluster
from depthlens.cluster import session
from depthlens.cluster.options import Asked
from depthlens.cluster.room import Need, room
from depthlens.errors import UserError

TASK = "capitals_continuation"


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


class TestAsked:
    def test_options_count_before_the_environment(self, monkeypatch):
        assert cluster.asked({}) is None
        monkeypatch.setenv("DEPTHLENS_WORKERS", "4")
        monkeypatch.setenv("DEPTHLENS_WORKER_GPUS", "0.5")
        assert cluster.asked({"workers": None}) == Asked("local", 4, None, 0.5)
        assert cluster.asked({"workers": 2, "ray": "host:1"}) == Asked("host:1", 2, None, 0.5)

    def test_what_the_command_line_asks_for_reaches_kernels(self, monkeypatch):
        for name in cluster.NAMES:
            monkeypatch.setenv(cluster.environment(name), "")  # what is set is taken back
        cluster.configure(workers="2", ray=None, worker_cpus="3", worker_gpus="0.25")
        assert cluster.asked({}) == Asked("local", 2, 3, 0.25)

    @pytest.mark.parametrize(
        ("options", "line"),
        [
            ({"workers": 0}, "workers 0: give a whole number, at least 1"),
            ({"workers": "two"}, "workers 'two': give a whole number"),
            ({"ray": " "}, "ray ' ': give 'local' or the address"),
            ({"worker_cpus": 0, "workers": 1}, "worker_cpus 0: give a whole number"),
            ({"worker_gpus": 1.5, "workers": 1}, "worker_gpus 1.5: give a share of a GPU"),
            ({"worker_gpus": 0, "workers": 1}, "worker_gpus 0: give a share of a GPU"),
            ({"worker_cpus": 2}, "worker_cpus 2: no workers are asked for"),
        ],
    )
    def test_a_bad_value_is_one_line(self, lens, options, line):
        with pytest.raises(UserError, match=line):
            dl.layer_sweep(lens, TASK, limit=1, **options)

    @pytest.mark.parametrize("text", ["0", "many", "1.5"])
    def test_so_is_one_of_the_environment(self, lens, monkeypatch, text):
        monkeypatch.setenv("DEPTHLENS_WORKERS", text)
        with pytest.raises(UserError, match="workers '?[a-z0-9.]+'?: give a whole number"):
            dl.layer_sweep(lens, TASK, limit=1)

    def test_what_runs_in_one_process_refuses_workers(self, lens):
        with pytest.raises(UserError, match="workers 2: attribution runs in one process"):
            dl.head_sweep(lens, TASK, limit=1, method="attribution", workers=2)
        with pytest.raises(UserError, match="workers 2: plan runs in one process"):
            dl.plan(lens, TASK, "layers", limit=1, workers=2)

    @pytest.mark.parametrize("command", [["sweep", "organism", TASK, "--ablate", "L0"], ["run", "00_tour"]])
    def test_a_plan_refuses_workers(self, command, capsys):
        with pytest.raises(SystemExit) as ended:
            cli.main([*command, "--plan", "--worker-cpus", "2"])
        assert ended.value.code == 2
        assert capsys.readouterr().err == "Error: --worker-cpus: a plan is of one process; leave it out\n"


class TestRay:
    def test_nothing_of_ray_is_imported_without_workers(self, tmp_path):
        program = f"""
import sys
import depthlens as dl
from depthlens import cli
from depthlens.cluster import options, recipes, room
lens = dl.load("organism")
dl.condition_sweep(lens, "organism_one_hop", "L0", limit=2, progress=False, store={str(tmp_path)!r})
assert not [name for name in sys.modules if name.partition(".")[0] == "ray"]
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def test_without_ray_the_line_says_how_to_install_it(self, lens, monkeypatch):
        monkeypatch.setitem(sys.modules, "ray", None)
        with pytest.raises(
            UserError, match=r"which is not installed here .*; pip install 'depthlens\[ray\]', or leave"
        ):
            dl.layer_sweep(lens, TASK, limit=1, workers=2)

    @pytest.mark.parametrize(
        ("address", "line"),
        [
            ("somewhere", "is no address; give HOST:PORT"),
            ("host:port", "is no address; give HOST:PORT"),
            ("127.0.0.1:9", "nothing answers there"),
            ("127.0.0.1:99999", "nothing answers there"),
        ],
    )
    def test_a_wrong_address_is_one_line(self, lens, address, line):
        with pytest.raises(UserError, match=line):
            dl.layer_sweep(lens, TASK, limit=1, ray=address)

    @pytest.mark.parametrize(
        ("says", "line"),
        [(None, "nothing answers there .timed out"), (b"HTTP/1.1 400 Bad Request\r\n\r\n", "there is no Ray")],
    )
    def test_what_answers_and_is_no_ray_is_refused_in_time(self, lens, monkeypatch, says, line):
        monkeypatch.setattr(session, "REACH_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as server:

            def answer():
                connection, _ = server.accept()
                connection.sendall(says)

            if says:
                threading.Thread(target=answer, daemon=True).start()
            with pytest.raises(UserError, match=line):
                dl.layer_sweep(lens, TASK, limit=1, ray=f"127.0.0.1:{server.getsockname()[1]}")


class Machines:
    """Nodes as Ray lists them: CPUs and GPUs of each."""

    def __init__(self, *nodes: tuple[int, int]) -> None:
        self._nodes = [{"Alive": True, "Resources": {"CPU": float(c), "GPU": float(g)}} for c, g in nodes]

    def nodes(self):
        return [*self._nodes, {"Alive": False, "Resources": {"CPU": 64.0}}]


class TestRoom:
    @pytest.mark.parametrize(
        ("nodes", "need", "most"),
        [
            ([(8, 0), (4, 0)], Need(1, 0.0), 12),
            ([(8, 0), (4, 0)], Need(3, 0.0), 3),
            ([(8, 2)], Need(1, 1.0), 2),
            ([(8, 2)], Need(1, 0.5), 4),
            ([(8, 2)], Need(1, 0.4), 4),
            ([(8, 3), (8, 1)], Need(1, 2.0), 1),
            ([(2, 4)], Need(1, 1.0), 2),
        ],
    )
    def test_as_many_as_the_nodes_hold(self, nodes, need, most):
        assert room(Machines(*nodes), need, None) == most
        assert room(Machines(*nodes), need, most) == most
        with pytest.raises(UserError, match=f"workers {most + 1}: Ray has room for {most} with"):
            room(Machines(*nodes), need, most + 1)

    def test_none_at_all(self):
        with pytest.raises(
            UserError, match=r"room for 0 with 1 CPU and 1 GPU each \(its 1 node has 8 CPUs and 0 GPUs\)"
        ):
            room(Machines((8, 0)), Need(1, 1.0), None)
