"""lm-eval's tasks through our harness: the same tokens, requests and values as lm-eval's own `hf` model.

The reference is an `HFLM` around the same tiny model that notes what it feeds the model; where values are
compared, lm-eval's `simple_evaluate` runs for real.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter

import datasets
import lm_eval
import pandas as pd
import pytest
import tiny
import torch
from lm_eval.models.huggingface import HFLM

from depthlens.analysis.results import Result
from depthlens.engine.engine import LoglikelihoodAnswer
from depthlens.errors import UserError
from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

# float32 sums of log-probabilities of up to a few hundred tokens in another batch layout
LOGPROB_TOLERANCE = 2e-3
CONTEXT = 48  # so small that few-shot prompts are cut

DOCUMENTS = [
    {"q": "Is ice cold?", "options": [" yes", " no"], "answer": 0, "text": "Short text."},
    {"q": "2 + 2 =", "options": ["four", "5", "vier", "4"], "answer": 3, "text": "One two three. " * 9},
    {"q": "The sky is", "options": ["blue ", "ö", "green"], "answer": 0, "text": "x" * 47},
    {"q": "Say it twice: " * 8, "options": ["a", "b"], "answer": 1, "text": "y" * 48},
    {"q": "four", "options": ["a longer option", "b"], "answer": 0, "text": "z" * 49},
]
DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}, shots: {path}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: shots
metadata: {{version: 2.5}}
"""
TASKS = {
    "mini_choice": """
        output_type: multiple_choice
        doc_to_text: "{{q}}\\nA:"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
        """,
    "mini_shots": """
        output_type: multiple_choice
        doc_to_text: "{{q}}\\nA:"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        num_fewshot: 2
        """,
    "mini_spaces": """
        output_type: multiple_choice
        doc_to_text: "{{q}}  "
        target_delimiter: ""
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        num_fewshot: 0
        """,
    "mini_empty": """
        output_type: multiple_choice
        doc_to_text: ""
        target_delimiter: ""
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        """,
    "mini_mutual": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_mutual_info}]
        """,
    "mini_cloze": """
        output_type: loglikelihood
        doc_to_text: "{{q}}"
        doc_to_target: " {{options[0]}}"
        metric_list: [{metric: acc}, {metric: perplexity, aggregation: perplexity, higher_is_better: false}]
        """,
    "mini_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
        """,
    "mini_writing": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{options[0]}}"
        generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 7, do_sample: false, temperature: 0.0}
        """,
    "mini_defaults": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'four'}}"
        generation_kwargs: {max_new_tokens: 5}
        """,
    "mini_filters": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{options[0]}}"
        generation_kwargs: {until: [], max_gen_toks: 4}
        filter_list:
          - {name: whole, filter: [{function: take_first}]}
          - {name: first-letter, filter: [{function: regex, regex_pattern: "(\\\\w)"}, {function: take_first}]}
        """,
    "mini_sampling": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {do_sample: true, max_gen_toks: 4}
        """,
    "mini_warm": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {temperature: 0.7, max_gen_toks: 4}
        """,
    "mini_beams": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {num_beams: 4, max_gen_toks: 4}
        """,
    "mini_endless": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {max_gen_toks: 48}
        """,
    "mini_too_long": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{['a', 'x' * 90]}}"
        doc_to_target: 0
        """,
    "mini_set_only": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: mcc}]
        """,
}
PERPLEXITIES = {  # lm-eval's name -> ours, and our unit in nats
    "word_perplexity": ("nats_per_word", 1.0),
    "byte_perplexity": ("nats_per_byte", 1.0),
    "bits_per_byte": ("bits_per_byte", 1 / math.log(2)),
}
LIKELIHOODS = ["mini_choice", "mini_shots", "mini_spaces", "mini_empty", "mini_cloze", "mini_rolling"]
WRITTEN = ["mini_writing", "mini_defaults", "mini_filters"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A user's folder of lm-eval YAML files, with data beside them."""
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    head = DATA.format(path=data, cache=folder / "cache")
    for name, body in TASKS.items():
        lines = [line.removeprefix("        ") for line in body.splitlines()]
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}" + "\n".join(lines))
    (folder / "mini.yaml").write_text("group: mini\ntask: [mini_shots, mini_cloze]\n")
    return folder


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=CONTEXT)


@pytest.fixture
def load(folder):
    """Tasks afresh: lm-eval keeps instances on the task itself."""
    return lambda *names, **kwargs: harness.load_tasks(names, include_path=folder, **kwargs)


