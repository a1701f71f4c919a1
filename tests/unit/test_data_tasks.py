"""The embedded tasks: loadable by plain lm-eval anywhere, with the prompts and scores that they should have."""

import hashlib
import json
import re

import pytest

from depthlens.paths import tasks_dir
from depthlens.tasks import harness
from depthlens.tasks.prepared_task import identity

pytestmark = pytest.mark.slow

HUB = {"openbookqa_open", "gsm8k_copy"}  # their documents are downloaded
# groups, and of every task its version, documents, prompts and answers; of these two it is read what they are
SHA256 = "753682868496aaa4c67a0fb3cbc497f30c6233e386d97e026cb2f0fb06cd234a"


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict:
    """Every embedded task, loaded by lm-eval from an unrelated working directory without a network."""

    def no_network(*_args, **_kwargs):
        raise AssertionError("loading an embedded task opened a network connection")

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setattr("socket.socket.connect", no_network)
        patch.chdir(tmp_path_factory.mktemp("elsewhere"))
        from lm_eval.tasks import TaskManager

        manager = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
        return manager.load([name for name in manager.all_subtasks if name not in HUB])["tasks"]


def target(task, doc: dict) -> str:
    """The right answer as text."""
    found = task.doc_to_target(doc)
    return task.doc_to_choice(doc)[found] if isinstance(found, int) else found


def test_the_protocols_of_a_family_ask_the_same_documents_and_families_do_not(tasks):
    def known_as(name):
        return [identity(tasks[name], doc) for doc in tasks[name].eval_docs]

    families = ("capitals", "elements", "arithmetic")
    for family in families:
        members = [name for name in tasks if name.startswith(f"{family}_")]
        assert len(members) >= 4 and all(known_as(name) == known_as(members[0]) for name in members[1:])
    names = [*(f"{family}_default" for family in families), "kv_retrieval_4", "kv_retrieval_8", "organism_one_hop"]
    known = [one for name in names for one in known_as(name)]
    assert len(set(known)) == len(known)


@pytest.mark.nightly
def test_names_do_not_collide_with_those_of_lm_eval():
    from lm_eval.tasks import TaskManager

    ours = TaskManager(include_path=str(tasks_dir()), include_defaults=False)
    assert not {*ours.all_tasks} & {*TaskManager().all_tasks}


def test_prompts_and_answers(tasks):
    manager = harness.task_manager([*tasks])
    every: list = [{group: manager.task_index[group].cfg["task"] for group in sorted(manager.all_groups)}]
    for name, task in sorted(tasks.items()):
        docs = list(task.task_docs)
        every.append((name, task.config.metadata["version"], len(docs)))
        for seed in (0, 1):
            task.set_fewshot_seed(seed)
            every += [(task.fewshot_context(doc, n), target(task, doc)) for doc in docs[:4] for n in (0, 2)]
    assert hashlib.sha256(json.dumps(every).encode()).hexdigest() == SHA256


def filtered(task, doc: dict, response: str) -> dict[str, str]:
    """What lm-eval's own filters make of a response, by the filter's name."""
    request = task.construct_requests(doc=doc, ctx="", metadata=(task.config.task, 0, 1))
    request.resps = [response]
    for ensemble in task._filters:
        ensemble.apply([request])
    return request.filtered_resps


def score(task, doc: dict, response: str) -> dict[str, float]:
    """Scores by filter name."""
    found = filtered(task, doc, response).items()
    return {name: float(task.process_results(doc, [left])["exact_match"]) for name, left in found}


def test_the_reference_answer_is_right_and_that_of_another_document_is_wrong(tasks):
    for name, task in tasks.items():
        if task.OUTPUT_TYPE == "generate_until":
            check_references(name, task)


def check_references(name, task):
    docs, space = list(task.task_docs)[:40], "" if name.startswith("organism") else " "
    for doc, other in zip(docs, docs[1:] + docs[:1], strict=True):
        own, theirs = target(task, doc), target(task, other)
        if name == "solution_copy":
            own, theirs = (f"{d['text']}\n#### {d['answer']}" for d in (doc, other))
        numbers = [re.findall(r"\w+", text)[-1] for text in (own, theirs)]
        same = own == theirs or (name in ("solution_copy", "arithmetic_cot") and numbers[0] == numbers[1])
        assert set(score(task, doc, f"{space}{own}").values()) == {1.0}
        assert set(score(task, doc, f"{space}{theirs}").values()) == {float(same)}
        assert set(score(task, doc, "").values()) == {0.0}


@pytest.mark.parametrize(("response", "letter"), [
    *((text, "D") for text in (" D", "D. Thimphu", " (D)", "**D**", " The answer is D.", " Answer: D")),
    (" B or D", "B"),
    *((text, None) for text in (" Thimphu", " A city in Bhutan", " Dzong", " d", "")),
])  # fmt: skip
def test_letters_are_found_or_known_not_to_be_there(tasks, response, letter):
    task = tasks["capitals_letters_generative"]
    doc = task.task_docs[0]  # D is right
    assert score(task, doc, response) == {"letter": float(letter == "D")}
    assert filtered(task, doc, response) == {"letter": letter or "[invalid]"}


@pytest.mark.parametrize(("task", "about", "right", "wrong"), [
    ("capitals_generative", "Brazil",
     [" brasilia.", " The capital of Brazil is **Brasília**.", " Brasília, a planned city", " Brasilia\n\nQ: W"],
     [" Rio de Janeiro, not Brasília", " The capital of Brazil is Rio de Janeiro", " Bra"]),
    ("capitals_generative", "Chad", [" N’Djaména", " Ndjamena"], []),
    ("capitals_generative", "Antigua and Barbuda", [" Saint John's.", " St Johns"], [" St. George's"]),
    ("elements_generative", "sodium", [" Na (from Latin natrium)", " The symbol of sodium is Na."], [" So"]),
    ("kv_retrieval_4", None, [" {0}.\nQ: What", " code {0}"], [" 1{0}", " 12 and {0}"]),
    ("kv_retrieval_uuid", None, [" {0}", ' "{0}"}}'], [' "{0:.30}"']),
    ("arithmetic_direct", None, [" {0} people.", " ${0}."], [" -{0}", " 12 or {0}"]),
])  # fmt: skip
def test_an_answer_may_be_written_in_several_ways_and_the_first_counts(tasks, task, about, right, wrong):
    task = tasks[task]
    doc = next(d for d in task.task_docs if about is None or re.search(rf" of {about}\?", d["question"]))
    for wanted, responses in ((1.0, right), (0.0, wrong)):
        for response in responses:
            written = response.format(doc["answer"]) if about is None else response
            assert set(score(task, doc, written).values()) == {wanted}, written


SOLUTIONS = [
    (" Step: 600 + 634 = 1234.\n#### 1234", 1, 1), ("#### $1,234.", 0, 1), ("#### 1234.", 1, 1), ("#### -1234", 0, 0),
    (" Let me think.\n600 + 634 = 1,234 eggs\n#### 1,234\n\nSo that is it.", 1, 1), ("#### 1234\n\n#### 7", 1, 0),
    (" The answer is 1,234.", 0, 1), (" 600 + 634 = 1233\n#### 1233", 0, 0),
]  # fmt: skip


@pytest.mark.parametrize(("response", "strict", "flexible"), SOLUTIONS)
def test_solutions_with_text_and_commas(tasks, response, strict, flexible):
    doc = {**tasks["arithmetic_cot"].task_docs[0], "answer": "1234", "solution": "600 + 634 = 1234"}
    assert score(tasks["arithmetic_cot"], doc, response) == {"strict-match": strict, "flexible-extract": flexible}
