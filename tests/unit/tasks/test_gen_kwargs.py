"""How answers are written, over what the tasks say; with temperatures, draws, thoughts and budgets."""

import pytest
import tiny
from lm_evals import Noting, evaluate
from refusals import refused

from depthlens.experiments.sweep import condition_sweep
from depthlens.requests import Sampling
from depthlens.tasks import harness

WARM = {"temperature": 1.5, "top_p": 0.9}
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}a:"
    "{% if enable_thinking is defined and not enable_thinking %} <none>{% endif %}"
)


@pytest.fixture(scope="module")
def sweep(lens, folder):
    def run(task="mini_writing", **options):
        return condition_sweep(lens, task, "L1", include_path=folder, progress=False, **options)

    return run


def texts(result):
    return result.docs["response"].tolist()


def test_texts_follow_from_the_seed_and_are_recorded(sweep, tmp_path):
    first = sweep(gen_kwargs=WARM, store=tmp_path)
    again = sweep(gen_kwargs=WARM, store=tmp_path)
    assert texts(first) == texts(again) and again.record["store"]["rows_computed"] == 0
    assert texts(sweep(gen_kwargs=WARM, batch_tokens=50)) == texts(first)
    other = sweep(gen_kwargs=WARM, store=tmp_path, seed=1)
    assert texts(other) != texts(first) and other.record["store"]["rows_read"] == 0
    assert first.record["gen_kwargs"] == WARM
    said = first.record["tasks"]["mini_writing"]["generation_kwargs"]
    assert (said["temperature"], said["max_gen_toks"]) == (1.5, 7) and "do_sample" not in said


def test_what_is_left_open_is_the_models_own(folder):
    lens = tiny.lens("llama-gqa")
    (prepared,) = harness.prepare(lens, load(folder, gen_kwargs={"temperature": 0.5}), seed=7)
    assert {q.sampling for q in prepared.requests} == {Sampling(0.5, top_k=50, seed=7)}  # transformers' default
    lens.model.generation_config.top_p, lens.model.generation_config.top_k = 0.8, 9
    (prepared,) = harness.prepare(lens, load(folder, gen_kwargs={"temperature": 0.5, "top_k": 0}))
    assert {q.sampling for q in prepared.requests} == {Sampling(0.5, top_p=0.8)}


def load(folder, *names, **options):
    return harness.load_tasks(list(names) or ["mini_writing"], include_path=folder, **options)


def test_repeats_are_drawn_anew(lens, folder, sweep):
    (prepared,) = harness.prepare(lens, load(folder, "mini_votes"))
    by_prompt = {}
    for request in prepared.requests:
        by_prompt.setdefault(request.context, []).append(request.sampling.draw)
    assert all(draws == [0, 1, 2] for draws in by_prompt.values())
    assert len(sweep("mini_votes").docs) == 2 * 2 * len(prepared.docs)


@pytest.mark.parametrize(("options", "said"), [
    ({"gen_kwargs": {"temperature": -1}}, r"task mini_writing: temperature -1: give a number from 0 to 100"),
    ({"gen_kwargs": {"do_sample": False, "temperature": 0.7}}, "do_sample=False and temperature=0.7 contradict"),
    ({"gen_kwargs": {"until": 5}}, "task mini_writing: until 5: give a text or a list of texts"),
    ({"gen_kwargs": {"beams": 4}}, "task mini_writing: unknown generation option 'beams'; "),
    ({"gen_kwargs": {"max_gen_toks": 48}}, "mini_writing writes up to 48 tokens; the model reads 48 in all"),
    ({"gen_kwargs": WARM, "task": "mini_choice"}, "gen_kwargs: no task of mini_choice writes its answers"),
])  # fmt: skip
def test_what_cannot_be_is_one_line(sweep, options, said):
    refused(said, sweep, **options)


def test_thinking_is_an_argument_of_the_template_and_what_follows_it_is_the_answer(folder):
    lens = tiny.lens("llama-gqa")
    lens.tokenizer.chat_template = TEMPLATE
    prompts = {}
    for value in (None, True, False):
        options = {"apply_chat_template": True, "think_end_token": "</t>", "enable_thinking": value}
        (prepared,) = harness.prepare(lens, load(folder), limit=1, **options)
        (request,) = prepared.requests
        assert request.think_end == "</t>"
        prompts[value] = lens.tokenizer.decode(request.context)
    assert prompts[None] == prompts[True] and prompts[False] == prompts[True] + " <none>"


@pytest.mark.parametrize(("settings", "think_end"), [
    ({"max_new_tokens": 3}, None), ({"max_new_tokens": 11}, None),  # more than the task's 7
    ({"no_repeat_ngram_size": 1, "min_new_tokens": 4}, None),
    ({"suppress_tokens": [*range(130, 256)]}, "32"),  # the number of a token, which is a space
], ids=["shorter", "longer", "processors", "thoughts"])  # fmt: skip
def test_the_models_own_settings_decide_texts_as_in_lm_evals_own_model(folder, settings, think_end):
    lens = tiny.lens("llama-gqa")
    before = condition_sweep(lens, "mini_writing", "L1", include_path=folder, progress=False)
    vars(lens.model.generation_config).update(settings)
    samples = evaluate(Noting(lens, think_end_token=think_end), ["mini_writing"], folder)["samples"]
    options = {"include_path": folder, "progress": False, "think_end_token": think_end}
    result = condition_sweep(lens, "mini_writing", "L1", **options)
    ours = result.docs.query("condition == 'baseline'")["response"].tolist()
    assert ours == [sample["filtered_resps"][0] for sample in samples["mini_writing"]]
    assert texts(result) != texts(before), "the setting decides nothing here"
