"""The embedded tasks: loadable by plain lm-eval anywhere, with the prompts and scores that they should have."""

from __future__ import annotations

import json

import pytest
from embedded_data import (
    BOOKS_WRITTEN,
    CHOICE,
    COPY,
    GROUPS,
    HUB,
    KV_CHOICE,
    LETTERS,
    N_DOCS,
    NAMED,
    NEW,
    ORGANISM,
    ORGANISM_DEPTH,
    PLAIN,
    TASKS,
    UUIDS,
    WRITTEN,
    planted,
)
from rendered_prompts import RENDERED

from depthlens.tasks.prepared_task import identity

pytestmark = pytest.mark.slow


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

        manager = TaskManager(include_path=str(TASKS), include_defaults=False)
        return manager.load(list(N_DOCS))["tasks"]


def test_the_protocols_of_a_family_ask_the_same_documents_and_families_do_not(tasks):
    def known_as(name):
        return [identity(tasks[name], doc) for doc in tasks[name].eval_docs]

    families = ("capitals", "elements", "arithmetic")
    for family in families:
        members = [name for name in tasks if name.startswith(f"{family}_")]
        assert len(members) >= 4 and all(known_as(name) == known_as(members[0]) for name in members[1:])
    assert known_as("organism_one_hop") == known_as("organism_two_hop_generative")
    every = [*families, "kv_retrieval_4", "kv_retrieval_8", "organism_one_hop"]
    names = [name if name in tasks else f"{name}_default" for name in every]
    known = [one for name in names for one in known_as(name)]
    assert len(set(known)) == len(known) == sum(N_DOCS[name] for name in names)


def test_groups_and_tags_do_not_collide_with_lm_eval():
    from lm_eval.tasks import TaskManager

    ours = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert set(ours.all_subtasks) == {*N_DOCS, *HUB}
    assert set(ours.all_groups) == set(GROUPS)
    for group, members in GROUPS.items():
        assert ours.task_index[group].cfg["task"] == members
    assert not set(ours.all_tasks) & set(TaskManager().all_tasks)


@pytest.mark.parametrize("name", N_DOCS)
class TestLoading:
    def test_settings(self, tasks, name):
        task = tasks[name]
        assert len(task.task_docs) == N_DOCS[name]
        version = 1.0 if name in NEW else 2.1 if name.startswith("arithmetic") else 1.1
        assert task.config.metadata["version"] == version
        assert task.config.test_split and task.config.fewshot_split
        assert task.config.num_fewshot != 0, "lm-eval lets nobody change a 0 in the YAML; leaving it out means 0"
        assert task.higher_is_better() and all(task.higher_is_better().values())
        assert set(task.aggregation()) == set(task.higher_is_better())
        comment = next(TASKS.glob(f"*/{name}.yaml")).read_text(encoding="utf-8")
        assert comment.startswith("# ")

    def test_chance_can_be_computed_from_the_document(self, tasks, name):
        for doc in tasks[name].task_docs:
            if name in [*CHOICE, *LETTERS, *PLAIN]:
                assert len(doc["choices"]) == 4 and isinstance(doc["answer"], int)
            elif name in ORGANISM:
                assert len(set(doc["options"])) == 4 and {doc["one_hop"], doc["two_hop"]} < set(doc["options"])
            elif name in ORGANISM_DEPTH:
                _, options, answer = planted(name, doc)
                assert len(set(options)) == 4 and answer in options
            elif name in BOOKS_WRITTEN:
                assert doc["text"] == doc["choices"][doc["answer"]]
            else:
                assert isinstance(doc["answer"], str) and doc["answer"]

    def test_fewshot_prefix_is_the_same_for_every_document(self, tasks, name):
        task = tasks[name]
        prompts = [task.fewshot_context(doc, 3) for doc in list(task.task_docs)[:2]]
        bare = [task.fewshot_context(doc, 0) for doc in list(task.task_docs)[:2]]
        prefixes = {prompt.removesuffix(end) for prompt, end in zip(prompts, bare, strict=True)}
        assert len(prefixes) == 1
        shot = task.fewshot_docs()[0]
        target = task.doc_to_target(shot)
        target = task.doc_to_choice(shot)[target] if name in [*CHOICE, *KV_CHOICE, *PLAIN] else target
        assert prefixes.pop().startswith(f"{task.doc_to_text(shot)} {target}\n\n")

    def test_another_seed_draws_other_examples_and_every_document_has_them(self, tasks, name):
        task = tasks[name]
        docs, n_shots = list(task.task_docs)[:2], {}
        for seed in (0, 1, 2, 1234, 0):
            task.set_fewshot_seed(seed)
            prefixes = {task.fewshot_context(d, 2).removesuffix(task.fewshot_context(d, 0)) for d in docs}
            assert len(prefixes) == 1
            assert n_shots.setdefault(seed, prefixes) == prefixes  # the same again under the same seed
        shots = [task.doc_to_text(shot) for shot in task.fewshot_docs()]
        used = [{shot for shot in shots if shot in prefix} for seed in (0, 1, 2) for prefix in n_shots[seed]]
        assert [len(one) for one in used] == [2, 2, 2] and len(set.union(*used)) == 6  # three seeds share none


