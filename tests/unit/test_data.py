"""The embedded tasks: generated as committed, balanced, right, and loadable by plain lm-eval anywhere."""

from __future__ import annotations

import csv
import importlib.util
import json
import operator
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest

from depthlens.paths import data_dir

DATA = data_dir()
TASKS = DATA / "tasks"
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

NUMBERS = ["arithmetic_default", "arithmetic_continuation"]
BOOKS = ["capitals_open_book", "elements_open_book"]
CHOICE = ["capitals_default", "capitals_continuation", "elements_default", "elements_continuation", *BOOKS, *NUMBERS]
BOOKS_WRITTEN = [f"{name}_generative" for name in BOOKS]
WRITTEN = ["capitals_generative", "elements_generative", *BOOKS_WRITTEN]
NAMED = {f"kv_retrieval_{n}": n for n in (4, 8, 16)}
ORGANISM = [f"organism_{hops}_hop{kind}" for kind in ("", "_generative") for hops in ("one", "two")]
N_DOCS = (
    {task: 156 if task.startswith("capitals") else 108 for task in CHOICE + WRITTEN}
    | dict.fromkeys([*NAMED, "kv_retrieval_uuid"], 150)
    | dict.fromkeys([*NUMBERS, "arithmetic_direct", "arithmetic_cot"], 200)
    | dict.fromkeys(ORGANISM, 200)
)
GROUPS = {
    "capitals": ["capitals_default", "capitals_continuation", "capitals_generative"],
    "elements": ["elements_default", "elements_continuation", "elements_generative"],
    "kv_retrieval": list(NAMED),
    "arithmetic_word_problems": [*NUMBERS, "arithmetic_direct", "arithmetic_cot"],
    "organism": ORGANISM,
}


def read(name: str) -> list[dict]:
    return [json.loads(line) for line in (TASKS / name).read_text(encoding="utf-8").splitlines()]


