"""Models on a server: an NDIF server written in fifty lines runs beside the tests."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import backend_table
import httpx
import nnsight
import pandas as pd
import pytest
import tiny
import torch
from remote_models import FAMILIES, TASK, TOLERANCE, contexts_and_answers, every_kind, requests, scores

from depthlens import cli
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.models import loading, remote
from depthlens.requests import GenerateRequest
from depthlens.runner import session

# --- a server --------------------------------------------------------------------------------------------------------

KEY = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server process, and the folders of the models that it serves, by family."""
    root = tmp_path_factory.mktemp("served")
    folders = {f: str(tiny.save(root / f, f, max_position_embeddings=4096)) for f in FAMILIES}
    script = Path(__file__).parents[2] / "ndif_server.py"
    call = [sys.executable, str(script), KEY, *folders.values()]
    env = {**os.environ, "PYTHONPATH": ""}
    with subprocess.Popen(call, stdout=subprocess.PIPE, text=True, cwd=root, env=env) as process:
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}", folders
        finally:
            process.terminate()


@pytest.fixture
def served(server, monkeypatch):
    host, folders = server
    monkeypatch.setenv("NDIF_HOST", host)
    monkeypatch.setenv("NDIF_API_KEY", KEY)
    monkeypatch.setattr(remote, "PAUSES", (0.0, 0.0))
    yield folders
    for kind in ("memory", "drop", "crash", "refuse"):
        fault(kind, 0)


def fault(kind, n):
    httpx.get(os.environ["NDIF_HOST"] + "/fault", params={"kind": kind, "n": n}).raise_for_status()


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_of_a_server_are_those_of_the_torch_backend(family, served):
    whole, far = loading.load(served[family], device="cpu"), loading.load(served[family], remote=True)
    assert {p.device.type for p in (*far.model.parameters(), *far.nnsight._module.parameters())} == {"meta"}
    conditions = every_kind(whole.dims)
    here, there = (measure_means(lens, *contexts_and_answers()) for lens in (whole, far))
    before = vars(far.remote.traffic).copy()
    wanted, got = scores(whole, conditions, means=here), scores(far, conditions, means=there, batch_tokens=1 << 14)
    torch.testing.assert_close(got[0], wanted[0], rtol=0, atol=TOLERANCE)
    assert got[1] == wanted[1]
    after = vars(far.remote.traffic)
    assert after["traces"] - before["traces"] == 1
    received, n_rows = after["received"] - before["received"], len(conditions) * len(requests())
    assert received < 16 * n_rows + 2000, f"{received} bytes for {n_rows} rows"
    asked = [GenerateRequest(q.context, ("a",), 5) for q in requests()]
    texts = [
        Engine(lens, progress=False, means=means).generate_until(
            asked, [BASELINE, *map(parse_condition, ("L1.H1", "L1[1:]", "L2@mean"))]
        )
        for lens, means in ((whole, here), (far, there))
    ]
    assert texts[0] == texts[1]


def test_what_a_record_says_of_a_server(served):
    far = loading.load(served["qwen3"], remote=True)
    about = json.loads(json.dumps(far.describe()))
    assert about["dtype"] == "float32" and about["device"] == "cpu" and far.dtype == torch.float32
    assert about["remote"]["host"] == os.environ["NDIF_HOST"] and KEY not in str(about)
    assert about["remote"]["key"].startswith("nnsight.modeling.transformers.TransformersModel:{")
    assert about["remote"]["versions"]["nnsight"] == nnsight.__version__
    assert set(about["remote"]["versions"]) == {"python", "nnsight", "torch", "transformers"}
    assert about["fingerprint"].startswith("remote:")
    other = loading.load(served["llama-gqa"], remote=True)
    assert other.fingerprint != far.fingerprint == loading.load(served["qwen3"], remote=True).fingerprint
    assert f"float32 on {os.environ['NDIF_HOST']}" in repr(far)


def test_how_the_model_ends_its_texts_is_read_without_its_weights(served, tmp_path):
    """From generation_config.json, as for a model in memory; the server has it, too."""
    assert loading.load(served["qwen3"], remote=True).model.generation_config.eos_token_id == 257


def test_a_sweep_on_the_command_line(served, tmp_path, capsys):
    folder, found = served["llama-gqa"], {}
    call = ["sweep", folder, TASK, "--ablate", "L1,L2@mean", "--limit", "2", "--num-fewshot", "0"]
    for way in ("--remote", "--device=cpu"):
        with pytest.raises(SystemExit) as ended:
            cli.main([*call, way, "--out", str(tmp_path / way)])
        assert ended.value.code == 0, capsys.readouterr().err
        found[way] = pd.read_parquet(tmp_path / way / "docs.parquet")
    pd.testing.assert_frame_equal(found["--remote"], found["--device=cpu"], rtol=0, atol=TOLERANCE)
    assert json.loads((tmp_path / "--remote" / "record.json").read_text())["model"]["remote"]["host"]


def test_a_notebook_says_where_it_runs(served, capsys):
    session.setup_notebook(served["llama-gqa"], [TASK], remote=True)
    assert f"on cpu of {os.environ['NDIF_HOST']}" in capsys.readouterr().out


