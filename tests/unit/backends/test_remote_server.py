"""Models on a server: an NDIF server written in fifty lines runs beside the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch
from remote_models import TASK, TOLERANCE, contexts_and_answers, every_kind, requests, scores

from depthlens import cli
from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine.engine import Engine
from depthlens.engine.references import measure_means
from depthlens.errors import UserError
from depthlens.models import loading, remote
from depthlens.requests import GenerateRequest

# --- a server --------------------------------------------------------------------------------------------------------

KEY = "11111111-2222-3333-4444-555555555555"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a server process, and the folders of the models that it serves, by family."""
    root = tmp_path_factory.mktemp("served")
    folders = {f: str(tiny.save(root / f, f, max_position_embeddings=4096)) for f in ("llama-gqa", "deepseek-v3")}
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
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("family", ["deepseek-v3"])
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


@pytest.mark.nightly
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


def refusal(name):
    with pytest.raises(UserError) as caught:
        loading.load(name, remote=True)
    message = str(caught.value)
    assert "\n" not in message
    return message


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
