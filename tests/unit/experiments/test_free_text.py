"""Free text: repetition counted by hand, likelihoods from a plain forward pass, and paired statistics."""

import pytest
import tiny
import torch

import depthlens as dl
from depthlens.tasks.measures import repetition

# float32 sums of log-probabilities of a dozen tokens in another batch layout
LOGPROB_TOLERANCE = 1e-4
TEXTS = ["A tide mill is a water mill driven by the sea.", "The bus was late when it came.", "Did you lock the shed?"]
PROMPT, NEW = 8, 12


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=64)


@pytest.fixture(scope="module")
def result(lens):
    return dl.free_text(lens, texts=TEXTS, prompt_tokens=PROMPT, max_new_tokens=NEW, store=None, progress=False)


@pytest.mark.parametrize(("tokens", "share"), [
    ([1, 2, 3, 4, 1, 2, 3, 4], 1 / 5),  # five 4-grams, the last is the first
    ([1, 2, 3, 4, 5, 6], 0), ([7] * 10, 6 / 7), ([1, 2, 3], 0), ([], 0),
])  # fmt: skip
def test_repetition_is_one_minus_distinct_4_grams(tokens, share):
    assert repetition(tokens) == pytest.approx(share)


def test_every_text_is_the_greedy_one_and_is_judged_by_the_whole_model(lens, result):
    tables = {m: result.scores("free_text", m) for m in ("repetition", "nats_per_token")}
    texts = result.docs[result.docs["metric"] == "repetition"].set_index(["condition", "doc_id"])["response"]
    assert set(result.docs["condition"]) == {"baseline", *(f"L{i}" for i in range(lens.dims.n_layers))}
    for condition in ("baseline", "L2"):
        for i, text in enumerate(TEXTS):
            prompt = lens.tokenizer(text).input_ids[:PROMPT]
            ids = lens.tokenizer(texts[condition, i], add_special_tokens=False).input_ids
            assert tables["repetition"].loc[i, condition] == repetition(ids)
            ids = ids or [lens.tokenizer.eos_token_id]
            logits = lens.model(torch.tensor([[*prompt, *ids]])).logits[0, PROMPT - 1 : -1]
            nats = -logits.log_softmax(-1).gather(-1, torch.tensor(ids)[:, None]).mean().item()
            assert tables["nats_per_token"].loc[i, condition] == pytest.approx(nats, abs=LOGPROB_TOLERANCE)
    assert texts["baseline"].tolist() != texts["L2"].tolist()
