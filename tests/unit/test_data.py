"""The documents of the embedded tasks: generated as committed, balanced and right."""

from __future__ import annotations

import importlib.util
import json
import operator
import re
import subprocess
import sys
import unicodedata
from collections import Counter

import pytest
from embedded_data import (
    DATA,
    TASKS,
    facts,
    read,
)

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


def fold(text: str) -> str:
    """Independent of utils.normalise: letters only, without diacritics."""
    return "".join(c for c in unicodedata.normalize("NFKD", text).lower() if c.isascii() and c.isalpha())


@pytest.fixture(scope="module")
def generator():
    spec = importlib.util.spec_from_file_location("generate", DATA / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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


class TestCopies:
    @pytest.mark.parametrize("split", ["test", "fewshot"])
    def test_texts_are_as_long_as_the_solutions_and_nothing_can_be_calculated(self, split):
        for copy, doc in zip(read(f"arithmetic/copy_{split}.jsonl"), read(f"arithmetic/{split}.jsonl"), strict=True):
            assert (copy["question"], copy["n_steps"]) == (doc["question"], doc["n_steps"])
            assert len(copy["text"]) == len(doc["solution"]) and len(copy["answer"]) == len(doc["answer"])
            assert re.sub(r"\d", "#", copy["text"]) == re.sub(
                r"\d", "#", re.sub(r" [-+*/] (?=\d)", " & ", doc["solution"]).replace(" = ", " : ")
            )
            steps = re.findall(r"(\d+) & (\d+) : (\d+)", copy["text"])
            assert len(steps) == copy["n_steps"] and copy["answer"] == steps[-1][2]
            for a, b, result in steps:
                assert all(OPERATIONS[sign](int(a), int(b)) != int(result) for sign in OPERATIONS)
            # only the text has it, once
            assert not re.search(rf"(?<!\d){copy['answer']}(?!\d)", copy["question"])
            assert len(re.findall(rf"(?<!\d){copy['answer']}(?!\d)", copy["text"])) == 1


class TestPlainText:
    DOCS = [*read("plain_text/test.jsonl"), *read("plain_text/fewshot.jsonl")]

    def test_counts_and_no_target_twice(self):
        test = read("plain_text/test.jsonl")
        assert len(test) == 180 and len(self.DOCS) == 190
        assert len({doc["choices"][doc["answer"]] for doc in test}) == 180
        shots = {doc["text_id"] for doc in read("plain_text/fewshot.jsonl")}
        assert not shots & {doc["text_id"] for doc in test}

    def test_the_target_follows_and_no_option_is_in_the_prompt(self):
        texts = {t["id"]: t["text"] for t in map(json.loads, (DATA / "texts/plain.jsonl").read_text().splitlines())}
        for doc in self.DOCS:
            text, target = texts[doc["text_id"]], doc["choices"][doc["answer"]]
            assert re.search(re.escape(doc["context"]) + r"\s" + target + r"\b", text)
            assert doc["context"].endswith(doc["short_context"])
            assert (len(doc["context"].split()), len(doc["short_context"].split())) == (56, 12)
            words = set(re.findall(r"[a-z]+", doc["context"].lower()))
            assert len(set(doc["choices"])) == 4 and not set(doc["choices"]) & words
            for option in doc["choices"]:
                assert abs(len(option) - len(target)) <= 2 and re.search(rf"\b{option}\b", text)

    def test_correct_position_is_balanced_from_the_start(self):
        places = [doc["answer"] for doc in read("plain_text/test.jsonl")]
        for start in range(0, len(places), 4):
            assert sorted(places[start : start + 4]) == [0, 1, 2, 3]


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