def test_a_server_without_memory_for_a_trace_gets_smaller_ones(served):
    far = loading.load(served["llama-gqa"], remote=True)
    conditions = expand("layers@mean", far.dims)
    means = measure_means(far, backend_table.REFERENCE, "two")
    wanted = scores(far, conditions, means=means)
    fault("memory", 7)
    before = far.remote.traffic.traces
    found = scores(far, conditions, means=means)
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=TOLERANCE)  # smaller batches round otherwise
    assert far.remote.traffic.traces - before > 30 // 7
    fault("memory", 1)
    torch.testing.assert_close(measure_means(far, backend_table.REFERENCE, "two").z, means.z)


def test_a_connection_that_breaks_is_made_again(served):
    far = loading.load(served["llama-gqa"], remote=True)
    conditions = expand("layers", far.dims)
    wanted = scores(far, conditions)
    fault("drop", 2)
    assert torch.equal(scores(far, conditions)[0], wanted[0])
    fault("drop", 3)
    with pytest.raises(UserError, match="no connection to http://127.0.0.1.*; check the network, or NDIF_HOST"):
        scores(far, conditions)
    assert torch.equal(scores(far, conditions)[0], wanted[0])


def test_a_job_that_is_refused_is_one_line_and_a_bug_of_ours_keeps_its_traceback(served):
    far = loading.load(served["llama-gqa"], remote=True)
    fault("refuse", 1)
    with pytest.raises(UserError, match="did not run .*Could not deploy this model. It is too big.*; try again later"):
        scores(far, [BASELINE])
    fault("crash", 1)
    with pytest.raises(remote.RemoteError, match="(?s)Traceback.*ZeroDivisionError: boom"):
        scores(far, [BASELINE])
    assert scores(far, [BASELINE])[0].isfinite().all()


def refusal(name):
    with pytest.raises(UserError) as caught:
        loading.load(name, remote=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_model_that_is_not_served_is_told_before_anything_is_downloaded(served, tmp_path, capsys):
    message = refusal("llama-3.3-70b-instruct")
    assert message.startswith(f"model 'meta-llama/Llama-3.3-70B-Instruct' is not served by {os.environ['NDIF_HOST']}")
    assert f"it serves {served['deepseek-v3']}, {served['llama-gqa']}" in message
    assert "not served by" in refusal("a/picture-model") and "not served by" in refusal("a/model-on-disk")
    assert "picture" not in message and "on-disk" not in message
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "qwen3-8b", TASK, "--ablate", "layers", "--remote", "--out", str(tmp_path)])
    assert ended.value.code == 2
    _, told = capsys.readouterr().err.splitlines()
    assert told.startswith("Error: model 'Qwen/Qwen3-8B' is not served by")


@pytest.mark.parametrize("key", ["wrong", ""])
def test_a_key_that_the_server_refuses(served, monkeypatch, key):
    monkeypatch.setenv("NDIF_API_KEY", key)
    monkeypatch.setattr(remote.CONFIG.API, "APIKEY", None)
    message = refusal(served["llama-gqa"])
    assert "refuses the NDIF API key" in message and "set NDIF_API_KEY or run 'nnsight login'" in message


def test_no_key_for_ndif_is_told_without_a_connection(monkeypatch):
    monkeypatch.delenv("NDIF_API_KEY", raising=False)
    monkeypatch.delenv("NDIF_HOST", raising=False)
    monkeypatch.setattr(remote.CONFIG.API, "APIKEY", None)
    monkeypatch.setattr(remote.CONFIG.API, "HOST", remote.NDIF)
    monkeypatch.setattr(remote.httpx, "get", lambda *a, **k: pytest.fail("asked the server"))
    message = refusal("qwen3-8b")
    assert message.startswith(
        "remote=True needs an NDIF API key; get one at https://login.ndif.us, then set NDIF_API_KEY"
    )


def test_no_connection(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("NDIF_HOST", f"http://127.0.0.1:{free.getsockname()[1]}")
        assert refusal("qwen3-8b").startswith(f"no connection to {os.environ['NDIF_HOST']} (")
    monkeypatch.setenv("NDIF_HOST", "api.ndif.us")
    assert refusal("qwen3-8b").startswith("no connection to api.ndif.us (")


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, "<html>", "does not answer as an NDIF server (200); try again later"),
        (404, "{}", "does not answer as an NDIF server (404); try again later"),
        (
            503,
            '{"detail": "Service temporarily unavailable"}',
            "(503: Service temporarily unavailable); try again later",
        ),
        (200, '{"deployments": {}}', "is not served by"),
    ],
)
def test_another_server(monkeypatch, status, body, said):
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answer) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        monkeypatch.setenv("NDIF_HOST", f"http://127.0.0.1:{other.server_port}")
        try:
            assert said in refusal("qwen3-8b")
        finally:
            other.shutdown()


def test_another_version_on_the_server_is_told(served, monkeypatch, caplog):
    monkeypatch.setattr(remote.provenance, "version", lambda name: "0.1.0")
    loading.load(served["llama-gqa"], remote=True)
    assert "here it is 0.1.0: results may differ" in caplog.text
