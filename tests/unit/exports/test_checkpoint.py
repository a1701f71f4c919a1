"""An exported checkpoint computes what its condition computes, in depthlens and in lm-eval's ``hf``."""

import errno
from pathlib import Path

import by_hand
import mini_tasks
import model_classes
import pytest
import surgery
import tiny
import torch
import yaml
from refusals import refused
from safetensors import safe_open
from transformers import AutoModelForCausalLM, PreTrainedModel

import depthlens as dl
from depthlens.exports import checkpoint

SAME = 1e-5  # nats: removed parts are zeros instead of absent, and sums take another order
CONDITIONS = ["L1", "L1-2", "L0+L3.mlp", "L2.attn", "L1.H1+L3.KV0", "L0+L2.H0+L2.H1", "L0+L2@int4+L3.mlp@int8+L3.H1"]
FAMILIES = ["qwen2", "qwen3-moe", "deepseek-v3"]
# sliding windows by layer, layers without positions, norms after parts, one matrix for queries, keys and values
CLASSES = ["gemma2", "gemma3_text", "smollm3"]
MORE = ["phi3", "olmo2", "mixtral", "qwen2_moe", "glm4_moe", "cohere2"]


def assert_is_condition(lens: dl.Lens, condition: str, out: Path) -> dl.Lens:
    """Export, load again, and compare with the condition; returns what was loaded."""
    (base, wanted), before = model_classes.scores(lens, ["baseline", condition]), lens.fingerprint
    assert not torch.allclose(wanted, base, atol=100 * SAME)
    found = dl.export(lens, condition, out)
    loaded = dl.load(str(out), dtype="float32")
    assert loaded.dims.n_layers == len(found.layers)
    assert torch.allclose(model_classes.scores(loaded, ["baseline"])[0], wanted, atol=SAME)
    plain = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    assert [by_hand.logprob(plain, q) for q in model_classes.ASKED] == pytest.approx(wanted.tolist(), abs=10 * SAME)
    assert found.n_parameters == sum(w.numel() for w in loaded.model.parameters())
    assert found.n_whole == sum(w.numel() for w in lens.model.parameters())
    assert lens.fingerprint == before
    return loaded


# llama-gqa has all conditions, the other families three that cross what is special in them
FEW = [(family, condition) for family in FAMILIES for condition in ("L1", "L1.H1+L3.KV0", CONDITIONS[-1])]


@pytest.mark.parametrize(("family", "condition"), [*(("llama-gqa", c) for c in CONDITIONS), *FEW])
def test_scores_are_the_conditions(family, condition, tmp_path):
    assert_is_condition(tiny.lens(family), condition, tmp_path / "out")


@pytest.mark.parametrize("kind", [*CLASSES, *(pytest.param(kind, marks=pytest.mark.nightly) for kind in MORE)])
def test_layers_of_other_classes_are_left_out(kind, tmp_path):
    assert_is_condition(model_classes.lens(kind), "L0+L2", tmp_path / "out")


SCALED = {"L1.attn*0.5+L2.mlp*2": ["llama-gqa", "qwen2"], "L1.H0*0.5+L1.KV0*3+L3.H1": ["llama-gqa", "deepseek-v3"]}
SCALED |= dict.fromkeys(("L0+L1.KV1*0.5+L1.attn*2+L4.mlp*0", "L1.attn@int8+L1.H1*2"), ["llama-gqa"])


@pytest.mark.parametrize(("condition", "family"), [(c, f) for c, families in SCALED.items() for f in families])
def test_weights_are_scaled_and_so_are_biases(condition, family, tmp_path):
    biases = {"attention_bias": True, "mlp_bias": True} if family == "llama-gqa" else {}
    assert_is_condition(surgery.rough_lens(family, **biases), condition, tmp_path / "out")


@pytest.mark.parametrize(("kind", "condition", "n_layers"), [
    ("qwen3", "L0+L1.H1+L1-2x2", 5), ("gemma2", "(L1-2)x2", 6), ("llama", "(L0-2)x2+L2x2+L3+L1.mlp", 8),
])  # fmt: skip
def test_a_layer_that_runs_twice_is_there_twice(kind, condition, n_layers, tmp_path):
    lens = model_classes.lens(kind)
    loaded = assert_is_condition(lens, condition, tmp_path / "out")
    assert loaded.dims.n_layers == n_layers
    dl.export(lens, "L0+L2x2", tmp_path / "slices")
    slices = yaml.safe_load((tmp_path / "slices" / "mergekit.yml").read_text())["slices"]
    assert [part["sources"][0]["layer_range"] for part in slices] == [[1, 3], [2, 4]]


