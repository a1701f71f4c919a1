"""What a sweep would cost is what it then computes, and planning computes and stores nothing."""

from __future__ import annotations

import pytest
import stores
import tiny
from stores import CHOICE, WRITTEN

import depthlens as dl
from depthlens import cli

COUNTED = ("rows", "unshared_tokens", "written_tokens")
SWEEPS = {
    "choices": ([CHOICE], "layers", {"limit": 20}),
    "several kinds": ([CHOICE], "layers[1:],heads,L1-3,L2@noise,L4.mlp", {"limit": 5}),
    "means": ([CHOICE], "layers@mean", {"limit": 4}),
    "examples": ([CHOICE, "capitals_default"], "layers", {"limit": 6, "num_fewshot": 2}),
    "small batches": ([CHOICE], "layers", {"limit": 6, "batch_tokens": 20}),
    "reference answers": ([WRITTEN], "layers", {"limit": 6, "measure": "answer_logprob"}),
    "another backend": ([CHOICE], "layers", {"limit": 2, "backend": "nnsight"}),
    "a donor": ([CHOICE], "layers@donor", {"limit": 4}),
    "resampled": ([CHOICE], "L1.H0@resample,L2.H1@resample", {"limit": 3, "resample_prompts": ["One", "Two words"]}),
}


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=8192)


@pytest.mark.parametrize("name", SWEEPS)
def test_likelihoods_are_counted_exactly(lens, saved, name):
    tasks, ablate, options = SWEEPS[name]
    more = {"donor": saved("llama-gqa", max_position_embeddings=8192)} if name == "a donor" else {}
    planned = dl.plan(lens, tasks, ablate, store=None, **options, **more)
    swept = dl.condition_sweep(lens, tasks, ablate, store=None, progress=False, **options, **more)
    for what in COUNTED:
        assert planned.table[what].sum() == swept.record["work"][what], what
    assert planned.table["tokens"].sum() <= swept.record["work"]["tokens"], "packs may read shared tokens once more"
    assert (planned.table["conditions"] == len(swept.record["conditions"])).all()
    assert planned.table["documents"].tolist() == [options["limit"]] * len(tasks)


def test_texts_are_counted_by_what_is_tried(lens):
    """The tiny model writes on until it is stopped, unlike a reference answer."""
    planned = dl.plan(lens, WRITTEN, "layers", limit=8, store=None)
    work = dl.condition_sweep(lens, WRITTEN, "layers", limit=8, store=None, progress=False).record["work"]
    assert planned.table["tokens"].sum() == work["tokens"]
    assert planned.table["written_tokens"].sum() == pytest.approx(work["written_tokens"], rel=0.2)
    assert planned.seconds > 0


def test_a_store_is_looked_into_and_left_as_it_is(lens, tmp_path):
    dl.condition_sweep(lens, CHOICE, "L0,L1", limit=3, store=tmp_path, progress=False)
    before = stores.parts(tmp_path)
    planned = dl.plan(lens, CHOICE, "layers", limit=3, store=tmp_path)
    assert stores.parts(tmp_path) == before
    assert planned.table["known"].sum() == 3 * 3 * 4 and planned.table["rows"].sum() == 3 * 3 * 4
    work = dl.condition_sweep(lens, CHOICE, "layers", limit=3, store=tmp_path, progress=False).record["work"]
    assert work["seconds"] > 0
    assert planned.table["unshared_tokens"].sum() == work["unshared_tokens"]
    nothing = dl.plan(lens, CHOICE, "layers", limit=3, store=tmp_path)
    assert nothing.describe() == ["The store has every answer: nothing is computed."]
    assert nothing.table["tokens"].sum() == nothing.seconds == 0


def test_sentences(lens):
    planned = dl.plan(lens, CHOICE, "layers", limit=20, store=None)
    first, tokens, here = planned.describe()
    assert first == "480 rows."
    assert "tokens are read" in tokens and "x fewer than one by one" in tokens
    assert here.startswith("Here: about") and "GiB of memory" in here
    assert CHOICE in repr(planned) and first in repr(planned)


@pytest.mark.parametrize("form", [["plan"], ["sweep", "--plan"]])
def test_the_command_prints_the_plan_and_writes_nothing(saved, tmp_path, monkeypatch, capsys, form):
    monkeypatch.chdir(tmp_path)
    model = saved("llama-gqa", max_position_embeddings=8192)
    with pytest.raises(SystemExit) as end:
        cli.main([*form, model, CHOICE, "--ablate", "layers", "--limit", "3", "--store", "none"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and "72 rows." in out and "Here: about" in out
    assert list(tmp_path.iterdir()) == []