class Noting(HFLM):
    """lm-eval's model, one row at a time, that notes what it feeds the network."""

    def __init__(self, lens):
        super().__init__(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=1, logits_cache=False)
        self.read, self.written = [], []

    def _model_call(self, inps, *args, **kwargs):
        self.read.append(tuple(inps[0].tolist()))
        return super()._model_call(inps, *args, **kwargs)

    def _model_generate(self, context, max_length, stop, **kwargs):
        self.written.append((tuple(context[0].tolist()), tuple(stop), max_length - context.shape[1]))
        return super()._model_generate(context, max_length, stop, **kwargs)


@pytest.fixture(scope="module")
def lm_evals_own(lens, folder):
    """What lm-eval's `hf` model reads, and what lm-eval says of each document, by task name."""

    @functools.cache
    def evaluate(name):
        lm = Noting(lens)
        results = lm_eval.simple_evaluate(
            model=lm,
            tasks=[name],
            task_manager=harness.task_manager([name], str(folder)),
            fewshot_random_seed=0,
            bootstrap_iters=0,
        )
        return lm, results["samples"][name]

    return evaluate


# -- tokens --


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_tokens_are_what_lm_eval_feeds_the_model(lens, load, lm_evals_own, name):
    lm, _ = lm_evals_own(name)
    (prepared,) = harness.prepare(lens, load(name))
    ours = [(*q.context, *q.continuation)[:-1] for q in prepared.requests]
    assert Counter(ours) == Counter(lm.read)
    assert all(q.context and q.continuation for q in prepared.requests)


def test_this_model_really_cuts_prompts_and_rolls_windows(lens, load):
    shots, rolling = harness.prepare(lens, load("mini_shots", "mini_rolling"))
    lengths = {len(q.context) + len(q.continuation) for q in shots.requests}
    assert max(lengths) == CONTEXT + 1 and len(lengths) == 1, "every few-shot prompt is cut from the left"
    assert shots.windows == [1] * len(shots.requests)
    # 135 tokens in windows of 48; 47 and 48 in one; 49 in two
    assert rolling.windows == [1, 3, 1, 1, 2]
    for q in rolling.requests[1:4]:
        assert len(q.context) + len(q.continuation) <= CONTEXT + 1
    assert sum(len(q.continuation) for q in rolling.requests[1:4]) == len(DOCUMENTS[1]["text"])


def test_a_continuation_that_the_model_cannot_read_is_refused(lens, load):
    with pytest.raises(UserError, match="mini_too_long"):  # lm-eval itself stops at an assert
        harness.prepare(lens, load("mini_too_long"))


def test_an_empty_context_is_the_end_of_text_token_and_spaces_belong_to_the_continuation(lens, load):
    empty, spaces = harness.prepare(lens, load("mini_empty", "mini_spaces"), limit=1)
    assert [q.context for q in empty.requests] == [(lens.tokenizer.bos_token_id,)] * 2
    decode = lens.tokenizer.decode
    assert [decode(q.context) for q in spaces.requests] == ["Is ice cold?"] * 2
    assert [decode(q.continuation) for q in spaces.requests] == ["   yes", "   no"]


@pytest.mark.parametrize("name", WRITTEN)
def test_generation_requests_are_what_lm_eval_asks_for(lens, load, lm_evals_own, name):
    lm, _ = lm_evals_own(name)
    (prepared,) = harness.prepare(lens, load(name))
    ours = Counter((q.context, frozenset(q.until), q.max_new_tokens) for q in prepared.requests)
    assert ours == Counter((context, frozenset(stop), n) for context, stop, n in lm.written)


def test_stop_strings_hold_the_end_of_text_and_long_prompts_leave_room_to_write(lens, load):
    writing, defaults = harness.prepare(lens, load("mini_writing", "mini_defaults"))
    assert {q.until for q in writing.requests} == {("\n", "e", "<eos>")}
    assert {q.max_new_tokens for q in writing.requests} == {7}
    assert len(writing.requests[3].context) == CONTEXT - 7
    asked = writing.task.instances[3].args[0]
    assert lens.tokenizer.decode(writing.requests[3].context) == asked[-(CONTEXT - 7) :]
    assert "<eos>" in defaults.requests[0].until and defaults.requests[0].max_new_tokens == 5


# -- values --


