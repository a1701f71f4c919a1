"""Pairs of tiny models, and what a transplant between them does, written by hand as surgery on copies."""

import copy

import surgery
import torch

import depthlens as dl
from depthlens.ablations import expand
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

# float32 sums in another order: batches are cut by rows, a head's share of o_proj is added apart
SAME = 2e-4
# the same arithmetic on the same weights; only where they lie in memory differs, and with it the order of some sums
ALIKE = 1e-5
TOKENS = torch.tensor([[5, 9, 200, 31, 7, 90, 11], [1, 4, 77, 30, 6, 81, 10]])


def other(base, seed=3, scale=0.2):
    """A donor: the base's copy, every weight and buffer of its state dict moved."""
    model = copy.deepcopy(base.model)
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(scale * torch.randn(tensor.shape, generator=g))
    return dl.Lens(model, base.tokenizer, f"{base.name}-distilled")


def two(family, **changes):
    base = surgery.rough_lens(family, **changes)
    return base, other(base)


def logits(model, tokens=TOKENS):
    with torch.no_grad():
        return model(tokens).logits


def same(found, wanted, what=""):
    drift = float((found - wanted).abs().max())
    assert drift <= SAME, f"{what}: drift {drift:.1e}, bound {SAME:.0e}"


# what a part has of its own, for parts that are taken whole
WHOLE = {
    **{"layer": ["{}."], "embed": ["model.embed_tokens."], "unembed": ["model.norm.", "lm_head."]},
    **{"attn": ["{}.self_attn.", "{}.input_layernorm."], "mlp": ["{}.mlp.", "{}.post_attention_layernorm."]},
}


def operated(base, donor, condition):
    """A copy of the base whose own parameters are overwritten by hand; removals on top by hooks of the backend."""
    model, dims = copy.deepcopy(base.model), base.dims
    mine, its = model.state_dict(), donor.model.state_dict()

    def take(start):
        found = [key for key in mine if key.startswith(start)]
        assert found, start
        for key in found:
            mine[key].copy_(its[key])

    def block(key, axis, index, n):
        """Slice ``index`` of ``n`` of a matrix or vector, where the model has it."""
        for name in (f"{key}.weight", f"{key}.bias"):
            if name in mine and not (axis == 1 and name.endswith("bias")):
                width = mine[name].shape[axis] // n
                part = (slice(None),) * axis + (slice(index * width, (index + 1) * width),)
                mine[name][part] = its[name][part]

    with torch.no_grad():
        for a in condition.ablations:
            layer = f"model.layers.{a.layer}"
            if a.mode != "donor":
                continue
            for start in WHOLE.get(a.site, ()):
                take(start.format(layer))
            for head in {"head": [a.index], "kv": dims.query_heads(a.index) if a.site == "kv" else []}.get(a.site, []):
                for name in ("q_proj", "q_b_proj"):
                    block(f"{layer}.self_attn.{name}", 0, head, dims.n_heads)
                block(f"{layer}.self_attn.o_proj", 1, head, dims.n_heads)
            if a.site == "kv":
                for name in ("k_proj", "v_proj", "kv_b_proj"):
                    block(f"{layer}.self_attn.{name}", 0, a.index, dims.n_kv_heads)
    return dl.Lens(model, base.tokenizer, "operated")


def removals(condition):
    """The condition without what comes from the donor."""
    return type(condition)(tuple(a for a in condition.ablations if a.mode != "donor"))


KINDS = (
    *("L2@donor", "L2.attn@donor", "L2.mlp@donor", "L2.H3@donor", "L2.H0@donor+L2.H2@donor", "L2.KV0@donor"),
    *("L0-2@donor", "L3-4@donor", "embed@donor", "unembed@donor", "embed@donor+L1.H1@donor+unembed@donor"),
    *("L2@donor+L3.H1", "L1@donor+L1.H2", "L1.mlp@donor+L1.attn", "L0", "L3.H0", "baseline", "whole@donor"),
)


def conditions_for(base):
    return expand([k for k in KINDS if k != "L2.KV0@donor" or base.dims.n_kv_heads > 1], base.dims)


def requests(n=4, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, (n, 14), generator=draw).tolist()
    return [LoglikelihoodRequest((1, 2, 3, *row[: 4 + i % 3]), tuple(row[9:])) for i, row in enumerate(tokens)]


def prompts(n=3, new=4):
    return [GenerateRequest(q.context, (), new) for q in requests(n, seed=8)]


def scores(lens, conditions, **options):
    answers = dl.Engine(lens, progress=False, **options).loglikelihood(requests(), conditions)
    return torch.tensor([[a.logprob for a in row] for row in answers], dtype=torch.float64)


def texts(lens, conditions, **options):
    return dl.Engine(lens, progress=False, **options).generate_until(prompts(), conditions)


def attributes(model):
    return {name: sorted(vars(module)) for name, module in model.named_modules()}


def layers_in_memory(lens):
    held = []
    for i, layer in enumerate(lens.arch.layers):
        places = {t.is_meta for t in layer.parameters()}
        assert len(places) == 1, "a layer is either there or not"
        held += [i] if places == {False} else []
    return held
