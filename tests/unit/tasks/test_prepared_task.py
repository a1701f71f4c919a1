"""What a prepared task says of itself: chance levels, prompts that are cut, questions."""

import mini_tasks
import numpy as np
import pytest
import tiny
from mini_tasks import CONTEXT, DOCUMENTS

from depthlens.experiments.sweep import condition_sweep
from depthlens.metrics import metric_unit
from depthlens.tasks import harness
from depthlens.tasks.measures import Answers


def test_chance_levels(lens, load):
    names = ["mini_choice", "mini_mutual", "mini_writing", "mini_defaults", "mini_cloze", "mini_rolling"]
    chance = {p.name: p.chance for p in harness.prepare(lens, load(*names))}
    among_options = (1 / 2 + 1 / 4 + 1 / 3 + 1 / 2 + 1 / 2) / 5
    assert chance["mini_choice"]("acc") == chance["mini_choice"]("acc_norm") == pytest.approx(among_options)
    assert chance["mini_choice"]("mcc") is None
    assert chance["mini_mutual"]("acc") == pytest.approx(among_options)
    assert chance["mini_writing"]("exact_match") == pytest.approx(1 / 5)
    assert chance["mini_defaults"]("exact_match") == 1.0  # every answer is "four": saying it is always right
    assert chance["mini_cloze"]("acc") == 0.0
    assert chance["mini_rolling"]("bits_per_byte") is None


def test_chance_of_several_right_options_and_of_greedy_decoding(lens, tmp_path):
    docs = [{"q": "x", "o": ["a", "b", "c"], "a": [0, 2]}, {"q": "y", "o": ["a", "b"], "a": [1]}]
    metrics = ("acc", "acc_bytes", "exact_match", "mcc")
    config = mini_tasks.choice("q", *metrics, doc_to_choice="o", doc_to_target="a")
    mini_tasks.write_task(tmp_path, "several", {"test": docs}, **config)
    (prepared,) = harness.prepare(lens, harness.load_tasks(["several"], include_path=tmp_path))
    chance = [prepared.chance(metric) for metric in metrics]
    assert chance == [pytest.approx((2 / 3 + 1 / 2) / 2)] * 2 + [0.0, None]


def test_chance_of_written_tasks_is_that_of_the_whole_split_whatever_the_limit(lens, load):
    wholes = {harness.prepare(lens, load("mini_writing"), limit=n)[0].chance("exact_match") for n in (1, 3, 4, None)}
    assert wholes == {1 / 5}  # five answers, each of one document
    records = [condition_sweep(lens, load("mini_writing"), "L2", limit=n, progress=False).record for n in (1, 3)]
    assert [r["tasks"]["mini_writing"]["metrics"]["exact_match"]["chance"] for r in records] == [1 / 5] * 2


def lost(lens, prepared):
    """How much longer than the model reads each prompt is, counted with the tokenizer alone (one token a byte)."""
    for request, instance in zip(prepared.requests, prepared.task.instances, strict=True):
        if prepared.output_type == "generate_until":
            room = CONTEXT - request.max_new_tokens
            yield max(0, len(lens.tokenizer(instance.args[0]).input_ids) - room)
        else:
            yield max(0, len(lens.tokenizer("".join(instance.args)).input_ids) - (CONTEXT + 1))


@pytest.mark.parametrize("name", ["mini_shots", "mini_writing"])
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


def test_prompts_whose_end_is_in_a_token_with_the_answer_are_counted_and_told(tmp_path):
    """As Qwen's tokenizer joins a bracket and a line break: lm-eval's model then reads no break at all."""
    lens = tiny.lens("llama-gqa")
    lens.tokenizer.add_tokens(["?\n"])
    config = mini_tasks.choice("{{q}}\n", target_delimiter="")
    mini_tasks.write_task(tmp_path, "breaks", {"test": DOCUMENTS}, **config)
    result = condition_sweep(lens, "breaks", "L2", include_path=tmp_path, progress=False)
    assert result.record["tasks"]["breaks"]["n_merged"] == 1, "one question ends in a question mark"
    assert any(note.startswith("breaks: 1 prompts are read as other tokens") for note in result.notes)


def test_the_log_likelihood_per_token_is_that_of_the_answer_over_its_length(lens, load):
    measures = ("answer_logprob", "token_logprob")
    results = {m: condition_sweep(lens, load("mini_writing"), "L2", measure=m, progress=False) for m in measures}
    (prepared,) = harness.prepare(lens, load("mini_writing"))
    lengths = [len(q.continuation) for q in Answers(prepared).requests]
    assert len(set(lengths)) > 1
    whole, per_token = (result.scores("mini_writing", m) for m, result in results.items())
    np.testing.assert_allclose(per_token, whole.div(lengths, axis=0), rtol=1e-6)
    info = results["token_logprob"].metric_info("mini_writing", "token_logprob")
    assert info["floor"] is info["chance"] is None
    assert metric_unit("token_logprob") == "nats"


def test_questions_can_be_joined_with_the_scores(lens, load):
    names = ["mini_choice", "mini_cloze", "mini_rolling", "mini_writing"]
    result = condition_sweep(lens, load(*names), "L2", limit=2, progress=False)
    asked = result.questions().set_index(["task", "doc_id"])
    own = ["question", "reference", "choices", "doc_hash", "subtask", "fields"]
    assert list(asked.columns) == own and len(asked) == 4 * 2
    assert asked["doc_hash"].groupby("doc_id").nunique().tolist() == [1, 1]  # four tasks of the same documents
    asked = asked.drop(columns=own[3:])
    q, options = DOCUMENTS[1]["q"], DOCUMENTS[1]["options"]
    assert asked.loc[("mini_choice", 1)].tolist() == [f"{q}\nA:", "4", options]
    assert asked.loc[("mini_cloze", 1)].tolist() == [q, " four", None]
    assert asked.loc[("mini_writing", 1)].tolist() == [q, "four", None]
    assert asked.loc[("mini_rolling", 1)].tolist() == ["", DOCUMENTS[1]["text"], None]
    table = result.docs.merge(result.questions())
    assert len(table) == len(result.docs)
    chosen = table[(table["task"] == "mini_choice") & (table["metric"] == "acc")]
    assert ((chosen["response"] == chosen["reference"].str.strip()) == (chosen["value"] == 1.0)).all()
