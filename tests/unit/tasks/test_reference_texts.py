"""Over which texts ``@mean`` takes means, and which prompts ``@resample`` reads: not evaluated, with their answers."""

import re

import mini_tasks
import pytest
import tiny
from refusals import refused

import depthlens as dl
from depthlens.tasks import harness
from depthlens.tasks.measures import reference_of

N_TEST = 90
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ '<bot>' if add_generation_prompt }}"
BODIES = {
    "choice": mini_tasks.choice("Q: {{q}}", doc_to_choice="{{o}}", doc_to_target="a"),
    "cloze": mini_tasks.measured("loglikelihood", "Q: {{q}}", " {{o[0]}}", "acc"),
    "written": mini_tasks.written("{{o[1]}}", until=["x"], max_gen_toks=4) | {"doc_to_text": "Q: {{q}}"},
    "rolling": mini_tasks.measured("loglikelihood_rolling", "", "{{q}}", "word_perplexity"),
}


def doc(kind, i):
    return {"q": f"{kind} {i}?", "o": [f"yes {i}", f"no {i}"], "a": i % 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    docs = {"test": [doc("test", i) for i in range(N_TEST)]}
    docs["shots"] = [doc("test", 0), *(doc("shot", i) for i in range(4))]  # one of the examples is also a document
    for kind, body in BODIES.items():
        mini_tasks.write_task(folder, f"reference_{kind}", docs, **body, fewshot_split="shots", num_fewshot=2)
    return folder


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=2048)


@pytest.fixture
def prepared(folder, lens):
    def of(kind, limit=20, **options):
        tasks = harness.load_tasks([f"reference_{kind}"], include_path=folder)
        return harness.prepare(lens, tasks, limit=limit, **options)[0]

    return of


def decoded(lens, reference):
    return [(lens.tokenizer.decode(prompt), lens.tokenizer.decode(answer)) for prompt, answer in reference.texts]


@pytest.mark.parametrize(("kind", "text"), [
    ("choice", lambda name, i: (f"Q: {name} {i}?", f" {'no' if i % 2 else 'yes'} {i}")),
    ("cloze", lambda name, i: (f"Q: {name} {i}?", f" yes {i}")),
    ("written", lambda name, i: (f"Q: {name} {i}?", f" no {i}")),
    ("rolling", lambda name, i: ("<bos>", f"{name} {i}?")),
])  # fmt: skip
def test_texts_are_prompts_without_examples_and_their_answers(lens, prepared, kind, text):
    task = prepared(kind)
    reference = reference_of(task)
    shots = [text("shot", i) for i in range(4)]
    rest = [text("test", i) for i in range(N_TEST - 1, N_TEST - 61, -1)]
    assert decoded(lens, reference) == [*shots, *rest]
    assert reference.name == f"reference_{kind}: documents that are not evaluated, without examples"
    asked = {lens.tokenizer.decode(q.context) for q in task.requests}
    assert kind == "rolling" or all(prompt not in asked for prompt, _ in decoded(lens, reference))


def test_too_few_documents_are_told_before_the_model_runs(lens, prepared, monkeypatch):
    said = "reference_choice: @mean needs 8 documents that are not evaluated, and 7 are left; lower limit, use a task"
    refused(said, reference_of, prepared("choice", limit=N_TEST - 3))
    assert len(reference_of(prepared("choice", limit=N_TEST - 4)).texts) == 8
    monkeypatch.setattr(dl.Engine, "loglikelihood", lambda *a, **k: pytest.fail("the model runs"))
    task = prepared("choice", limit=None)
    refused("and 4 are left", dl.condition_sweep, lens, {task.name: task.task}, "L1@mean", progress=False)


def test_chat_templates_are_those_of_the_task(lens, prepared, monkeypatch):
    monkeypatch.setattr(lens.tokenizer, "chat_template", CHAT)
    options = {"apply_chat_template": True, "system_instruction": "Be brief."}
    first, *_ = decoded(lens, reference_of(prepared("written", **options)))
    assert first == ("<system>Be brief.\n<user>Q: shot 0?\n<bot>", "no 0")


def test_prompts_to_resample_have_the_form_of_those_that_are_scored(folder, lens, prepared):
    """Two examples come before each, as the task says."""
    task = prepared("choice")
    options = {"include_path": folder, "limit": 20, "measure": "answer_logprob", "store": None, "progress": False}
    options |= {"resample_prompts": 2}
    asked, again = (dl.condition_sweep(lens, task.name, "L1,L1@resample", **options) for _ in range(2))
    prompts = asked.record["resample_prompts"]
    shots = [line for text in prompts for line in re.findall(r"Q: (\w+ \d+)\?", text)]
    assert len(prompts) == 2 and len(shots) == 6 and shots[2] != shots[5], "two questions, with two examples each"
    assert not any(asked in shots[i : i + 2] for i, asked in ((0, shots[2]), (3, shots[5]))), "none is its own example"
    assert all(re.fullmatch(r"(Q: .+\? (yes|no) \d+\s+){2}Q: shot \d\? (yes|no) \d", text) for text in prompts)
    assert again.record["resample_prompts"] == prompts, "examples are seeded"
    losses = asked.loss_table.set_index("condition")["loss"]
    assert losses["L1"] != losses["L1@resample"]
