"""Quantised models: the scores of plain passes of the same model on every path, and weights as small as they say."""

import pytest
import tiny
import torch
from model_classes import scores
from refusals import refused
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import depthlens as dl
from depthlens.ablations import BASELINE, expand, parse_condition
from depthlens.models import quantised
from depthlens.models.placement import tensors_of
from depthlens.requests import GenerateRequest

SAME = 1e-4  # nats: rows are multiplied in batches of other sizes
SCHEMES = ["int8", "int4", "nf4"]
CASES = [*(("llama-gqa", scheme) for scheme in SCHEMES), ("qwen3-moe", "int8"), ("deepseek-v3", "nf4")]
ABLATE = "layers,attn,heads,kv,L1@noise,L1.H1@noise,L1.attn@noise+L2.mlp,L1x2"


WIDE = {"hidden_size": 64, "intermediate_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 4}


@pytest.fixture(scope="module")
def wide(saved):
    """Folders of tiny models whose widths are multiples of 32."""
    return lambda family="llama-gqa": saved(family, **WIDE | ({"v_head_dim": 16} if "deep" in family else {}))


@pytest.mark.parametrize("family, scheme", CASES)
def test_every_path_and_backend_gives_the_same_scores(wide, family, scheme):
    lens = dl.load(wide(family), quantize=scheme)
    conditions = expand(ABLATE, lens.dims)
    found = scores(lens, conditions)
    assert torch.allclose(found, scores(lens, conditions, path="padded_rows"), atol=SAME)
    others = [c for c in conditions if not c.uses("twice")]
    found = scores(lens, others)
    for backend in ("nnsight", "transformer_lens"):
        assert torch.allclose(found, scores(lens, others, backend=backend), atol=SAME)
    assert not torch.allclose(found[0], scores(dl.load(wide(family)), [BASELINE])[0], atol=100 * SAME)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_those_of_a_plain_model_with_the_same_numbers(wide, scheme):
    lens, plain = dl.load(wide(), quantize=scheme), dl.load(wide())
    for a, b in zip(lens.arch.layers, plain.arch.layers, strict=True):
        for (name, module), (_, other) in zip(a.named_modules(), b.named_modules(), strict=True):
            if type(other) is torch.nn.Linear:
                with torch.no_grad():
                    other.weight.copy_(quantised.matrix(module))
                assert quantised.is_quantised(module.weight), name
    conditions = expand(ABLATE, lens.dims)
    assert torch.allclose(scores(lens, conditions), scores(plain, conditions), atol=SAME)
    asked = [GenerateRequest(tuple(range(3, 12)), (), 8)]
    texts = [dl.Engine(one, progress=False).generate_until(asked, conditions[:4]) for one in (lens, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("scheme", ["int8", "nf4"])
def test_the_record_and_the_store_know_it(wide, tmp_path, scheme):
    lens, again, plain = dl.load(wide(), quantize=scheme), dl.load(wide(), quantize=scheme), dl.load(wide())
    before = lens.identify()
    assert before.obstacle is None
    lens.model(torch.tensor([[5, 6, 7]]))
    assert lens.fingerprint == before.fingerprint == again.fingerprint != plain.fingerprint
    about = lens.describe()
    assert (about["quantize"], about["quantization"]) == (scheme, "torchao" if scheme == "int8" else "bitsandbytes")
    assert plain.describe()["quantization"] is None
    options = {"limit": 3, "store": str(tmp_path), "progress": False}
    first = dl.layer_sweep(lens, "capitals_continuation", **options)
    second = dl.layer_sweep(again, "capitals_continuation", **options)
    assert second.record["store"]["rows_computed"] == 0
    assert first.docs.equals(second.docs)
    with torch.no_grad():
        bits = tensors_of(lens.arch.mlp[2].up_proj.weight)[0].data
        bits[0, 0] = bits[0, 0] ^ 1
    assert lens.fingerprint != before.fingerprint


@pytest.mark.parametrize("scheme", ["int4", "nf4"])
def test_donors(wide, scheme):
    base, plain = dl.load(wide(), quantize=scheme), dl.load(wide())
    donor = dl.load(wide(), quantize=scheme)
    with torch.no_grad():
        for layer in donor.arch.layers:
            layer.get_submodule(donor.arch.family.mlp_norm).weight.mul_(1.1)
    both = scores(dl.with_donor(base, donor), [parse_condition("L1@donor"), *expand("whole@donor", base.dims)])
    assert torch.allclose(both[-1], scores(donor, [BASELINE])[0], atol=SAME)
    assert not torch.allclose(both[0], both[1], atol=SAME)
    mixed = dl.with_donor(plain, base)  # what quantising each layer alone would cost
    assert torch.allclose(scores(mixed, expand("whole@donor", base.dims))[1], scores(base, [BASELINE])[0], atol=SAME)
    named = dl.with_donor(base, wide())
    assert named.donor.quantize == scheme


def test_a_checkpoint_that_came_in_four_bits(wide, tmp_path):
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype="float32")
    AutoModelForCausalLM.from_pretrained(wide(), quantization_config=config).save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    lens = dl.load(str(tmp_path))
    conditions = expand(ABLATE, lens.dims)
    assert torch.allclose(scores(lens, conditions), scores(lens, conditions, path="padded_rows"), atol=SAME)
    about = lens.describe()
    assert (about["quantize"], about["quantization"]) == (None, "bitsandbytes")
    assert lens.identify().obstacle is None
    assert lens.fingerprint == dl.load(wide(), quantize="nf4").fingerprint
    refused("is quantised already", dl.load, str(tmp_path), quantize="nf4")


def test_what_reads_plain_weights_is_refused(wide, tmp_path):
    lens = dl.load(wide(), quantize="int8")
    refused("rounds weights, and those of .* are quantised", scores, lens, [parse_condition("L1@int4")])
    refused("is quantised", dl.export, lens, "L1", tmp_path / "out")
    refused("is done while files are read: not with offload, several", dl.load, "organism", quantize="int8")