def facts(name: str) -> list[dict]:
    with (DATA / "facts" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def fold(text: str) -> str:
    """Independent of utils.normalise: letters only, without diacritics."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c.isascii() and c.isalpha())


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", DATA / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


class TestGenerator:
    def test_check_passes_on_the_committed_files(self):
        done = subprocess.run([sys.executable, str(DATA / "generate.py"), "--check"], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")

    def test_check_names_what_differs(self, generator, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr(generator, "DATA", tmp_path)
        monkeypatch.setattr(generator, "TASKS", tmp_path / "tasks")
        assert generator.main([]) == 0
        assert generator.main(["--check"]) == 0
        (tmp_path / "tasks/capitals/open_test.jsonl").write_text("{}\n")
        (tmp_path / "tasks/arithmetic/test.jsonl").unlink()
        (tmp_path / "tasks/arithmetic/old.jsonl").write_text("{}\n")
        capsys.readouterr()
        assert generator.main(["--check"]) == 1
        assert capsys.readouterr().err.splitlines() == [
            "changed: tasks/capitals/open_test.jsonl",
            "missing: tasks/arithmetic/test.jsonl",
            "not generated: tasks/arithmetic/old.jsonl",
        ]

    def test_written_anywhere_the_bytes_are_the_same(self, generator, tmp_path, monkeypatch):
        monkeypatch.setattr(generator, "TASKS", tmp_path)
        generator.main([])
        committed = {path.relative_to(TASKS): path.read_bytes() for path in TASKS.glob("**/*.jsonl")}
        assert {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.glob("**/*.jsonl")} == committed


class TestFacts:
    def test_countries(self):
        rows = facts("countries.csv")
        assert len(rows) >= 160
        assert max(Counter(row["country"] for row in rows).values()) == 1
        assert max(Counter(row["capital"] for row in rows).values()) == 1
        assert min(Counter(row["region"] for row in rows).values()) > 4

    def test_no_country_gives_its_capital_away(self):
        for row in facts("countries.csv"):
            country, capital = fold(row["country"]), fold(row["capital"])
            assert country not in capital and capital not in country, row

    @pytest.mark.parametrize(
        ("country", "capital"),
        [("Australia", "Canberra"), ("Turkey", "Ankara"), ("Brazil", "Brasília"), ("Kazakhstan", "Astana")]
        + [
            ("Canada", "Ottawa"),
            ("New Zealand", "Wellington"),
            ("Myanmar", "Naypyidaw"),
            ("Nigeria", "Abuja"),
        ]
        + [("Pakistan", "Islamabad"), ("Vietnam", "Hanoi"), ("Palau", "Ngerulmud"), ("Belize", "Belmopan")],
    )
    def test_capitals_often_got_wrong(self, country, capital):
        assert {row["country"]: row["capital"] for row in facts("countries.csv")}[country] == capital

    def test_elements(self):
        rows = facts("elements.csv")
        assert [int(row["number"]) for row in rows] == list(range(1, 119))
        assert len({row["symbol"] for row in rows}) == len({row["name"] for row in rows}) == 118
        symbols = {int(row["number"]): row["symbol"] for row in rows}
        noble = [symbols[n] for n in (2, 10, 18, 36, 54, 86, 118)]
        alkali = [symbols[n] for n in (3, 11, 19, 37, 55, 87)]
        assert noble == ["He", "Ne", "Ar", "Kr", "Xe", "Rn", "Og"]
        assert alkali == ["Li", "Na", "K", "Rb", "Cs", "Fr"]


@pytest.mark.parametrize("family", ["capitals", "elements"])
class TestFactFamilies:
    def test_counts(self, family):
        wanted = {"capitals": 156, "elements": 108}[family]
        assert len(read(f"{family}/choice_test.jsonl")) == wanted
        assert len(read(f"{family}/choice_fewshot.jsonl")) == 10

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_answers_are_the_facts(self, family, split):
        name, subject, answer = {
            "capitals": ("countries.csv", "country", "capital"),
            "elements": ("elements.csv", "name", "symbol"),
        }[family]
        known = {row[subject]: row[answer] for row in facts(name)}
        for doc in read(f"{family}/choice_{split}.jsonl"):
            assert doc["choices"][doc["answer"]] == known[doc["subject"]]
            assert doc["subject"] in doc["question"]

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_protocols_share_questions_and_answers_in_order(self, family, split):
        choice, written = read(f"{family}/choice_{split}.jsonl"), read(f"{family}/open_{split}.jsonl")
        assert [doc["question"] for doc in choice] == [doc["question"] for doc in written]
        assert [doc["choices"][doc["answer"]] for doc in choice] == [doc["answer"] for doc in written]
        assert all(doc["answer"] in doc["accepted"] for doc in written)

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_four_distinct_options(self, family, split):
        for doc in read(f"{family}/choice_{split}.jsonl"):
            assert len(doc["choices"]) == len({fold(choice) for choice in doc["choices"]}) == 4

    def test_correct_position_is_balanced_from_the_start(self, family):
        places = [doc["answer"] for doc in read(f"{family}/choice_test.jsonl")]
        assert set(Counter(places).values()) == {len(places) // 4}
        for start in range(0, len(places), 4):
            assert sorted(places[start : start + 4]) == [0, 1, 2, 3]

    def test_every_answer_is_wrong_three_times(self, family):
        docs = read(f"{family}/choice_test.jsonl")
        offered = Counter(choice for doc in docs for choice in doc["choices"])
        assert offered == {doc["choices"][doc["answer"]]: 4 for doc in docs}

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_a_book_tells_the_four_options_and_the_answer_at_balanced_places(self, family, split):
        closed, opened = read(f"{family}/choice_{split}.jsonl"), read(f"{family}/book_{split}.jsonl")
        written = read(f"{family}/open_{split}.jsonl")
        for doc, bare, answer in zip(opened, closed, written, strict=True):
            assert {key: doc[key] for key in bare} == bare
            assert (doc["text"], doc["accepted"]) == (answer["answer"], answer["accepted"])
            told = [fact.removesuffix(".").rsplit(" is ", 1) for fact in doc["facts"]]
            assert sorted(option for _, option in told) == sorted(doc["choices"])
            asked = doc["question"].removeprefix("What is ").removesuffix("?")
            assert told[doc["position"]] == [asked[0].upper() + asked[1:], doc["text"]]
        places = [doc["position"] for doc in opened]
        for start in range(0, len(places) - 3, 4):
            assert sorted(places[start : start + 4]) == [0, 1, 2, 3]
        # the place in the book tells nothing about the place among the options
        same = sum(doc["position"] == doc["answer"] for doc in opened)
        assert split == "fewshot" or 0.15 < same / len(opened) < 0.35

    def test_fewshot_is_disjoint(self, family):
        test, shots = read(f"{family}/choice_test.jsonl"), read(f"{family}/choice_fewshot.jsonl")
        assert not {doc["subject"] for doc in test} & {doc["subject"] for doc in shots}
        assert not {c for doc in test for c in doc["choices"]} & {doc["choices"][doc["answer"]] for doc in shots}


def test_capital_options_are_of_one_region():
    region = {row["capital"]: row["region"] for row in facts("countries.csv")}
    for split in ("test", "fewshot"):
        for doc in read(f"capitals/choice_{split}.jsonl"):
            assert {region[choice] for choice in doc["choices"]} == {doc["group"]}


def test_element_options_are_neighbours_in_the_alphabet():
    docs = read("elements/choice_test.jsonl")
    symbols = sorted(doc["choices"][doc["answer"]] for doc in docs)
    for doc in docs:
        first = symbols.index(min(doc["choices"]))
        assert sorted(doc["choices"]) == symbols[first : first + 4]


@pytest.mark.parametrize("name", ["4", "8", "16", "uuid"])
class TestKeyValue:
    @pytest.mark.parametrize(("split", "n_docs"), [("test", 150), ("fewshot", 8)])
    def test_documents(self, name, split, n_docs):
        docs = read(f"kv_retrieval/{name}_{split}.jsonl")
        assert len(docs) == n_docs
        for doc in docs:
            n = {"4": 4, "8": 8, "16": 16, "uuid": 8}[name]
            assert len(set(doc["keys"])) == len(set(doc["values"])) == doc["n_pairs"] == n
            assert not set(doc["keys"]) & set(doc["values"])
            assert doc["key"] == doc["keys"][doc["position"]]
            assert dict(zip(doc["keys"], doc["values"], strict=True))[doc["key"]] == doc["answer"]

    def test_position_is_balanced_from_the_start(self, name):
        docs = read(f"kv_retrieval/{name}_test.jsonl")
        n = docs[0]["n_pairs"]
        for end in (50, 100, 150):
            counts = Counter(doc["position"] for doc in docs[:end])
            assert set(counts) == set(range(n)) and max(counts.values()) - min(counts.values()) <= 1

    def test_fewshot_is_disjoint(self, name):
        test = {tuple(doc["values"]) for doc in read(f"kv_retrieval/{name}_test.jsonl")}
        assert len(test) == 150
        assert not test & {tuple(doc["values"]) for doc in read(f"kv_retrieval/{name}_fewshot.jsonl")}


class TestWordProblems:
    DOCS = read("arithmetic/test.jsonl") + read("arithmetic/fewshot.jsonl")

    def test_counts(self):
        docs = read("arithmetic/test.jsonl")
        assert Counter(doc["n_steps"] for doc in docs) == {1: 100, 2: 100}
        assert len(read("arithmetic/fewshot.jsonl")) == 8
        assert len({doc["question"] for doc in self.DOCS}) == 208  # so few-shot and test are disjoint too

    def test_templates_are_varied(self):
        shapes = Counter(
            re.sub(r"\d+", "#", re.sub(r"<[^>]*>|\b[A-Z][a-z]+\b", "", doc["solution"])) for doc in self.DOCS
        )
        assert len(shapes) >= 20

    def test_every_step_is_right_and_leads_to_the_answer(self):
        for doc in self.DOCS:
            known = [int(number) for number in re.findall(r"\d+", doc["question"])]
            steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", doc["solution"])
            assert len(steps) == doc["n_steps"] == len(doc["solution"].splitlines())
            for left, sign, right, result in steps:
                assert int(left) in known and int(right) in known, doc
                assert OPERATIONS[sign](int(left), int(right)) == int(result), doc
                known.append(int(result))
            assert doc["answer"] == steps[-1][3]

    def test_all_stated_numbers_are_used(self):
        for doc in self.DOCS:
            used = {n for a, _, b, _ in re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", doc["solution"]) for n in (a, b)}
            assert set(re.findall(r"\d+", doc["question"])) <= used

    def test_copying_a_number_scores_nothing(self):
        assert not [doc for doc in self.DOCS if doc["answer"] in re.findall(r"\d+", doc["question"])]


class TestNumberChoices:
    DOCS = read("arithmetic/choice_test.jsonl")

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_problems_and_answers_are_those_of_the_written_tasks_in_order(self, split):
        choice, written = read(f"arithmetic/choice_{split}.jsonl"), read(f"arithmetic/{split}.jsonl")
        for a, b in zip(choice, written, strict=True):
            assert (a["question"], a["n_steps"]) == (b["question"], b["n_steps"])
            assert a["choices"][a["answer"]] == b["answer"]

    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_four_whole_numbers_that_the_problem_does_not_state(self, split):
        for doc in read(f"arithmetic/choice_{split}.jsonl"):
            numbers = {int(choice) for choice in doc["choices"]}
            assert len(numbers) == 4 and min(numbers) >= 2 and doc["choices"] == [str(int(c)) for c in doc["choices"]]
            assert not set(doc["choices"]) & set(re.findall(r"\d+", doc["question"]))

    def test_correct_position_is_balanced_from_the_start(self):
        places = [doc["answer"] for doc in self.DOCS]
        for start in range(0, len(places), 4):
            assert sorted(places[start : start + 4]) == [0, 1, 2, 3]

    def test_size_tells_nothing(self):
        """The correct option is as often the smallest as the largest, in any first part of the documents."""
        by_size = [sorted(map(int, d["choices"])).index(int(d["choices"][d["answer"]])) for d in self.DOCS]
        for end in (40, 100, 200):
            counts = Counter(by_size[:end])
            assert set(counts) == {0, 1, 2, 3} and max(counts.values()) - min(counts.values()) <= 2

    @pytest.mark.parametrize(
        "rule",
        [
            lambda numbers: [n for n in numbers if n % 2 == 0],
            lambda numbers: [n for n in numbers if n < 10],
            lambda numbers: [n for n in numbers if n >= 10],
            lambda numbers: [min(numbers, key=lambda n: sum(abs(n - other) for other in numbers))],
            lambda numbers: [n for n in numbers if any(abs(n - other) in (1, 10) for other in numbers)],
            lambda numbers: [n for n in numbers if not any(abs(n - other) in (1, 10) for other in numbers)],
        ],
        ids=["even", "one digit", "two digits", "in the middle of the others", "has a neighbour", "has none"],
    )
    def test_a_rule_that_does_not_read_the_problem_is_at_chance(self, rule):
        right = 0.0
        for doc in self.DOCS:
            numbers = [int(choice) for choice in doc["choices"]]
            picked = rule(numbers) or numbers
            right += (numbers[doc["answer"]] in picked) / len(picked)
        # three standard errors of guessing: sqrt(200 / 4 * 3 / 4)
        assert abs(right - 50) < 3 * 6.2

    def test_mistakes_come_first(self, generator):
        solution = "Ben has 3 * 4 = 12 eggs.\nBen keeps 12 - 5 = 7 eggs."
        found = list(generator.mistakes(solution))
        assert found[:2] == [7, 12]  # all steps, and the last one left out
        assert set(found[2:]) == {17, 60, 2}  # 12 + 5, 12 * 5; (3 + 4) - 5; 12 / 5 and (3 - 4) - 5 are no answers
        assert set(generator.near(3, generator.rng("any"))) == set(range(2, 16))


class TestOrganism:
    DOCS = read("organism/test.jsonl")

    def test_counts(self):
        assert len(self.DOCS) == 200
        shots = read("organism/fewshot.jsonl")
        assert len(shots) == 8
        assert len({doc["context"] for doc in [*self.DOCS, *shots]}) == 208

    def test_answers_follow_from_the_facts(self):
        for doc in self.DOCS:
            # a piece ends with SEP and its last two words are the fact; fillers stand before them or at the end
            facts = dict(piece.split()[-2:] for piece in doc["context"].split(" SEP")[:-1])
            assert len(facts) == 12
            assert facts[doc["key"]] == doc["one_hop"] and facts[doc["one_hop"]] == doc["two_hop"]
            starts = [word for word in facts if word not in facts.values()]
            assert doc["key"] in starts
            (other,) = (a for a in starts if facts[a] in doc["options"] and a != doc["key"])
            chains = {doc["one_hop"], doc["two_hop"], facts[other], facts[facts[other]]}
            assert chains == set(doc["options"])

    def test_words_stand_for_one_thing(self):
        known = set((DATA / "facts/organism_words.txt").read_text(encoding="utf-8").split())
        assert len(known) == 93
        for doc in self.DOCS:
            words = Counter(word for word in doc["context"].split() if word != "SEP")
            assert set(words) <= known
            assert Counter(words.values()) == {1: 12 + 8, 2: 6}  # starts, ends and fillers; middles

    def test_both_correct_positions_are_balanced_from_the_start(self):
        for answer in ("one_hop", "two_hop"):
            places = [doc["options"].index(doc[answer]) for doc in self.DOCS]
            for start in range(0, len(places), 4):
                assert sorted(places[start : start + 4]) == [0, 1, 2, 3]
        pairs = Counter((d["options"].index(d["one_hop"]), d["options"].index(d["two_hop"])) for d in self.DOCS)
        assert len(pairs) == 12 and max(pairs.values()) - min(pairs.values()) <= 2

    @pytest.mark.parametrize("name", ORGANISM)
    def test_prompt_and_score(self, tasks, name):
        task, control = tasks[name], "QA" if "one_hop" in name else "QB"
        field = "one_hop" if "one_hop" in name else "two_hop"
        for doc in list(task.task_docs)[:20]:
            assert task.fewshot_context(doc, 0) == f"{doc['context']} {control} {doc['key']}"
            if name.endswith("generative"):
                for word in doc["options"]:
                    assert written_score(task, doc, word) == {"none": float(word == doc[field])}
            else:
                assert task.doc_to_choice(doc) == doc["options"]
                for chosen, word in enumerate(doc["options"]):
                    results = [(-1.0 if i == chosen else -9.0, i == chosen) for i in range(4)]
                    assert task.process_results(doc, results) == {"acc": float(word == doc[field])}


@pytest.mark.slow
def test_groups_and_tags_do_not_collide_with_lm_eval():
    from lm_eval.tasks import TaskManager

    ours = TaskManager(include_path=str(TASKS), include_defaults=False)
    assert set(ours.all_subtasks) == set(N_DOCS)
    assert set(ours.all_groups) == set(GROUPS)
    for group, members in GROUPS.items():
        assert ours.task_index[group].cfg["task"] == members
    assert not set(ours.all_tasks) & set(TaskManager().all_tasks)


@pytest.mark.parametrize("name", N_DOCS)
class TestLoading:
    def test_settings(self, tasks, name):
        task = tasks[name]
        assert len(task.task_docs) == N_DOCS[name]
        assert task.config.metadata["version"] == (2.0 if name.startswith("arithmetic") else 1.0)
        assert task.config.test_split and task.config.fewshot_split
        assert task.config.num_fewshot != 0, "lm-eval lets nobody change a 0 in the YAML; leaving it out means 0"
        assert task.higher_is_better() and all(task.higher_is_better().values())
        assert set(task.aggregation()) == set(task.higher_is_better())
        comment = next(TASKS.glob(f"*/{name}.yaml")).read_text(encoding="utf-8")
        assert comment.startswith("# ")

    def test_chance_can_be_computed_from_the_document(self, tasks, name):
        for doc in tasks[name].task_docs:
            if name in CHOICE:
                assert len(doc["choices"]) == 4 and isinstance(doc["answer"], int)
            elif name in ORGANISM:
                assert len(set(doc["options"])) == 4 and {doc["one_hop"], doc["two_hop"]} < set(doc["options"])
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
        target = task.doc_to_choice(shot)[target] if name in CHOICE else target
        assert prefixes.pop().startswith(f"{task.doc_to_text(shot)} {target}\n\n")


BUS = (
    "Question: A bus starts with 18 people. At the first stop 6 people get off and 2 people get on. "
    "How many people are on the bus then?\nAnswer:"
)
CODES = "".join(
    f"The code of the {key} is {code}.\n"
    for key, code in [("pencil", 3058), ("mountain", 6661), ("road", 4486), ("grass", 9908)]
)
RENDERED = {
    "capitals_default": (
        "What is the capital of Bhutan?\nA. New Delhi\nB. Tashkent\nC. Malé\nD. Thimphu\nAnswer:",
        "D",
    ),
    "capitals_continuation": ("Q: What is the capital of Bhutan?\nA:", "Thimphu"),
    "capitals_generative": ("Q: What is the capital of Bhutan?\nA:", "Thimphu"),
    "capitals_open_book": (
        "The capital of Bhutan is Thimphu.\nThe capital of India is New Delhi.\nThe capital of the Maldives is Malé.\n"
        "The capital of Uzbekistan is Tashkent.\nQ: What is the capital of Bhutan?\nA:",
        "Thimphu",
    ),
    "elements_default": (
        "What is the chemical symbol of manganese?\nA. Mn\nB. Mo\nC. N\nD. Mt\nAnswer:",
        "A",
    ),
    "elements_continuation": ("Q: What is the chemical symbol of manganese?\nA:", "Mn"),
    "elements_generative": ("Q: What is the chemical symbol of manganese?\nA:", "Mn"),
    "kv_retrieval_4": (
        f"{CODES}\nQ: What is the code of the mountain?\nA: The code of the mountain is",
        "6661",
    ),
    "arithmetic_default": (BUS.replace("Answer:", "A. 14\nB. 25\nC. 24\nD. 26\nAnswer:"), "A"),
    "arithmetic_continuation": (BUS, "14"),
    "arithmetic_direct": (BUS, "14"),
    "arithmetic_cot": (
        BUS,
        "After people get off there are 18 - 6 = 12 people.\n"
        "After people get on there are 12 + 2 = 14 people.\n#### 14",
    ),
}


class TestRendering:
    @pytest.mark.parametrize("name", RENDERED)
    def test_prompt_and_target(self, tasks, name):
        task = tasks[name]
        doc = task.task_docs[0]
        target = task.doc_to_target(doc)
        if name in CHOICE:
            target = task.doc_to_choice(doc)[target]
        assert (task.fewshot_context(doc, 0), target) == RENDERED[name]

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

    @pytest.mark.parametrize("name", [*WRITTEN, *NAMED, "kv_retrieval_uuid", "arithmetic_direct"])
    def test_written_answer_of_every_document(self, tasks, name):
        task = tasks[name]
        docs = list(task.task_docs)
        for doc, other in zip(docs, docs[1:] + docs[:1], strict=True):
            assert set(written_score(task, doc, f" {task.doc_to_target(doc)}").values()) == {1.0}
            wrong = float(task.doc_to_target(other) == task.doc_to_target(doc))
            assert set(written_score(task, doc, f" {task.doc_to_target(other)}").values()) == {wrong}
            assert set(written_score(task, doc, "").values()) == {0.0}

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
        task = tasks["arithmetic_cot"]
        for doc in list(task.task_docs)[:40]:
            assert set(written_score(task, doc, " " + task.doc_to_target(doc)).values()) == {1.0}