@pytest.mark.parametrize("name", [*LIKELIHOODS, "mini_mutual", *WRITTEN])
def test_baseline_equals_lm_eval_document_by_document(lens, load, lm_evals_own, name):
    _, samples = lm_evals_own(name)
    result = condition_sweep(lens, load(name), "L2", progress=False)
    ours = {
        (row.metric, row.doc_id): row.value for row in result.docs[result.docs["condition"] == "baseline"].itertuples()
    }
    several = len({sample["filter"] for sample in samples}) > 1
    compared = 0
    for sample in samples:
        for metric in sample["metrics"]:
            value = sample[metric]
            if metric in PERPLEXITIES:
                metric, per_nat = PERPLEXITIES[metric]
                value = -value[0] / value[1] * per_nat  # (log-likelihood, number of words or bytes)
            elif metric == "perplexity":  # the log-likelihood of a cloze task's answer
                metric, value = "nats", -value
            elif isinstance(value, tuple | list):
                continue  # of the whole set only, such as mcc
            key = f"{metric},{sample['filter']}" if several else metric
            assert ours.pop((key, sample["doc_id"])) == pytest.approx(value, abs=LOGPROB_TOLERANCE)
            compared += 1
    assert compared >= len(DOCUMENTS) and not ours, f"not known to lm-eval: {ours}"


def test_log_likelihoods_and_texts_equal_lm_evals(lens, load, lm_evals_own):
    _, samples = lm_evals_own("mini_choice")
    result = condition_sweep(lens, load("mini_choice"), "L2", progress=False)
    baseline = result.docs.query("condition == 'baseline' and metric == 'acc'").set_index("doc_id")
    for sample in samples:
        scores = [resp[0][0] for resp in sample["resps"]]
        best = sample["doc"]["options"][scores.index(max(scores))].strip()
        assert baseline.loc[sample["doc_id"], "response"] == best
    _, samples = lm_evals_own("mini_writing")
    result = condition_sweep(lens, load("mini_writing"), "L2", progress=False)
    texts = result.docs.query("condition == 'baseline'").set_index("doc_id")["response"]
    assert {s["doc_id"]: s["resps"][0][0] for s in samples} == texts.to_dict()
    assert any(texts)


def test_rolling_metrics_are_nats_per_unit_of_each_document(lens, load):
    result = condition_sweep(lens, load("mini_rolling"), "L2", progress=False)
    table = result.docs.query("condition == 'baseline'").pivot(index="doc_id", columns="metric", values="value")
    assert sorted(table.columns) == ["bits_per_byte", "nats_per_byte", "nats_per_word"]
    tokens = torch.tensor([[lens.tokenizer.bos_token_id, *lens.tokenizer(DOCUMENTS[0]["text"]).input_ids]])
    logprobs = lens.model(tokens).logits[0, :-1].log_softmax(-1).gather(-1, tokens[0, 1:, None])
    nats = -logprobs.sum().item()  # one token is one byte here
    assert table.loc[0, "nats_per_byte"] == pytest.approx(nats / 11, abs=1e-4)
    assert table.loc[0, "bits_per_byte"] == pytest.approx(nats / 11 / math.log(2), abs=1e-4)
    assert table.loc[0, "nats_per_word"] == pytest.approx(nats / 2, abs=1e-4)
    about = result.record["tasks"]["mini_rolling"]["metrics"]
    assert not any(about[m]["higher_is_better"] or about[m]["binary"] for m in about)


def test_perplexity_of_a_cloze_task_is_better_where_it_says_so(lens, load):
    (prepared,) = harness.prepare(lens, load("mini_cloze"), limit=1)
    likely, unlikely = (
        {metric: value for metric, _, value, _ in prepared.score([LoglikelihoodAnswer(logprob, False)])}
        for logprob in (-1.0, -5.0)
    )
    (metric,) = set(likely) - {"acc"}
    higher_is_better = prepared.task.higher_is_better().get(metric, False)
    assert (likely[metric] > unlikely[metric]) == higher_is_better


def test_metrics_of_the_whole_set_are_told_as_skipped(lens, load):
    result = condition_sweep(lens, load("mini_choice"), "L2", progress=False)
    about = result.record["tasks"]["mini_choice"]
    assert sorted(about["metrics"]) == ["acc", "acc_norm"]
    assert about["skipped_metrics"] == {"mcc": "has no value per document"}
    with pytest.raises(UserError, match=r"task mini_set_only: no metric has a value per document \(mcc\)"):
        condition_sweep(lens, load("mini_set_only"), "L2", progress=False)


