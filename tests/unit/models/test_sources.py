"""Names of models before anything heavy: what they stand for, and refusals in time, with and without a hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import huggingface_hub
import pytest
import tiny

from depthlens.errors import UserError
from depthlens.models import sources


def test_what_a_name_stands_for(tmp_path):
    folder = tiny.save(tmp_path / "model", "llama-gqa")
    assert sources.find(folder) == sources.Source(str(folder), "folder", str(folder))
    assert sources.find("organism:seed=3,decoy").kind == "organism"
    assert sources.find("owner/name") == sources.Source("owner/name", "hub", "owner/name")
    assert sources.find("qwen3-8b").place == "Qwen/Qwen3-8B"
    tagged = sources.Source("owner/name@step100", "hub", "owner/name", revision="step100")
    assert sources.find("owner/name@step100") == tagged
    assert sources.find("qwen3-8b@refs/pr/1").place == "Qwen/Qwen3-8B"
    assert sources.find("qwen3-8b@refs/pr/1").revision == "refs/pr/1"
    (folder / "model.safetensors").unlink()
    assert sources.find(folder, weights=False).kind == "folder"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("smollm2-135m@main", "only models of the hub have revisions, and 'smollm2-135m' is of another kind"),
        ("owner/name@", "give a model and a revision, such as owner/name@main"),
        ("@step100", "give a model and a revision, such as owner/name@main"),
        ("qwen3-8@main", "unknown model 'qwen3-8'"),
        ("./none@main", "model directory './none@main' does not exist"),
    ],
)
def test_revisions_that_mean_nothing(name, said):
    with pytest.raises(UserError, match="^[^\n]*$") as refused:
        sources.find(name)
    assert said in str(refused.value)


@pytest.mark.nightly
def test_a_revision_is_that_of_the_cache(tmp_path):
    """Two revisions of one model, as the hub's client keeps them; each is loaded by its name without a network."""
    for step, commit in (("step1", "1" * 40), ("step2", "2" * 40)):
        there = tmp_path / "hub" / "models--owner--name"
        made = tiny.model("llama-gqa", max_position_embeddings=128)
        made.model.norm.weight.data.fill_(float(step[-1]))
        made.save_pretrained(there / "snapshots" / commit)
        tiny.tokenizer().save_pretrained(there / "snapshots" / commit)
        (there / "refs").mkdir(exist_ok=True)
        (there / "refs" / step).write_text(commit)
    program = (
        "import depthlens as dl\n"
        "loaded = [dl.load(f'owner/name@step{i}') for i in (1, 2)]\n"
        "print([lens.model.model.norm.weight[0].item() for lens in loaded])\n"
        "dl.load('owner/name@step3')"
    )
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout == "[1.0, 2.0]\n", done.stderr
    assert done.stderr.splitlines()[-1].startswith("depthlens.errors.UserError: model 'owner/name@step3' is not in the")


def test_what_a_gguf_file_holds_is_left_to_transformers(tmp_path):
    assert sources.find(tiny.gguf_head(tmp_path / "a.gguf")).kind == "gguf"


# -- the hub --


@pytest.fixture
def online(monkeypatch):
    """A network whose hub gives no answer; returns the questions that were asked."""
    asked = []

    def ask(url, timeout):
        asked.append((url, timeout))
        raise ConnectionError("refused")

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", ask)
    sources.probe.cache_clear()
    yield asked
    sources.probe.cache_clear()


def test_what_the_local_cache_holds_is_used_where_the_hub_gives_no_answer(online, tmp_path, monkeypatch, caplog):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *a: str(path))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *a, local_files_only: str(path))
    found = sources.probe(sources.find("owner/model"))
    assert found.only_cached and "no answer from the hub" in caplog.text
    assert sources.probe(sources.find("owner/model")) == found
    ((_, seconds),) = online  # it is asked once, and has as long as the hub library itself waits for one answer
    assert seconds == sources.SECONDS <= 10
