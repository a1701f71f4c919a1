"""Sweeps on the tiny model: the contract of table and record, and that what a plan says is what is then computed."""

import json

import pandas as pd
import pytest
import stores
from refusals import refused
from stores import CHOICE, LIMIT, WRITTEN

import depthlens as dl
from depthlens.experiments import condition_runs, planning


@pytest.fixture(scope="module")
def layers(lens):
    return dl.layer_sweep(lens, [CHOICE, WRITTEN], limit=LIMIT, num_fewshot=None, seed=5, progress=False)


def baseline(result, task=CHOICE) -> pd.DataFrame:
    return result.docs.query("condition == 'baseline' and task == @task").reset_index(drop=True)


def test_a_layer_sweep_is_the_baseline_and_every_layer_on_the_same_documents(layers):
    for (_, _), group in layers.docs.groupby(["task", "metric"]):
        assert list(group["condition"].unique()) == ["baseline", "L0", "L1", "L2", "L3", "L4"]
        assert len(group) == (1 + 5) * LIMIT
        for _, rows in group.groupby("condition"):
            assert sorted(rows["doc_id"]) == [0, 1, 2]
    found = set(map(tuple, layers.docs[["task", "metric"]].to_numpy()))
    assert found == {(CHOICE, "acc"), (CHOICE, "acc_norm"), (WRITTEN, "exact_match")}
    assert len(layers.summary) == 3 * 6


def test_layer_and_head_are_filled_where_there_is_exactly_one(lens):
    result = dl.condition_sweep(lens, [WRITTEN], "L3,L2.attn,L1.H2,L0.KV1,L1-2,L0+L4", limit=1, progress=False)
    places = result.docs.set_index("condition")[["layer", "head"]]
    assert places["layer"].dropna().to_dict() == {"L3": 3, "L2.attn": 2, "L1.H2": 1, "L0.KV1": 0}
    assert places["head"].dropna().to_dict() == {"L1.H2": 2}
    assert set(places.index) == {"baseline", "L3", "L2.attn", "L1.H2", "L0.KV1", "L1-2", "L0+L4"}


def test_the_record_says_what_is_needed_to_repeat_the_run(lens, layers):
    record = layers.record
    assert record["model"] == json.loads(json.dumps(lens.describe()))
    assert record["model"]["fingerprint"] == lens.fingerprint and record["model"]["dtype"] == "float32"
    told = {"tree_attention": "fused", "seed": 5, "limit": LIMIT, "backend": "torch", "ablate": "layers"}
    assert record.items() >= told.items()
    assert {"depthlens", "python", "torch", "transformers", "lm-eval"} <= set(record["versions"])
    assert pd.Timestamp(record["time"]).tzinfo is not None and record["platform"] and record["batch_tokens"] > 0
    choice = record["tasks"][CHOICE]
    wanted = {"version": 1.1, "num_fewshot": 5, "n_docs": LIMIT, "output_type": "multiple_choice"}
    assert choice.items() >= wanted.items() and "reference" not in choice
    assert choice["metrics"]["acc"] == {"higher_is_better": True, "chance": 0.25, "floor": 0.25}


def test_the_baseline_does_not_depend_on_what_else_is_swept(lens, layers):
    options = {"limit": LIMIT, "seed": 5, "batch_tokens": 300, "progress": False}
    other = dl.condition_sweep(lens, [WRITTEN, CHOICE], ["L4", "L0.H0"], **options)
    for task in (CHOICE, WRITTEN):
        pd.testing.assert_frame_equal(baseline(other, task=task), baseline(layers, task=task), rtol=1e-4)
    shared = layers.docs.query("condition == 'L4'").reset_index(drop=True)
    again = other.docs.query("condition == 'L4'")
    again = again.sort_values("task", key=lambda t: t != CHOICE, kind="stable").reset_index(drop=True)
    pd.testing.assert_frame_equal(again, shared)
    assert other.record["ablate"] == ["L4", "L0.H0"]


def test_means_name_the_set_they_were_taken_over(lens):
    result = dl.condition_sweep(lens, [WRITTEN], "L2.attn,L2.attn@mean,L3@mean", limit=2, progress=False)
    assert list(result.docs["condition"].unique()) == ["baseline", "L2.attn", "L2.attn@mean", "L3@mean"]
    reference = result.record["tasks"][WRITTEN]["reference"]
    assert reference == f"{WRITTEN}: documents that are not evaluated, without examples"
    # put in place of what was removed, so the model writes something else
    texts = result.docs.groupby("condition")["response"].agg(tuple)
    assert texts["L2.attn@mean"] != texts["L2.attn"]


@pytest.mark.parametrize("wrong", [{"ablate": "L9"}, {"limit": 0}])
def test_mistakes_come_before_any_forward_pass(lens, monkeypatch, wrong):
    monkeypatch.setattr(condition_runs, "Engine", lambda *a, **k: pytest.fail("the model runs"))
    refused("", dl.condition_sweep, lens, **{"tasks": [CHOICE], "ablate": "layers"} | wrong)


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


@pytest.mark.parametrize("name", SWEEPS)
def test_likelihoods_are_counted_exactly(lens, saved, name):
    tasks, ablate, options = SWEEPS[name]
    more = {"donor": saved("llama-gqa", max_position_embeddings=4096)} if name == "a donor" else {}
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


def test_a_machine_that_is_not_here_gets_a_bound(lens, monkeypatch):
    """From what a sweep counts and the model's own weights; nothing is tried."""
    monkeypatch.setattr(planning, "_tried", None)
    work = dl.condition_sweep(lens, CHOICE, "layers", limit=3, store=None, progress=False).record["work"]
    weights = sum(weight.numel() for weight in lens.model.model.layers.parameters())
    for name, peak in planning.MACHINES.items():
        planned = dl.plan(lens, CHOICE, "layers", machine=name, limit=3, store=None)
        (task,) = planned.table.to_dict("records")
        assert task["operations"] == pytest.approx(2 * weights / lens.dims.n_layers * work["layer_tokens"], rel=1e-3)
        assert task["bytes"] == 2 * weights, "in bfloat16, once"
        assert planned.seconds == max(task["operations"] / peak.operations, task["bytes"] / peak.bytes)
        assert f"On {name}: at least" in planned.describe()[-1] and peak.source in planned.describe()[-1]
    written = dl.plan(lens, WRITTEN, "layers", machine="h100", limit=3, store=None).table
    assert written["bytes"][0] > 2 * weights, "again for each token that is written"
    refused("unknown machine 'tpu'; allowed: a100, ", dl.plan, lens, CHOICE, "layers", machine="tpu")


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


def test_the_command_prints_the_plan_and_writes_nothing(saved, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    model = saved("llama-gqa", max_position_embeddings=4096)
    code, out, _ = call("sweep", model, CHOICE, "--plan", "--ablate", "layers", "--limit", 3, "--store", "none")
    assert code == 0 and "72 rows." in out and "Here: about" in out
    machine = call("sweep", model, CHOICE, "--plan", "--ablate", "layers", "--limit", 3, "--machine", "h100")
    assert "On h100: at least 0.0 seconds, a bound" in machine[1]
    assert "tokens are read" in out and "x fewer than one by one" in out
    assert list(tmp_path.iterdir()) == []