def test_several_filters_name_the_metric_with_its_filter(lens, load):
    (prepared,) = harness.prepare(lens, load("mini_filters"), limit=2)
    scored = list(prepared.score([" yes", "..four"]))
    assert scored == [
        ("exact_match,whole", 0, 1.0, " yes"),
        ("exact_match,whole", 1, 0.0, "..four"),
        ("exact_match,first-letter", 0, 0.0, " yes"),
        ("exact_match,first-letter", 1, 0.0, "..four"),
    ]


def test_the_same_answers_are_scored_the_same_again(lens, load):
    (prepared,) = harness.prepare(lens, load("mini_shots"))
    right = [
        LoglikelihoodAnswer(0.0 if i == d["answer"] else -1.0, False)
        for d in DOCUMENTS
        for i in range(len(d["options"]))
    ]
    wrong = [LoglikelihoodAnswer(-1.0 - a.logprob, False) for a in right]
    first, other, again = ([v for m, _, v, _ in prepared.score(a) if m == "acc"] for a in (right, wrong, right))
    assert first == again == [1.0] * 5 and other != first


# -- chance --


def test_chance_levels(lens, load):
    names = ["mini_choice", "mini_mutual", "mini_writing", "mini_defaults", "mini_cloze", "mini_rolling"]
    chance = {p.name: p._chance for p in harness.prepare(lens, load(*names))}
    among_options = (1 / 2 + 1 / 4 + 1 / 3 + 1 / 2 + 1 / 2) / 5
    assert chance["mini_choice"]("acc") == chance["mini_choice"]("acc_norm") == pytest.approx(among_options)
    assert chance["mini_choice"]("mcc") is None
    assert chance["mini_mutual"]("acc") == pytest.approx(among_options)
    assert chance["mini_writing"]("exact_match") == pytest.approx(1 / 5)
    assert chance["mini_defaults"]("exact_match") == 1.0  # every answer is "four": saying it is always right
    assert chance["mini_cloze"]("acc") == 0.0
    assert chance["mini_rolling"]("bits_per_byte") is None


def test_embedded_choices_have_four_options(lens):
    lens = tiny.lens("llama-gqa", max_position_embeddings=2048)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["capitals_default"]), limit=3)
    assert prepared._chance("acc") == 0.25
    assert len(prepared.requests) == 12


def test_chance_of_several_right_options_and_of_greedy_decoding(lens, tmp_path):
    docs = [{"q": "x", "o": ["a", "b", "c"], "a": [0, 2]}, {"q": "y", "o": ["a", "b"], "a": [1]}]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(d) + "\n" for d in docs))
    head = DATA.format(path=tmp_path / "documents.jsonl", cache=tmp_path / "cache")
    body = "output_type: multiple_choice\ndoc_to_text: q\ndoc_to_choice: o\ndoc_to_target: a\n"
    metrics = "metric_list: [{metric: acc}, {metric: acc_bytes}, {metric: exact_match}, {metric: mcc}]\n"
    (tmp_path / "several.yaml").write_text(f"task: several\n{head}{body}{metrics}")
    (prepared,) = harness.prepare(lens, harness.load_tasks(["several"], include_path=tmp_path))
    chance = [prepared._chance(metric) for metric in ("acc", "acc_bytes", "exact_match", "mcc")]
    assert chance == [pytest.approx((2 / 3 + 1 / 2) / 2)] * 2 + [0.0, None]


def test_chance_of_written_tasks_is_that_of_the_whole_split_whatever_the_limit(lens, load):
    wholes = {harness.prepare(lens, load("mini_writing"), limit=n)[0]._chance("exact_match") for n in (1, 3, 4, None)}
    assert wholes == {1 / 5}  # five answers, each of one document
    records = [condition_sweep(lens, load("mini_writing"), "L2", limit=n, progress=False).record for n in (1, 3)]
    assert [r["tasks"]["mini_writing"]["metrics"]["exact_match"]["chance"] for r in records] == [1 / 5] * 2


# -- prompts that are cut --


def lost(lens, prepared):
    """How much longer than the model reads each prompt is, counted with the tokenizer alone (one token a byte)."""
    for request, instance in zip(prepared.requests, prepared.task.instances, strict=True):
        if prepared.output_type == "generate_until":
            room = CONTEXT - request.max_new_tokens
            yield max(0, len(lens.tokenizer(instance.args[0]).input_ids) - room)
        else:
            yield max(0, len(lens.tokenizer("".join(instance.args)).input_ids) - (CONTEXT + 1))