class TestRendering:
    @pytest.mark.parametrize("name", RENDERED)
    def test_prompt_and_target(self, tasks, name):
        task = tasks[name]
        doc = task.task_docs[0]
        target = task.doc_to_target(doc)
        if name in [*CHOICE, *KV_CHOICE, *PLAIN]:
            target = task.doc_to_choice(doc)[target]
        assert (task.fewshot_context(doc, 0), target) == RENDERED[name]

    @pytest.mark.parametrize("family", ["capitals", "elements", "arithmetic"])
    @pytest.mark.parametrize("seed", [0, 3])
    def test_the_written_letter_has_the_very_prompt_of_the_chosen_one(self, tasks, family, seed):
        one, other = tasks[f"{family}_default"], tasks[f"{family}_letters_generative"]
        for task in (one, other):
            task.set_fewshot_seed(seed)
        for a, b in zip(one.task_docs, other.task_docs, strict=True):
            assert one.fewshot_context(a, 2) == other.fewshot_context(b, 2)
            assert one.doc_to_choice(a)[one.doc_to_target(a)] == other.doc_to_target(b)

    @pytest.mark.parametrize("name", KV_CHOICE)
    def test_the_chosen_code_has_the_very_prompt_of_the_written_one(self, tasks, name):
        one, other = tasks[name], tasks[name.removesuffix("_continuation")]
        for a, b in zip(one.task_docs, other.task_docs, strict=True):
            assert one.fewshot_context(a, 2) == other.fewshot_context(b, 2)
            assert one.doc_to_choice(a) == a["values"] and a["values"][one.doc_to_target(a)] == other.doc_to_target(b)

    @pytest.mark.parametrize("name", ["kv_retrieval_8", "kv_retrieval_16"])
    def test_named_codes(self, tasks, name):
        doc = tasks[name].task_docs[0]
        lines = tasks[name].fewshot_context(doc, 0).split("\n")
        for line, key, value in zip(lines[: NAMED[name]], doc["keys"], doc["values"], strict=True):
            assert line == f"The code of the {key} is {value}."
        assert lines[-1] == f"A: The code of the {doc['key']} is"

    def test_uuid_prompt_holds_the_json_object(self, tasks):
        task = tasks["kv_retrieval_uuid"]
        for doc in list(task.task_docs)[:5]:
            head, _, rest = task.fewshot_context(doc, 0).partition("JSON data:\n")
            data, _, tail = rest.partition("\n\n")
            assert head == "Extract the value corresponding to the specified key in the JSON object below.\n\n"
            assert list(json.loads(data).items()) == list(zip(doc["keys"], doc["values"], strict=True))
            assert tail == f'Key: "{doc["key"]}"\nCorresponding value:'
            assert json.loads(task.doc_to_target(doc)) == json.loads(data)[doc["key"]]

    @pytest.mark.parametrize("name", UUIDS)
    def test_drawn_pairs_are_asked_at_stated_positions(self, tasks, name):
        docs, n = list(tasks[name].task_docs), UUIDS[name]
        places = [doc["position"] for doc in docs]
        assert {0, n - 1} < {*places} and len({places.count(place) for place in places}) == 1
        for doc in docs:
            assert len({*doc["keys"], *doc["values"]}) == 2 * n == 2 * doc["n_pairs"]
            assert (doc["keys"][doc["position"]], doc["values"][doc["position"]]) == (doc["key"], doc["answer"])
        assert len({doc["key"] for doc in docs}) == len(docs)
        one = tasks["kv_retrieval_uuid"]
        prompt = tasks[name].fewshot_context(docs[0], 0)
        assert prompt.split("{")[0] == one.fewshot_context(one.task_docs[0], 0).split("{")[0]
        assert json.loads(prompt[prompt.index("{") : prompt.index("}") + 1])[docs[0]["key"]] == docs[0]["answer"]


