"""One prompt from several sides: texts, a model under a condition, the logit lens and attention."""

import pytest
import torch

from depthlens.ablations import Head, parse_condition
from depthlens.experiments import one_prompt

PROMPT = "the cat sat on"
CONDITIONS = ["L2", "L1.H3+L3.mlp", "L1.attn[1:]", "L2[3:6]", "L4[2]", "L1.H2@resample", "L3.mlp@noise"]


def logits(lens):
    with torch.no_grad():
        return lens.model(**lens.tokenizer(PROMPT, return_tensors="pt")).logits


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_model_under_a_condition_writes_what_the_engine_writes_and_is_restored(lens, condition):
    options = {"resample_prompt": "a dog ran to"} if "@resample" in condition else {}
    texts = one_prompt.generate(lens, PROMPT, [condition], max_new_tokens=8, progress=False, **options)
    whole, inputs = logits(lens), lens.tokenizer(PROMPT, return_tensors="pt")
    with one_prompt.ablated(lens, condition, **options) as model:
        changed = logits(lens)
        for cached in (True, False):
            written = model.generate(**inputs, max_new_tokens=8, do_sample=False, use_cache=cached, pad_token_id=258)
            text = lens.tokenizer.decode(written[0, inputs.input_ids.shape[1] :], skip_special_tokens=True)
            assert text == texts[str(parse_condition(condition))].iloc[0]
    assert not torch.equal(changed, whole) and torch.equal(logits(lens), whole)


def test_next_token_probabilities_are_the_models_under_every_condition(lens):
    under, prompt = "L1.H2@resample", "a dog ran to"
    found = one_prompt.next_token(lens, PROMPT, ["L1", under], k=256, resample_prompt=prompt)
    assert list(found.columns) == ["baseline", "L1", under]
    assert found["baseline"].iloc[0] == pytest.approx(logits(lens)[0, -1].softmax(-1).max().item(), rel=1e-5)
    with one_prompt.ablated(lens, under, resample_prompt=prompt):
        changed = logits(lens)[0, -1].softmax(-1)
    assert found[under].max() == pytest.approx(changed.max().item(), rel=1e-5)
    assert not torch.allclose(changed, logits(lens)[0, -1].softmax(-1))
    of_all = one_prompt.next_token(lens, PROMPT, k=10**30)
    assert len(of_all) == lens.model.config.vocab_size and of_all.index.is_unique  # bytes that are no text alone, too


def test_the_last_depth_of_the_logit_lens_is_the_model(lens):
    found = one_prompt.logit_lens(lens, PROMPT)
    probabilities = logits(lens)[0].softmax(-1)
    best = probabilities.max(-1)
    assert found.says.shape == (lens.dims.n_layers + 1, len(found.tokens))
    assert found.probability[-1] == pytest.approx(best.values.numpy(), abs=1e-5)
    assert list(found.says[-1]) == [lens.tokenizer.decode([int(i)]) for i in best.indices]
    entropy = -(probabilities * probabilities.log()).sum(-1)
    assert found.entropy[-1] == pytest.approx(entropy.numpy(), abs=1e-4)
    body = lens.model.model
    with torch.no_grad():
        embedded = body.norm(body.embed_tokens(lens.tokenizer(PROMPT, return_tensors="pt").input_ids))
        read = lens.model.lm_head(embedded)[0].softmax(-1).max(-1).values
    assert found.probability[0] == pytest.approx(read.numpy(), abs=1e-5)
    assert len(found.table) == found.says.size


def test_attention_is_the_models_own(lens):
    lens.model.set_attn_implementation("eager")
    with torch.no_grad():
        own = lens.model(**lens.tokenizer(PROMPT, return_tensors="pt"), output_attentions=True).attentions
    lens.model.set_attn_implementation("sdpa")
    every = one_prompt.attention(lens, PROMPT)
    assert every.pattern.shape[0] == lens.dims.n_layers * lens.dims.n_heads
    torch.testing.assert_close(torch.tensor(every.pattern), torch.cat([x[0] for x in own]), atol=1e-5, rtol=0)
    some = one_prompt.attention(lens, PROMPT, ["L2", (3, 1), "L0.H2", "L2.H1"])  # one of them twice
    assert some.heads == ((2, 0), (2, 1), (2, 2), (2, 3), (3, 1), (0, 2))
    assert (some.pattern[4] == every.pattern[13]).all()
    one = one_prompt.attention(lens, lens.tokenizer(PROMPT).input_ids, (3, 1), query=4)
    assert one.heads == (Head(3, 1),) and (one.pattern[0] == some.pattern[4]).all()
    row = one.pattern[0, 4]
    assert one.largest["position"].iloc[0] == row.argmax() and one.largest["weight"].iloc[0] == row.max()
    assert one.data["weights"][0][10:15] == [round(1000 * float(weight)) for weight in row[:5]]
