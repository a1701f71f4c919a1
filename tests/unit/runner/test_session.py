"""`start`: the good path prints one line and gives the model, every wrong parameter is one line before that."""

from __future__ import annotations

import random

import numpy as np
import pytest
import tiny
import torch

import depthlens as dl
from depthlens.errors import UserError
from depthlens.models import loading
from depthlens.models.lens import Lens

TASKS = ["capitals_continuation", "kv_retrieval_4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny.save(tmp_path_factory.mktemp("model"), "llama-gqa"))


def test_a_good_start_prints_one_line_and_gives_the_model(folder, tmp_path, capsys):
    lens = dl.setup_notebook(folder, TASKS, limit=3, num_fewshot=None, seed=7, dtype="bfloat16", device="cpu", out=None)
    assert isinstance(lens, Lens) and lens.dtype == torch.bfloat16
    printed = capsys.readouterr()
    assert printed.out.count("\n") == 1 and printed.err == ""
    for part in ("depthlens 0.", "torch ", "lm-eval ", "git ", folder, "bfloat16 on cpu", "sdpa", "seed 7"):
        assert part in printed.out
    assert lens.fingerprint[:12] in printed.out


def test_the_seed_reaches_every_generator(folder):
    def draw(seed):
        dl.setup_notebook(folder, TASKS, seed=seed)
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    first, again, other = draw(3), draw(3), draw(4)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


def test_the_output_folder_is_made(folder, tmp_path):
    dl.setup_notebook(folder, TASKS, out=str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b").is_dir() and not any((tmp_path / "a" / "b").iterdir())


@pytest.mark.parametrize(
    ("parameter", "value", "said"),
    [
        ("model", "smollm2-135", "unknown model 'smollm2-135'; did you mean smollm2-135m, "),
        ("include_path", "/nowhere", "include_path '/nowhere': give a folder that exists"),
        ("apply_chat_template", True, "apply_chat_template: the tokenizer of "),
        ("enable_thinking", False, "enable_thinking is an argument of the chat template"),
        ("attention_layers", 0, "attention_layers 0: give a whole number, at least 1"),
        ("base", ["a", "b"], "base ['a', 'b']: give a list of at least 0 and at most 1"),
        ("depths", [0.5, 2], "depths 2: give a number from 0 to 1"),
        ("knowledge", ["capitals_generativ"], "unknown task 'capitals_generativ'; did you mean capitals_generative"),
        ("layers", 3, "layers 3: give a list"),
        ("layers", [3, 9], "layers [3, 9]: condition L9: layer 9 does not exist; layers are 0..4"),
        ("prompt", " ", "prompt ' ': give a text"),
        ("race", "yes", "race 'yes': give True or False"),
        ("rounding", "int3", "unknown rounding 'int3'; did you mean int8, int4"),
        ("seeds", [0, -1], "seeds -1: give a whole number from 0"),
        ("text_set", "wiki", "unknown text_set 'wiki'; allowed: embedded, c4"),
        ("views", ["layers@mean"], "views ['layers@mean']: name layers among them"),
        ("views", ["layers", "L9"], "views ['layers', 'L9']: condition L9: layer 9 does not exist"),
        ("ways", ["layers@median"], "ways ['layers@median']: mode 'median' does not fit"),
        ("way", ["layers"], "unknown parameter 'way'; did you mean ways"),
    ],
)
def test_a_wrong_parameter_is_told_in_one_line(folder, capsys, parameter, value, said):
    with pytest.raises(UserError) as raised:
        dl.setup_notebook(**({"model": folder, "tasks": TASKS} | {parameter: value}))
    assert said in str(raised.value) and "\n" not in str(raised.value)
    assert capsys.readouterr().out == ""


def test_everything_cheap_is_checked_before_the_model_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "load", lambda *a, **k: pytest.fail("the model is loaded"))
    for wrong in ({"limit": 0}, {"seed": -1}, {"tasks": ["no_such_task"]}, {"num_fewshot": 99}):
        with pytest.raises(UserError):
            dl.setup_notebook(**({"model": "smollm2-135m", "tasks": ["capitals_continuation"]} | wrong))