def written_score(task, doc: dict, response: str) -> dict[str, float]:
    """Scores by filter name, through lm-eval's own filters and process_results."""
    request = task.construct_requests(doc=doc, ctx="", metadata=(task.config.task, 0, 1))
    request.resps = [response]
    scores = {}
    for ensemble in task._filters:
        ensemble.apply([request])
        filtered = request.filtered_resps[ensemble.name]
        scores[ensemble.name] = float(task.process_results(doc, [filtered])["exact_match"])
    return scores


class TestScores:
    @pytest.mark.parametrize("name", CHOICE)
    def test_choice(self, tasks, name):
        task = tasks[name]
        metrics = {"acc"} if name.endswith("default") else {"acc", "acc_norm"}
        for doc in list(task.task_docs)[:8]:
            for chosen in range(4):
                # Per character too, so far apart that length cannot turn the order of acc_norm.
                results = [(-1.0 if i == chosen else -1000.0, i == chosen) for i in range(4)]
                assert task.process_results(doc, results) == dict.fromkeys(metrics, float(chosen == doc["answer"]))

    @pytest.mark.parametrize("name", [*WRITTEN, *NAMED, *LETTERS, "kv_retrieval_uuid", *UUIDS, "arithmetic_direct"])
    def test_written_answer_of_every_document(self, tasks, name):
        task = tasks[name]
        docs = list(task.task_docs)
        for doc, other in zip(docs, docs[1:] + docs[:1], strict=True):
            assert set(written_score(task, doc, f" {task.doc_to_target(doc)}").values()) == {1.0}
            wrong = float(task.doc_to_target(other) == task.doc_to_target(doc))
            assert set(written_score(task, doc, f" {task.doc_to_target(other)}").values()) == {wrong}
            assert set(written_score(task, doc, "").values()) == {0.0}

    def test_only_the_copied_number_is_right(self, tasks):
        first, other = list(tasks[COPY].task_docs)[:2]
        for doc, score in ((first, 1.0), (other, 0.0)):
            text = f" {doc['text']}\n#### {doc['answer']}"
            assert set(written_score(tasks[COPY], first, text).values()) == {score}

    @pytest.mark.parametrize(
        ("response", "letter"),
        [
            (" D", "D"),
            ("D. Thimphu", "D"),
            (" (D)", "D"),
            ("**D**", "D"),
            (" The answer is D.", "D"),
            (" Answer: D", "D"),
            (" B or D", "B"),
            (" Thimphu", None),
            (" A city in Bhutan", None),
            (" Dzong", None),
            (" d", None),
            ("", None),
        ],
    )
    def test_letters_are_found_or_known_not_to_be_there(self, tasks, response, letter):
        task = tasks["capitals_letters_generative"]
        doc = task.task_docs[0]  # D is right
        assert written_score(task, doc, response) == {"letter": float(letter == "D")}
        request = task.construct_requests(doc=doc, ctx="", metadata=(task.config.task, 0, 1))
        request.resps = [response]
        task._filters[0].apply([request])
        assert request.filtered_resps["letter"] == (letter or "[invalid]")

    @pytest.mark.parametrize(
        ("country", "response", "score"),
        [
            ("Brazil", " brasilia.", 1),
            ("Brazil", " The capital of Brazil is **Brasília**.", 1),
            ("Brazil", " Brasília, a planned city", 1),
            ("Brazil", " Brasilia\n\nQ: What", 1),
            ("Brazil", " Rio de Janeiro, not Brasília", 0),
            ("Brazil", " The capital of Brazil is Rio de Janeiro", 0),
            ("Brazil", " Bra", 0),
            ("Haiti", " Port au Prince", 1),
            ("Haiti", " Port", 0),
            ("Chad", " N’Djaména", 1),
            ("Chad", " Ndjamena", 1),
            ("Tonga", " Nuku'alofa", 1),
            ("Moldova", " Chisinau", 1),
            ("the United States", " Washington", 1),
            ("the United States", " Washington D.C.", 1),
            ("the United States", " Washington, DC", 1),
            ("the United States", " New York", 0),
            ("Antigua and Barbuda", " Saint John's.", 1),
            ("Antigua and Barbuda", " St Johns", 1),
            ("Antigua and Barbuda", " St. George's", 0),
            ("Ukraine", " Kiev", 1),
            ("Mongolia", " Ulan Bator (formerly Urga)", 1),
        ],
    )
    def test_capital_written_in_other_ways(self, tasks, country, response, score):
        task = tasks["capitals_generative"]
        doc = next(d for d in task.task_docs if d["question"] == f"What is the capital of {country}?")
        assert written_score(task, doc, response) == {"none": score}

    @pytest.mark.parametrize(
        ("element", "response", "score"),
        [
            ("iodine", " I", 1),
            ("iodine", " In", 0),
            ("sodium", " Na (from Latin natrium)", 1),
            ("sodium", " The symbol of sodium is Na.", 1),
            ("sodium", " So", 0),
            ("copper", " Answer: Cu", 1),
        ],
    )
    def test_symbol_written_in_other_ways(self, tasks, element, response, score):
        task = tasks["elements_generative"]
        doc = next(d for d in task.task_docs if d["subject"] == element)
        assert written_score(task, doc, response) == {"none": score}

    @pytest.mark.parametrize(
        ("name", "template", "score"),
        [
            ("kv_retrieval_4", " {0}.\nQ: What", 1),
            ("kv_retrieval_4", " code {0}", 1),
            ("kv_retrieval_4", " 1{0}", 0),
            ("kv_retrieval_4", " 12 and {0}", 0),
            ("kv_retrieval_uuid", " {0}", 1),
            ("kv_retrieval_uuid", ' "{0}"}}', 1),
            ("kv_retrieval_uuid", ' "{0:.30}"', 0),
            ("arithmetic_direct", " {0} people.", 1),
            ("arithmetic_direct", " ${0}.", 1),
            ("arithmetic_direct", " -{0}", 0),
            ("arithmetic_direct", " 12 or {0}", 0),
        ],
    )
    def test_first_answer_counts(self, tasks, name, template, score):
        doc = tasks[name].task_docs[0]
        response = template.format(doc["answer"])
        assert set(written_score(tasks[name], doc, response).values()) == {score}

    @pytest.mark.parametrize(
        ("response", "strict", "flexible"),
        [
            (" Step: 600 + 634 = 1234.\n#### 1234", 1, 1),
            (" Let me think.\n600 + 634 = 1,234 eggs\n#### 1,234\n\nSo that is it.", 1, 1),
            ("#### $1,234.", 0, 1),
            ("#### 1234.", 1, 1),
            (" The answer is 1,234.", 0, 1),
            (" 600 + 634 = 1233\n#### 1233", 0, 0),
            ("#### 1234\n\n#### 7", 1, 0),
            ("#### -1234", 0, 0),
            ("", 0, 0),
        ],
    )
    def test_cot_with_text_and_commas(self, tasks, response, strict, flexible):
        doc = {**tasks["arithmetic_cot"].task_docs[0], "answer": "1234", "solution": "600 + 634 = 1234"}
        assert written_score(tasks["arithmetic_cot"], doc, response) == {
            "strict-match": strict,
            "flexible-extract": flexible,
        }

    def test_cot_own_solutions_are_right(self, tasks):
        for doc in list((task := tasks["arithmetic_cot"]).task_docs)[:40]:
            assert set(written_score(task, doc, " " + task.doc_to_target(doc)).values()) == {1.0}


class TestOrganismTasks:
    @pytest.mark.parametrize("name", ORGANISM)
    def test_prompt_and_score(self, tasks, name):
        task, (control, field) = tasks[name], ("QA", "one_hop") if "one_hop" in name else ("QB", "two_hop")
        for doc in list(task.task_docs)[:20]:
            assert task.fewshot_context(doc, 0) == f"{doc['context']} {control} {doc['key']}"
            if name.endswith("generative"):
                for word in doc["options"]:
                    assert written_score(task, doc, word) == {"none": float(word == doc[field])}
                continue
            assert task.doc_to_choice(doc) == doc["options"]
            for chosen, word in enumerate(doc["options"]):
                results = [(-9.0 + 8.0 * (i == chosen), i == chosen) for i in range(4)]
                assert task.process_results(doc, results) == {"acc": float(word == doc[field])}
