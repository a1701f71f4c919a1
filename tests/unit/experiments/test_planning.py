"""What a sweep would cost is what it then computes, and planning computes and stores nothing."""

from __future__ import annotations

import pytest
import stores
import surgery
import tiny
from stores import CHOICE, WRITTEN

import depthlens as dl
from depthlens import cli
from depthlens.engine.work import Work, parameters_per_token

COUNTED = ("rows", "tokens", "unshared_tokens", "written_tokens", "flops")
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
    planned = dl.plan(lens, tasks, ablate, store=None, measured=False, **options, **more)
    swept = dl.condition_sweep(lens, tasks, ablate, store=None, progress=False, **options, **more)
    for what in COUNTED:
        assert planned.table[what].sum() == pytest.approx(swept.record["work"][what], rel=1e-9), what
    assert (planned.table["conditions"] == len(swept.record["conditions"])).all()
    assert planned.table["documents"].tolist() == [options["limit"]] * len(tasks)


def test_texts_are_counted_by_what_is_tried(lens):
    """The tiny model writes on until it is stopped, unlike a reference answer."""
    planned = dl.plan(lens, WRITTEN, "layers", limit=8, store=None)
    work = dl.condition_sweep(lens, WRITTEN, "layers", limit=8, store=None, progress=False).record["work"]
    assert planned.table["tokens"].sum() == work["tokens"]
    for what in ("written_tokens", "flops"):
        assert planned.table[what].sum() == pytest.approx(work[what], rel=0.2), what
    assert planned.table["most_written_tokens"].sum() >= work["written_tokens"]
    assert planned.seconds > 0


def test_untried_texts_have_the_length_of_reference_answers(lens):
    planned = dl.plan(lens, WRITTEN, "layers", limit=3, store=None, measured=False)
    docs = list(dl.load_tasks(WRITTEN)[WRITTEN].task_docs)[:3]
    assert planned.table["written_tokens"].sum() == 6 * sum(len(doc["answer"]) + 1 for doc in docs)  # bytes are tokens
    assert planned.seconds != planned.seconds, "no time where none was tried"


def test_a_store_is_looked_into_and_left_as_it_is(lens, tmp_path):
    dl.condition_sweep(lens, CHOICE, "L0,L1", limit=3, store=tmp_path, progress=False)
    before = stores.parts(tmp_path)
    planned = dl.plan(lens, CHOICE, "layers", limit=3, store=tmp_path)
    assert stores.parts(tmp_path) == before
    assert planned.table["known"].sum() == 3 * 3 * 4 and planned.table["rows"].sum() == 3 * 3 * 4
    work = dl.condition_sweep(lens, CHOICE, "layers", limit=3, store=tmp_path, progress=False).record["work"]
    assert work["seconds"] > 0
    assert planned.table["flops"].sum() == pytest.approx(work["flops"], rel=1e-9)
    nothing = dl.plan(lens, CHOICE, "layers", limit=3, store=tmp_path)
    assert nothing.describe() == ["The store has every answer: nothing is computed."]
    assert nothing.table["flops"].sum() == nothing.store_bytes == nothing.seconds == 0


def test_operations_of_one_row_are_those_of_its_products(lens):
    """By hand: parameters and attention of a sequence of 7 tokens, 2 of which are scored."""
    dims = lens.dims
    layer = 2 * sum(p.numel() for p in lens.arch.layers[0].parameters())
    attention = 4 * dims.n_heads * dims.d_head * sum(range(1, 8))
    unembedding = 2 * dims.d_model * tiny.VOCAB
    work = Work(layer_tokens=7 * dims.n_layers, attended=float(dims.n_layers * sum(range(1, 8))), unembedded=2)
    assert work.flops(lens) == pytest.approx(dims.n_layers * (7 * layer + attention) + 2 * unembedding)


def test_of_experts_only_those_that_a_token_is_sent_to_count():
    moe = surgery.rough_lens("qwen3-moe")
    layer = moe.arch.layers[0]
    dense = sum(p.numel() for p in layer.parameters() if p.dim() < 3)
    sparse = sum(p.numel() / p.shape[0] for p in layer.parameters() if p.dim() == 3)
    wanted = dense + moe.model.config.num_experts_per_tok * sparse
    assert parameters_per_token(moe) == pytest.approx(wanted, rel=0.2)  # layers may differ a little
    assert parameters_per_token(moe) < sum(p.numel() for p in layer.parameters())


def test_sentences(lens):
    planned = dl.plan(lens, CHOICE, "layers", limit=20, store=None)
    first, tokens, operations, here, gpus = planned.describe()
    assert first == "480 rows."
    assert "tokens are read" in tokens and "x fewer than one by one" in tokens
    assert operations.endswith("floating point operations.")
    assert here.startswith("Here: about") and "GiB of memory" in here
    assert gpus.startswith("On a GPU at 40% of its peak: H100 ") and "A100" in gpus
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
