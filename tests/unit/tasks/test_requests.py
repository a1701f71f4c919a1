"""Requests of tasks: the same tokens and stop rules as lm-eval's own `hf` model gets."""

from collections import Counter

import pytest
import tiny
from lm_evals import Noting, evaluate
from mini_tasks import LIKELIHOODS, WRITTEN

from depthlens.errors import UserError
from depthlens.tasks import harness

# as Qwen2.5's: what a system says where nobody says it
SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<system>You are helpful.\n{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
# as DeepSeek R1's: the prompt begins with <bos> and opens the thoughts
REASONING = (
    "{{ bos_token }}{% for m in messages %}{{ m.content if m.role == 'system' else '<' ~ m.role ~ '>' ~ m.content }}"
    "{% endfor %}{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_tokens_are_what_lm_eval_feeds_the_model(lens, load, lm_evals_own, name):
    lm, _ = lm_evals_own(name)
    (prepared,) = harness.prepare(lens, load(name))
    ours = [(*q.context, *q.continuation)[:-1] for q in prepared.requests]
    assert Counter(ours) == Counter(lm.read)
    assert all(q.context and q.continuation for q in prepared.requests)


def test_a_continuation_that_the_model_cannot_read_is_refused(lens, load):
    with pytest.raises(UserError, match="mini_too_long"):  # lm-eval itself stops at an assert
        harness.prepare(lens, load("mini_too_long"))


@pytest.mark.parametrize("name", WRITTEN)
def test_generation_requests_are_what_lm_eval_asks_for(lens, load, lm_evals_own, name):
    lm, _ = lm_evals_own(name)
    (prepared,) = harness.prepare(lens, load(name))
    ours = Counter((q.context, frozenset(q.until), q.max_new_tokens) for q in prepared.requests)
    assert ours == Counter((context, frozenset(stop), n) for context, stop, n in lm.written)


@pytest.mark.parametrize("instruction", [None, "Be brief."])
@pytest.mark.parametrize(("template", "think_end"), [(SYSTEM, None), (REASONING, "</think>")])
def test_chat_prompts_are_those_of_lm_eval(folder, load, template, think_end, instruction):
    lens = tiny.lens("llama-gqa")
    lens.tokenizer.chat_template = template
    options = {"apply_chat_template": True, "system_instruction": instruction}
    lm = Noting(lens, think_end_token=think_end)
    evaluate(lm, ["mini_writing"], folder, **options)
    (prepared,) = harness.prepare(lens, load("mini_writing"), think_end_token=think_end, **options)
    assert Counter(q.context for q in prepared.requests) == Counter(context for context, _, _ in lm.written)
    prompt = lens.tokenizer.decode(prepared.requests[0].context)
    asked = {SYSTEM: "<system>You are helpful.\n<user>Is ice cold?\n<assistant>"}
    asked[REASONING] = "<bos><user>Is ice cold?<assistant><think>\n"
    if instruction is None:
        assert prompt == asked[template]
    else:
        assert instruction in prompt and "You are helpful" not in prompt
