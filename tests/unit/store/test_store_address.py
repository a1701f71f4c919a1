"""A model is known by what it computes: no edit is answered with what another model gave."""

import logging
import os
from functools import partial

import edits
import pytest
import tiny
import torch
from safetensors.torch import load_file, save
from stores import CHOICE, LIMIT, parts, run
from torch.nn import functional as F

import depthlens as dl
from depthlens.store.parts import Store


def test_of_a_model_with_hooks_nothing_is_kept_and_one_line_says_why(tmp_path, caplog):
    """What is answered then, and after other edits, is among `edits.WAYS`."""
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    lens.model.model.layers[1].mlp.register_forward_hook(lambda module, args, out: out * 3)
    with caplog.at_level(logging.WARNING):
        assert run(lens, tmp_path, tasks=[CHOICE]).record["store"] is None
    assert "model tiny-llama-gqa has hooks on model.layers.1.mlp; results are neither read nor kept" in caplog.text


def test_parts_tell_what_made_them(lens, tmp_path):
    run(lens, tmp_path, tasks=[CHOICE])
    (about,) = Store(str(tmp_path)).table().to_dict("records")
    assert about["model"] == lens.name and about["fingerprint"] == lens.fingerprint
    assert about["versions"]["torch"] == torch.__version__ and about["label"] == CHOICE
    assert set(about["conditions"]) == {"baseline", "L0", "L1", "L2", "L3", "L4"}
    assert tmp_path / about["part"] == parts(tmp_path)[0] and about["rows"] == 6 * 4 * LIMIT
    assert {"time", "platform", "git_commit", "dtype", "numerics", "backend"} <= set(about)


def test_functions_and_their_settings_are_part_of_it():
    """By name and settings, since their addresses in memory differ in every process."""
    lens = tiny.lens("llama-gqa")
    mlp, seen = lens.model.model.layers[1].mlp, set()
    partly = [partial(F.silu, inplace=False), partial(F.silu, inplace=True)]
    for value in (F.gelu, *partly, [F.silu], [F.relu], torch.float32, torch.float16, {"a": [1.5]}, {"a": [2.5]}):
        mlp.kept = value
        assert lens.identify().obstacle is None
        seen.add(lens.fingerprint)
    assert len(seen) == 9
    for own in (lambda x: x, type("Strength", (), {"__module__": __name__, "value": 2.0})()):
        mlp.kept = own
        assert lens.identify().obstacle == "has model.layers.1.mlp, whose kept was written in no library"


def test_files_of_an_offloaded_model_are_read_again_when_they_change(tmp_path):
    """Weights are changed in place, so that the open files have them, too."""
    lens = dl.load(tiny.save(tmp_path, "llama-gqa"), offload="disk")
    first = lens.identify()
    assert lens.identify() == first
    path = tmp_path / "model.safetensors"
    about = path.stat()
    weights = load_file(path)
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] += 1
    fresh = save(weights, metadata={"format": "pt"})
    assert len(fresh) == about.st_size
    with open(path, "r+b") as file:
        file.write(fresh)
    os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
    changed = lens.identify()
    assert changed != first and changed == dl.load(tmp_path).identify()


# `edits.py` edits a model in every way that we know.


@pytest.mark.parametrize("todo", [
    pytest.param(edits.some(40, seed=0), marks=pytest.mark.slow, id="random"),
    pytest.param([(way, 0) for way in edits.WAYS], marks=pytest.mark.nightly, id="all"),
])  # fmt: skip
def test_no_edit_is_answered_with_what_another_model_gave(tmp_path, todo):
    found = edits.tried(todo, str(tmp_path))
    assert found["wrong"] == [] and found["changed"] >= 0.85 * len(todo), "most edits must change some answer"