def test_heads_are_zero(tmp_path):
    lens = tiny.lens("llama-gqa")
    assert_is_condition(tiny.lens("llama-mha"), "+".join(f"L{i}.H2" for i in range(5)), tmp_path / "three")
    found = dl.export(lens, "L1.H1", tmp_path / "out")
    columns = lens.dims.d_head * lens.dims.d_model
    assert (found.n_parameters, found.n_zero) == (found.n_whole, columns)
    assert f"{columns} of them set to zero" in str(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", [
    "qwen3-moe", *(pytest.param(f, marks=pytest.mark.nightly) for f in ("llama-gqa", "qwen2", "deepseek-v3")),
])  # fmt: skip
def test_lm_evals_hf_gives_the_conditions_scores_document_by_document(family, tmp_path):
    folder = mini_tasks.write(tmp_path)
    lens = tiny.lens(family)
    tasks = ["mini_choice", "mini_cloze", "mini_writing", "mini_filters"]
    result = dl.condition_sweep(lens, tasks, "L1-2+L4", include_path=str(folder), store=None, progress=False)
    dl.export(lens, "L1-2+L4", tmp_path / "out")
    beside = dl.hf_scores(tmp_path / "out", result, "L4+L1-2")
    assert beside["condition"].to_numpy() == pytest.approx(beside["checkpoint"].to_numpy(), abs=1e-3)
    ours = result.docs
    assert len(beside) == (ours["condition"].eq("L1-2+L4") & ours["metric"].ne("nats")).sum()
    refused("unknown condition 'L9'", dl.hf_scores, tmp_path / "out", result, "L9")


def test_tied_embeddings_stay_tied_and_an_offloaded_model_gives_the_same_files(tmp_path):
    tiny.save(tmp_path / "model", "qwen2", tie_word_embeddings=True)
    found = []
    for name, offload in (("whole", None), ("offloaded", "disk")):
        lens = dl.load(str(tmp_path / "model"), offload=offload)
        dl.export(lens, "L2+L3.H1", tmp_path / name)
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            found.append({key: file.get_tensor(key) for key in file.keys()})
    assert found[0].keys() == found[1].keys() and "lm_head.weight" not in found[0]
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole")
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_several_files_make_one_model(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 20_000)
    assert_is_condition(tiny.lens("qwen3-moe"), "L1", tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 2


def test_the_card_says_what_was_removed_and_what_it_cost(tmp_path):
    lens = tiny.lens("llama-gqa")
    folder = mini_tasks.write(tmp_path)
    options = {"include_path": str(folder), "measure": "answer_logprob", "store": None, "progress": False}
    result = dl.condition_sweep(lens, "mini_cloze", "L1-2,L3", **options)
    dl.export(lens, "L1-2", tmp_path / "out", result=result)
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    for row in result.summary.query("condition == 'L1-2'").itertuples():
        numbers = f"{row.value - row.delta:.3f} | {row.value:.3f} | {row.bounded:+.3f}"
        assert f"| mini_cloze | {row.metric} | 5 | {numbers} [" in card
    assert "# tiny-llama-gqa without L1-2" in card and lens.fingerprint in card and "left: 0, 3-4." in card
    recipe = yaml.safe_load((tmp_path / "out" / "mergekit.yml").read_text(encoding="utf-8"))
    assert [s["sources"][0]["layer_range"] for s in recipe["slices"]] == [[0, 1], [3, 5]]
    assert recipe["merge_method"] == "passthrough"
    with pytest.raises(dl.UserError, match="condition L4 is not in the result; sweep it first"):
        dl.export(lens, "L4", tmp_path / "other", result=result)
    with pytest.raises(dl.UserError, match="the result is of tiny-llama-gqa, and not of 'tiny-qwen2' as it is now"):
        dl.export(tiny.lens("qwen2"), "L3", tmp_path / "other", result=result)
    assert not (tmp_path / "other").exists()


def test_a_layer_that_depends_on_how_many_there_are_is_told(tmp_path):
    lens = model_classes.lens("minicpm3")  # scales what it adds by the square root of their number
    with pytest.raises(dl.UserError, match="the configuration of .* makes layer 0 another one; export another"):
        dl.export(lens, "L1", tmp_path / "out")
    assert_is_condition(lens, "L1.mlp+L2.H0", tmp_path / "out")


def test_a_folder_that_cannot_be_written_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    lens = tiny.lens("llama-gqa")
    (tmp_path / "mine.txt").write_text("kept")
    refused("cannot write to .*; name a folder you can write to", dl.export, lens, "L1", tmp_path / "mine.txt" / "out")

    def no_room(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", no_room)
        refused("No space left on device", dl.export, lens, "L1", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