@pytest.mark.parametrize("name", ["mini_choice", "mini_shots", "mini_cloze", "mini_writing"])
def test_cut_prompts_are_counted_told_and_kept_in_record_and_notes(lens, load, caplog, name):
    (prepared,) = harness.prepare(lens, load(name))
    cut = list(lost(lens, prepared))
    assert prepared.cut == cut and any(cut)
    n, most = sum(c > 0 for c in cut), max(cut)
    wanted = f"task {name}: {n} of {len(cut)} prompts are longer than the model reads (48 tokens) and lose up to {most}"
    assert [m.startswith(wanted) for m in caplog.messages] == [True]
    result = condition_sweep(lens, load(name), "L2", progress=False)
    about = result.record["tasks"][name]
    assert (about["n_truncated"], about["max_tokens_cut"]) == (n, most)
    (note,) = [note for note in result.notes if "longer than the model reads" in note]
    assert note == f"{name}: {n} prompts are longer than the model reads and lost up to {most} tokens at their left end"


def test_reference_answers_are_cut_and_counted_too(lens, load, caplog):
    result = condition_sweep(lens, load("mini_writing"), "L2", measure="answer_logprob", progress=False)
    (prepared,) = harness.prepare(lens, load("mini_writing"))
    texts = [f"{i.args[0]} {d['options'][0]}" for i, d in zip(prepared.task.instances, DOCUMENTS, strict=True)]
    cut = [max(0, len(lens.tokenizer(text).input_ids) - (CONTEXT + 1)) for text in texts]
    about = result.record["tasks"]["mini_writing"]
    assert (about["n_truncated"], about["max_tokens_cut"]) == (sum(c > 0 for c in cut), max(cut))
    both = condition_sweep(lens, load("mini_writing"), "L2", measure="both", progress=False)
    assert both.record["tasks"]["mini_writing"]["max_tokens_cut"] == max(*cut, *lost(lens, prepared))


def test_nothing_is_said_where_nothing_is_cut(load, caplog):
    roomy = tiny.lens("llama-gqa", max_position_embeddings=4096)
    result = condition_sweep(roomy, load("mini_shots", "mini_writing", "mini_rolling"), "L2", progress=False)
    assert caplog.messages == []
    assert {t["n_truncated"] for t in result.record["tasks"].values()} == {0}
    assert not any("longer" in note for note in result.notes)


# -- what was asked --


def test_questions_can_be_joined_with_the_scores(lens, load, tmp_path):
    names = ["mini_choice", "mini_cloze", "mini_rolling", "mini_writing"]
    result = condition_sweep(lens, load(*names), "L2", limit=2, progress=False)
    asked = result.questions().set_index(["task", "doc_id"])
    assert list(asked.columns) == ["question", "reference", "choices"] and len(asked) == 4 * 2
    q, options = DOCUMENTS[1]["q"], DOCUMENTS[1]["options"]
    assert asked.loc[("mini_choice", 1)].tolist() == [f"{q}\nA:", "4", options]
    assert asked.loc[("mini_cloze", 1)].tolist() == [q, " four", None]
    assert asked.loc[("mini_writing", 1)].tolist() == [q, "four", None]
    assert asked.loc[("mini_rolling", 1)].tolist() == ["", DOCUMENTS[1]["text"], None]
    table = result.docs.merge(result.questions())
    assert len(table) == len(result.docs)
    chosen = table[(table["task"] == "mini_choice") & (table["metric"] == "acc")]
    assert ((chosen["response"] == chosen["reference"].str.strip()) == (chosen["value"] == 1.0)).all()
    result.save(tmp_path)
    pd.testing.assert_frame_equal(Result.load(tmp_path).questions(), result.questions())


def test_questions_are_without_examples_and_the_same_under_both_measures(lens, load):
    own = condition_sweep(lens, load("mini_shots"), "L2", limit=2, progress=False)
    both = condition_sweep(lens, load("mini_shots"), "L2", limit=2, measure="both", progress=False)
    pd.testing.assert_frame_equal(own.questions(), both.questions())
    assert own.questions()["question"].tolist() == [f"{d['q']}\nA:" for d in DOCUMENTS[:2]]


# -- finding tasks --


def test_groups_stand_for_their_tasks_and_order_is_kept(load):
    assert list(harness.load_tasks(["kv_retrieval"])) == [
        "kv_retrieval_4",
        "kv_retrieval_8",
        "kv_retrieval_16",
    ]
    assert list(load("mini_rolling", "mini")) == ["mini_rolling", "mini_shots", "mini_cloze"]
    assert list(load("mini_cloze", "mini_cloze")) == ["mini_cloze"]


def test_unknown_task_suggests_the_nearest(load):
    with pytest.raises(UserError, match="unknown task 'capitals_continuatoin'; did you mean capitals_contin"):
        harness.load_tasks(["capitals_continuatoin"])
    with pytest.raises(UserError, match="unknown task 'mini_choise'; did you mean mini_choice"):
        load("mini_choise")
    with pytest.raises(UserError, match="unknown task 'mini_choice'.*include_path"):
        harness.load_tasks(["mini_choice"])


def test_no_task_and_no_folder(tmp_path):
    with pytest.raises(UserError, match="no task given; name at least one"):
        harness.load_tasks([])
    with pytest.raises(UserError, match="nowhere' is not a folder"):
        harness.load_tasks(["capitals"], include_path=tmp_path / "nowhere")


def test_data_that_is_not_cached_is_refused_without_a_network():
    assert datasets.config.HF_HUB_OFFLINE, "the tests run with HF_HUB_OFFLINE=1"
    with pytest.raises(UserError, match="task hellaswag: its data cannot be had .*HF_HUB_OFFLINE=1") as raised:
        harness.load_tasks(["hellaswag"])
    assert "\n" not in str(raised.value)


# -- worked examples --


def prompt(lens, tasks):
    (prepared,) = harness.prepare(lens, tasks, limit=1)
    return prepared.task.instances[0].args[0]


def test_num_fewshot_overrides_what_the_task_says(lens, load):
    assert prompt(lens, load("mini_shots")).count("A:") == 3
    assert prompt(lens, load("mini_shots", num_fewshot=0)).count("A:") == 1
    assert prompt(lens, load("mini_shots", num_fewshot=4)).count("A:") == 5
    assert prompt(lens, load("mini_choice")).count("A:") == 1  # unsaid means none
    assert prompt(lens, load("mini_choice", num_fewshot=1)).count("A:") == 2
    assert load("mini_shots", num_fewshot=4)["mini_shots"].config.num_fewshot == 4


def test_the_seed_chooses_the_examples(lens, load):
    prompts = [prompt(lens, load("mini_shots", seed=seed)) for seed in (0, 0, 1, 2, 3)]
    assert prompts[0] == prompts[1] and len(set(prompts)) > 1


def test_a_task_fixed_at_no_examples_refuses_some(load):
    with pytest.raises(UserError, match="task mini_spaces is fixed at 0 examples"):
        load("mini_spaces", num_fewshot=1)
    assert load("mini_spaces", num_fewshot=0)["mini_spaces"].config.num_fewshot == 0


def test_more_examples_than_there_are(load):
    with pytest.raises(UserError, match="num_fewshot 6: task mini_shots has 5 examples"):
        load("mini_shots", num_fewshot=6)


@pytest.mark.parametrize("value", [-1, True])
def test_num_fewshot_must_be_a_count(value):
    with pytest.raises(UserError, match=f"num_fewshot {value!r}: give a whole number from 0"):
        harness.load_tasks(["capitals"], num_fewshot=value)


# -- limits and generation options --


@pytest.mark.parametrize("limit", [0, -3, True])
def test_limit_must_be_a_number_of_documents(lens, load, limit):
    with pytest.raises(UserError, match=f"limit {limit!r}: give a whole number of documents, at least 1"):
        harness.prepare(lens, load("mini_choice"), limit=limit)


def test_limit_takes_the_first_documents_and_may_be_larger_than_the_task(lens, load):
    assert list(harness.prepare(lens, load("mini_choice"), limit=2)[0].docs) == [0, 1]
    assert len(harness.prepare(lens, load("mini_choice"), limit=99)[0].docs) == len(DOCUMENTS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mini_sampling", r"task mini_sampling samples \(do_sample=True\)"),
        ("mini_warm", r"task mini_warm samples \(temperature=0.7\)"),
        ("mini_beams", "task mini_beams sets generation option num_beams=4, which is not supported"),
        ("mini_endless", "task mini_endless writes up to 48 tokens; the model reads 48 in all"),
    ],
)
def test_what_greedy_decoding_would_ignore_is_refused(lens, load, name, said):
    with pytest.raises(UserError, match=said):
        harness.prepare(lens, load(name))
