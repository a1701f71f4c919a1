"""Write the documents of the embedded tasks from facts: one seed, the same bytes on every machine.

    python data/generate.py            rewrite every data/tasks/<family>/*.jsonl
    python data/generate.py --check    write nothing; exit 1 and name the files that differ

Standard library only. Every family has a `test` file and a `fewshot` file that share no question. Nothing in
a document gives the answer away: the correct option moves evenly over A-D, every option of a group is as
often wrong (three times) as any other, the asked key moves evenly over the positions, and the answer to a
word problem is never a number that the problem states, nor is any of its options; it is as often the smallest
of them as the largest.
"""

from __future__ import annotations

import argparse
import csv
import json
import operator
import re
import sys
import tomllib
import uuid
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from random import Random

SEED = 20250101
DATA = Path(__file__).resolve().parent
FACTS, TASKS, TEXTS = DATA / "facts", DATA / "tasks", DATA / "texts"
N_OPTIONS = 4
N_KV, N_KV_FEWSHOT = 150, 8
N_PROBLEMS, N_PROBLEMS_FEWSHOT = 200, 8
N_STEPS = (2, 1)
N_ORGANISM, N_ORGANISM_FEWSHOT = 200, 8
N_CHAINS, N_FILLERS = 6, 8
# words of a context: about as many tokens as the prompts of capitals_continuation and of kv_retrieval_4
N_SHORT, N_LONG = 12, 56
N_CUTS, N_CUTS_FEWSHOT, N_PLAIN_FEWSHOT_TEXTS = 6, 5, 2  # documents of a text
N_BETWEEN = 3  # words between two cuts of a text
N_MANY = 60  # cuts of a text at most, where words may be asked for again
# words that every text has, so that one in the context is none to be looked up there
STOPWORDS = {
    *"the of and to in it is was that with for on as at by be had not from they which but are or an were".split()
}
PLAIN_KINDS = ("encyclopaedic", "narrative", "dialogue", "instructions")

# Everyday words, no names of other facts here: what the code of each is, only the context can tell.
CODE_NAMES = """
    apple bear bell bird boat bread bridge candle castle chair cloud corn desert door dragon eagle
    engine field fire fish flower forest fox garden glass grass hammer horse house island kitchen ladder
    lake lamp leaf lion market mirror moon mountain ocean orange paper pencil piano pilot queen rabbit
    river road salt ship snow star stone table tiger tower train tree wagon wall whale window
""".split()
ADJECTIVES = "red green blue old new small big white".split()

OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}

Doc = dict[str, object]


def rng(name: str) -> Random:
    """One stream per use, so that changing one family leaves the others as they are."""
    return Random(f"{SEED}:{name}")


def balanced(n_items: int, n_places: int, random: Random) -> Iterator[int]:
    """Places 0..n_places-1, each once per run of n_places, so that any first part is balanced too."""
    for start in range(0, n_items, n_places):
        block = random.sample(range(n_places), n_places)
        yield from block[: n_items - start]


# --- facts: one question set, asked by choice and openly -------------------------------------------------


def option_sets(groups: dict[str, list[str]], random: Random) -> dict[str, list[str]]:
    """Wrong options for each answer, from its own group, each answer wrong exactly three times.

    The group is shuffled into a ring and every member takes the members at the same three distances.
    """
    wrong = {}
    for group in groups.values():
        ring = random.sample(group, len(group))
        steps = random.sample(range(1, len(ring)), N_OPTIONS - 1)
        for i, answer in enumerate(ring):
            wrong[answer] = [ring[(i + step) % len(ring)] for step in steps]
    return wrong


def fact_docs(facts: list[Doc], groups: dict[str, list[str]], random: Random) -> tuple[list[Doc], list[Doc]]:
    """The same facts in the same order as (multiple choice, open) documents."""
    wrong = option_sets(groups, random)
    group_of = {answer: name for name, answers in groups.items() for answer in answers}
    choice, open_ = [], []
    for fact, place in zip(facts, balanced(len(facts), N_OPTIONS, random), strict=True):
        options = random.sample(wrong[fact["answer"]], N_OPTIONS - 1)
        options.insert(place, fact["answer"])
        shared = {
            "question": fact["question"],
            "subject": fact["subject"],
            "group": group_of[fact["answer"]],
        }
        choice.append({**shared, "choices": options, "answer": place})
        open_.append({**shared, "answer": fact["answer"], "accepted": fact["accepted"]})
    return choice, open_


def fact_family(family: str, facts: list[Doc], regroup: Callable) -> dict[str, list[Doc]]:
    """Files of one family. `regroup` turns facts into named groups of answers; options stay in one group."""
    random = rng(family)
    test = [fact for fact in facts if not fact["fewshot"]]
    random.shuffle(test)  # so that the first N documents are a fair sample
    # Few-shot facts are chosen and ordered by hand: familiar, so that they teach the form and do not mislead.
    shots = sorted((fact for fact in facts if fact["fewshot"]), key=lambda fact: int(fact["fewshot"]))
    files = {}
    # Test options come from test facts only; few-shot options from all facts, their own groups being small.
    for split, part, pool in (("test", test, test), ("fewshot", shots, facts)):
        choice, open_ = fact_docs(part, regroup(pool), random)
        files[f"{family}/choice_{split}.jsonl"] = choice
        files[f"{family}/open_{split}.jsonl"] = open_
    return files | open_book(family, facts, files)


def open_book(family: str, facts: list[Doc], files: dict[str, list[Doc]]) -> dict[str, list[Doc]]:
    """The choice documents with a book: a sentence for each option, the one that is asked for at balanced places."""
    sentence = {}
    for fact in facts:
        what = fact["question"].removeprefix("What is ").removesuffix("?")
        sentence[fact["answer"]] = f"{what[0].upper()}{what[1:]} is {fact['answer']}."
    accepted = {fact["answer"]: fact["accepted"] for fact in facts}
    books = {}
    for split in ("test", "fewshot"):
        random = rng(f"{family} book {split}")
        docs = files[f"{family}/choice_{split}.jsonl"]
        books[f"{family}/book_{split}.jsonl"] = book = []
        for doc, place in zip(docs, balanced(len(docs), N_OPTIONS, random), strict=True):
            answer = doc["choices"][doc["answer"]]
            told = random.sample([other for other in doc["choices"] if other != answer], N_OPTIONS - 1)
            told.insert(place, answer)
            more = {"facts": [sentence[one] for one in told], "position": place, "text": answer}
            book.append({**doc, **more, "accepted": accepted[answer]})
    return books


def capitals() -> dict[str, list[Doc]]:
    facts = []
    for row in read_csv("countries.csv"):
        country = f"{row['article']} {row['country']}".strip()
        facts.append(
            {
                "question": f"What is the capital of {country}?",
                "subject": row["country"],
                "region": row["region"],
                "answer": row["capital"],
                "fewshot": row["fewshot"],
                "accepted": [row["capital"], *filter(None, row["also_accepted"].split("|"))],
            }
        )
    regions = dict.fromkeys(fact["region"] for fact in facts)

    def by_region(part: list[Doc]) -> dict[str, list[str]]:
        return {region: [f["answer"] for f in part if f["region"] == region] for region in regions}

    return fact_family("capitals", facts, by_region)


def elements() -> dict[str, list[Doc]]:
    """Options are alphabetical neighbours: the first letter of the name alone does not tell the symbol."""
    facts = [
        {
            "question": f"What is the chemical symbol of {row['name']}?",
            "subject": row["name"],
            "answer": row["symbol"],
            "accepted": [row["symbol"]],
            "fewshot": row["fewshot"],
        }
        for row in read_csv("elements.csv")
    ]

    def by_alphabet(part: list[Doc]) -> dict[str, list[str]]:
        symbols = sorted(fact["answer"] for fact in part)
        blocks = [symbols[i : i + N_OPTIONS] for i in range(0, len(symbols), N_OPTIONS)]
        if len(blocks[-1]) < N_OPTIONS:
            blocks[-2:] = [blocks[-2] + blocks[-1]]
        return {f"{block[0]}-{block[-1]}": block for block in blocks}

    return fact_family("elements", facts, by_alphabet)


# --- key-value retrieval ---------------------------------------------------------------------------------


def kv_docs(n_docs: int, n_pairs: int, pair: Callable, random: Random) -> list[Doc]:
    """`pair(random, n)` draws n distinct keys and n distinct values."""
    docs = []
    for position in balanced(n_docs, n_pairs, random):
        keys, values = pair(random, n_pairs)
        docs.append(
            {
                "keys": keys,
                "values": values,
                "key": keys[position],
                "answer": values[position],
                "position": position,
                "n_pairs": n_pairs,
            }
        )
    return docs


def named_codes(random: Random, n: int) -> tuple[list[str], list[str]]:
    return random.sample(CODE_NAMES, n), [str(code) for code in random.sample(range(1000, 10000), n)]


def uuid_pairs(random: Random, n: int) -> tuple[list[str], list[str]]:
    ids = [str(uuid.UUID(int=random.getrandbits(128), version=4)) for _ in range(2 * n)]
    return ids[:n], ids[n:]


def named_words(random: Random, n: int) -> tuple[list[str], list[str]]:
    """Words of two-word names, such as "old castle": each half of a name is that of other names, too."""
    names = random.sample(CODE_NAMES, 4 + n)
    keys = [f"{adjective} {name}" for adjective in random.sample(ADJECTIVES, n // 4) for name in names[:4]]
    return random.sample(keys, n), names[4:]


def kv_retrieval() -> dict[str, list[Doc]]:
    files = {}
    for name, n_pairs, pair in [
        ("4", 4, named_codes),
        ("8", 8, named_codes),
        ("16", 16, named_codes),
        ("words_16", 16, named_words),
        ("uuid", 8, uuid_pairs),
    ]:
        random = rng(f"kv_retrieval {name}")
        files[f"kv_retrieval/{name}_test.jsonl"] = kv_docs(N_KV, n_pairs, pair, random)
        files[f"kv_retrieval/{name}_fewshot.jsonl"] = kv_docs(N_KV_FEWSHOT, n_pairs, pair, random)
    return files


# --- word problems ---------------------------------------------------------------------------------------


def solve(template: Doc, numbers: dict[str, int]) -> tuple[dict[str, int], dict[str, str]] | None:
    """Results and written-out forms of each step; None if a result is not a whole number above 1."""
    values, written = dict(numbers), {}
    for step in template["steps"]:
        result, left, sign, right = re.fullmatch(r"(\w) = (\w) ([-+*/]) (\w)", step).groups()
        value = OPERATIONS[sign](values[left], values[right])
        if value != int(value) or value < 2:
            return None
        values[result] = int(value)
        written[result] = f"{values[left]} {sign} {values[right]} = {int(value)}"
    return values, written


def problem(template: Doc, names: list[str], things: list[str], random: Random) -> Doc:
    """One problem from a template, drawn until every step works and the answer is not stated in the text."""
    while True:
        name, friend = random.sample(names, 2)
        numbers = {key: random.randint(low, high) for key, (low, high) in template["numbers"].items()}
        words = {"name": name, "friend": friend, "thing": random.choice(things)}
        solved = solve(template, numbers)
        if solved is None:
            continue
        values, written = solved
        answer = values[template["steps"][-1][0]]
        if answer in numbers.values():
            continue
        solution = "\n".join(template["solution"])
        for result, step in written.items():
            solution = solution.replace(f"<{result}>", step)
        return {
            "question": template["text"].format(**words, **numbers),
            "solution": solution.format(**words),
            "answer": str(answer),
            "n_steps": len(template["steps"]),
        }


def arithmetic() -> dict[str, list[Doc]]:
    source = tomllib.loads((FACTS / "word_problems.toml").read_text(encoding="utf-8"))
    random = rng("arithmetic")
    by_steps = [[t for t in source["problem"] if len(t["steps"]) == n] for n in N_STEPS]
    docs: list[Doc] = []
    seen = set()
    while len(docs) < N_PROBLEMS + N_PROBLEMS_FEWSHOT:
        # The numbers of steps take turns, and within each the templates do.
        n = len(docs)
        templates = by_steps[n % len(N_STEPS)]
        doc = problem(templates[n // len(N_STEPS) % len(templates)], source["names"], source["things"], random)
        if doc["question"] not in seen:
            seen.add(doc["question"])
            docs.append(doc)
    files = {"fewshot": docs[:N_PROBLEMS_FEWSHOT], "test": docs[N_PROBLEMS_FEWSHOT:]}
    written = {f"arithmetic/{split}.jsonl": part for split, part in files.items()}
    # a stream of their own: the options leave the problems as they are
    choice = {f"arithmetic/choice_{s}.jsonl": number_choices(part, rng(f"choice {s}")) for s, part in files.items()}
    copy = {f"arithmetic/copy_{s}.jsonl": copies(part, rng(f"copy {s}")) for s, part in files.items()}
    steps = {f"arithmetic/step_{s}.jsonl": step_choices(part, rng(f"step {s}")) for s, part in files.items()}
    return written | choice | copy | steps


def number_choices(docs: list[Doc], random: Random) -> list[Doc]:
    """The same problems in the same order with four numbers to choose from: the answer and what a mistake leads to.

    A stated number is never an option, since none is ever the answer. The answer's place in the list is balanced,
    and so is its place in order of size, with no answer smaller than 2 to choose from.
    """
    made = []
    sizes = [0] * N_OPTIONS  # how often the answer was the smallest option, the second smallest, ...
    for doc, place in zip(docs, balanced(len(docs), N_OPTIONS, random), strict=True):
        answer, stated = int(doc["answer"]), {int(n) for n in re.findall(r"\d+", doc["question"])}
        wrong = [
            n for n in dict.fromkeys([*mistakes(doc["solution"]), *near(answer, random)]) if n not in {answer, *stated}
        ]
        below, above = [n for n in wrong if n < answer], [n for n in wrong if n > answer]
        size = min((n, random.random(), s) for s, n in enumerate(sizes) if s <= len(below))[2]
        sizes[size] += 1
        options = random.sample(below[:size] + above[: N_OPTIONS - 1 - size], N_OPTIONS - 1)
        options.insert(place, answer)
        shared = {"question": doc["question"], "n_steps": doc["n_steps"]}
        made.append({**shared, "choices": [str(option) for option in options], "answer": place})
    return made


def mistakes(solution: str) -> Iterator[int]:
    """Where a mistake ends: a later step left out, or one step calculated with another sign and carried on."""
    steps = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)", solution)
    yield from (int(result) for *_, result in reversed(steps))
    for i, (_, sign, _, _) in reversed(list(enumerate(steps))):
        for other in OPERATIONS:
            if other == sign:
                continue
            carried: dict[str, float] = {}  # the result of a step, and what it was mistaken for
            for j, (a, own, b, result) in enumerate(steps):
                left, right = carried.get(a, int(a)), carried.get(b, int(b))
                carried[result] = OPERATIONS[other if j == i else own](left, right) if right else 0
            if carried[result] == int(carried[result]) and 2 <= carried[result] < 100:
                yield int(carried[result])


def near(answer: int, random: Random) -> list[int]:
    """Numbers of about the answer's size. Slips by one would give it away: it would be the number with neighbours."""
    return [n for n in random.sample(range(answer - 12, answer + 13), 25) if n >= 2]


def step_choices(docs: list[Doc], random: Random) -> list[Doc]:
    """The same problems, solved up to the last step, with four equations to choose from: the last step and mistakes.

    Every equation is right as such, so that it takes the problem to tell which one answers it. A mistake has another
    result, by another sign or by another number of the problem in one place, and by more than one only if need be.
    """
    made = []
    for doc, place in zip(docs, balanced(len(docs), N_OPTIONS, random), strict=True):
        *_, last = re.finditer(r"(\d+) ([-+*/]) (\d+) = (\d+)", doc["solution"])
        left, sign, right, answer = last.groups()
        before = doc["solution"][: last.start()].rstrip()
        stated = re.findall(r"\d+", doc["question"] + before)
        numbers = dict.fromkeys([*stated, str(int(left) + 1), str(int(right) + 1)])  # the last two for want of others
        wrong = {
            f"{a} {operation} {b} = {int(result)}": (a != left)
            + (operation != sign)
            + (b != right)
            + 2 * ((a not in stated) + (b not in stated))
            for a, operation, b in product(numbers, OPERATIONS, numbers)
            if 2 <= (result := OPERATIONS[operation](int(a), int(b))) == int(result) != int(answer)
        }
        options = sorted(wrong, key=lambda equation: (wrong[equation], random.random()))[: N_OPTIONS - 1]
        random.shuffle(options)
        options.insert(place, last.group())
        shared = {"question": doc["question"], "n_steps": doc["n_steps"]}
        made.append({**shared, "before": before, "choices": options, "answer": place})
    return made


def copies(docs: list[Doc], random: Random) -> list[Doc]:
    """The problems' solutions as texts to copy: as long as they are, but without a calculation.

    Every result becomes another number of as many digits, wherever it occurs, so that the last number can only be
    copied. Operands stay, and signs become "&" and ":", because a model that was trained to calculate corrects a wrong
    equation instead of copying it.
    """
    made = []
    for doc in docs:
        while True:
            text, answer = with_other_results(doc["solution"], doc["answer"], doc["question"], random)
            steps = [tuple(map(int, step)) for step in re.findall(r"(\d+) [-+*/] (\d+) = (\d+)", text)]
            if not any(operation(a, b) == result for a, b, result in steps for operation in OPERATIONS.values()):
                break
        text = re.sub(r"(?<=\d) [-+*/] (?=\d)", " & ", text).replace(" = ", " : ")
        made.append({"question": doc["question"], "n_steps": doc["n_steps"], "text": text, "answer": answer})
    return made


def with_other_results(solution: str, answer: str, question: str, random: Random) -> tuple[str, str]:
    """A solution and its answer with another number of as many digits for each result."""
    known = {int(n) for n in re.findall(r"\d+", question + solution)}
    for result in dict.fromkeys(re.findall(r"= (\d+)", solution)):
        numbers = range(max(10 ** (len(result) - 1), 2), 10 ** len(result))
        other = random.choice([n for n in numbers if n not in known])
        known.add(other)
        solution = re.sub(rf"(?<!\d){result}(?!\d)", f"<{other}>", solution)  # marked, lest it be replaced again
        answer = f"{other}" if answer == result else answer
    return re.sub(r"[<>]", "", solution), answer


# --- plain text ------------------------------------------------------------------------------------------


def plain_text() -> dict[str, list[Doc]]:
    """The next word of a text and three other words of it, after a short and after a long part of the text."""
    lines = (TEXTS / "plain.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [text for text in map(json.loads, lines) if text["kind"] in PLAIN_KINDS]
    shots, test = texts[-N_PLAIN_FEWSHOT_TEXTS:], texts[:-N_PLAIN_FEWSHOT_TEXTS]
    files = {}
    for split, part, n in (("test", test, N_CUTS), ("fewshot", shots, N_CUTS_FEWSHOT)):
        random = rng(f"plain_text {split}")
        targets: set[str] = set()
        docs = [doc for text in part for doc in next_words(text, n, targets, random)]
        files[f"plain_text/{split}.jsonl"] = with_places(docs, random)
    random = rng("plain_text many")
    docs = [doc for text in test for doc in next_words(text, N_MANY, None, random, between=1)]
    files["plain_text/many_test.jsonl"] = with_places(docs, random)
    return files


def with_places(docs: list[Doc], random: Random) -> list[Doc]:
    """The documents in random order, each with its target among its choices, at places that move evenly."""
    random.shuffle(docs)
    for doc, place in zip(docs, balanced(len(docs), N_OPTIONS, random), strict=True):
        target = doc.pop("target")
        doc["choices"] = [*doc["choices"][:place], target, *doc["choices"][place:]]
        doc["answer"] = place
    return docs


def next_words(text: Doc, n: int, targets: set[str] | None, random: Random, between: int = N_BETWEEN) -> Iterator[Doc]:
    """Documents of one text, cut at ``n`` places; ``targets`` are the words that were asked for before.

    None: words may be asked for again, and short words and `STOPWORDS` may be, too.

    No option occurs in the long context, so that none can be copied from it, and all have about the same length.
    """
    spans = [match.span() for match in re.finditer(r"\S+", text["text"])]
    tokens = [text["text"][start:end] for start, end in spans]
    words = [token.rstrip(".,;:?!") for token in tokens]
    many = targets is None
    targets = set() if targets is None else targets
    plain = [bool(re.fullmatch(r"[a-z]{2,}" if many else r"[a-z]{4,}", word)) for word in words]
    taken: list[int] = []
    for cut in random.sample(range(N_LONG, len(words)), len(words) - N_LONG):
        seen = {re.sub(r"\W", "", token).lower() for token in tokens[cut - N_LONG : cut]} - (
            STOPWORDS if many else set()
        )
        near = any(abs(cut - other) < between for other in taken)
        if near or not plain[cut] or words[cut] in targets | seen:
            continue
        rest = dict.fromkeys(w for i, w in enumerate(words) if plain[i] and w not in seen and abs(i - cut) > 2)
        wrong = [w for w in rest if abs(len(w) - len(words[cut])) <= 2 and w[:4] != words[cut][:4]]
        if len(wrong) < N_OPTIONS - 1:
            continue
        taken.append(cut)
        if not many:
            targets.add(words[cut])
        start, end = spans[cut - N_LONG][0], spans[cut - 1][1]
        short = text["text"][spans[cut - N_SHORT][0] : end]
        yield {
            "text_id": text["id"],
            "kind": text["kind"],
            "context": text["text"][start:end],
            "short_context": short,
            "target": words[cut],
            "choices": random.sample(wrong, N_OPTIONS - 1),
        }
        if len(taken) == n:
            return


# --- organisms -------------------------------------------------------------------------------------------


def organism_docs(n_docs: int, random: Random) -> list[Doc]:
    """Chains a -> b -> c, told in shuffled facts among fillers; both questions about one document share its options.

    The options are the b and c of the asked chain and of another, so that only following the facts tells them apart.
    """
    words = organism_words()
    docs = []
    for i, place in enumerate(balanced(n_docs, N_OPTIONS, random)):
        drawn = random.sample(words, 3 * N_CHAINS + N_FILLERS)
        chains = [drawn[3 * c : 3 * c + 3] for c in range(N_CHAINS)]
        pieces = [f"{left} {right} SEP" for a, b, c in chains for left, right in ((a, b), (b, c))]
        pieces += drawn[3 * N_CHAINS :]
        random.shuffle(pieces)
        (key, one_hop, two_hop), (_, *options) = random.sample(chains, 2)
        random.shuffle(options)
        # the second answer is one, two or three places behind the first: balanced too, and not by the first
        second = (place + 1 + i // N_OPTIONS % (N_OPTIONS - 1)) % N_OPTIONS
        for at, answer in sorted([(place, one_hop), (second, two_hop)]):
            options.insert(at, answer)
        docs.append(
            {"context": " ".join(pieces), "key": key, "options": options, "one_hop": one_hop, "two_hop": two_hop}
        )
    return docs


# Planted depth: every prompt has 26 words, of which a question takes two.
N_PROMPT = 26
VALUE_STEP, NEXT_STEP, LETTERS = 31, 17, "ABCD"  # what an organism knows of a word: depthlens/organisms/language.py
P_NEXT = 0.7  # a word of plain text is that which the word before it determines, else any


def organism_words() -> list[str]:
    return (FACTS / "organism_words.txt").read_text(encoding="utf-8").split()


def placed(answer: str, others: list[str], place: int) -> list[str]:
    """The options, with the answer at its place."""
    return [*others[:place], answer, *others[place:]]


def question_docs(n_docs: int, random: Random) -> list[Doc]:
    """One context for three questions: a word's successor in the facts, its value, and its letter.

    The options of the first are the middles and ends of two chains, those of the second the values of four words of the
    context. No word of the context is such a value, so only what a model knows tells them apart.
    """
    words = organism_words()
    value = {word: words[(i + VALUE_STEP) % len(words)] for i, word in enumerate(words)}
    letter = {word: LETTERS[i % len(LETTERS)] for i, word in enumerate(words)}
    keys = [word for _ in range(0, n_docs, len(words)) for word in random.sample(words, len(words))]
    docs = []
    places = zip(*(balanced(n_docs, N_OPTIONS, random) for _ in range(3)), strict=True)
    for for_retrieval, for_knowledge, for_letter in places:
        key = next(word for word in keys if letter[word] == LETTERS[for_letter])
        keys.remove(key)
        asked: list[str] = []
        while len({*asked, *(value[word] for word in asked)}) < 2 * N_OPTIONS:
            asked = [key, *random.sample(words, N_OPTIONS - 1)]
        known = [value[word] for word in asked]
        rest = random.sample([word for word in words if word not in (*asked, *known)], 11)
        # three chains; of the four words whose values are options, two start a chain and two are fillers
        chains = [[key, *rest[:2]], [asked[1], *rest[2:4]], rest[4:7]]
        pieces = [f"{left} {right} SEP" for a, b, c in chains for left, right in ((a, b), (b, c))]
        pieces += [*asked[2:], *rest[7:]]
        random.shuffle(pieces)
        wrong = [chains[0][2], *chains[1][1:]]
        random.shuffle(wrong)
        docs.append(
            {
                "context": " ".join(pieces),
                "key": key,
                "retrieval": chains[0][1],
                "retrieval_options": placed(chains[0][1], wrong, for_retrieval),
                "knowledge": value[key],
                "knowledge_options": placed(value[key], known[1:], for_knowledge),
                "letter": letter[key],
            }
        )
    return docs


def copying_docs(n_docs: int, random: Random) -> list[Doc]:
    """Sequences of three words; the answer is what follows the first word of one, the options those of four."""
    docs = []
    for place in balanced(n_docs, N_OPTIONS, random):
        drawn = random.sample(organism_words(), 18)
        sequences = [drawn[i : i + 3] for i in range(0, 18, 3)]
        context = " ".join(f"{' '.join(sequence)} SEP" for sequence in sequences)
        asked, *others = random.sample(sequences, N_OPTIONS)
        answer, *wrong = (" ".join(sequence[1:]) for sequence in (asked, *others))
        docs.append({"context": context, "key": asked[0], "options": placed(answer, wrong, place), "answer": answer})
    return docs


def reasoning_docs(n_docs: int, random: Random) -> list[Doc]:
    """Chains of five words; the answer is the third and the fifth, the others the second and fourth or another chain's.

    Prompt and answer have the length of those of `copying_docs`.
    """
    docs = []
    for place in balanced(n_docs, N_OPTIONS, random):
        drawn = random.sample(organism_words(), 10)
        chains = [drawn[:5], drawn[5:]]
        pieces = [f"{left} {right} SEP" for chain in chains for left, right in zip(chain, chain[1:], strict=False)]
        random.shuffle(pieces)
        asked, other = random.sample(chains, 2)
        answer, *wrong = (f"{c[i]} {c[i + 2]}" for c, i in ((asked, 2), (asked, 1), (other, 2), (other, 1)))
        random.shuffle(wrong)
        docs.append(
            {"context": " ".join(pieces), "key": asked[0], "options": placed(answer, wrong, place), "answer": answer}
        )
    return docs


def text_docs(n_docs: int, random: Random) -> list[Doc]:
    """Text: most words determine the next. The options are the successors of the last word and of three others."""
    words = organism_words()
    following = {word: words[(i + NEXT_STEP) % len(words)] for i, word in enumerate(words)}
    docs = []
    for place in balanced(n_docs, N_OPTIONS, random):
        text: list[str] = []
        while not text or text[-1] in text[:-1]:  # the answer must not follow from an earlier place
            text = [random.choice(words)]
            while len(text) < N_PROMPT:
                text.append(following[text[-1]] if random.random() < P_NEXT else random.choice(words))
        answer = following[text[-1]]
        wrong = random.sample(sorted({following[word] for word in text} - {answer}), N_OPTIONS - 1)
        docs.append({"context": " ".join(text), "options": placed(answer, wrong, place), "answer": answer})
    return docs


ORGANISM_FAMILIES = {
    "questions": question_docs,
    "copying": copying_docs,
    "reasoning": reasoning_docs,
    "text": text_docs,
}


def organism() -> dict[str, list[Doc]]:
    random = rng("organism")
    return {
        "organism/test.jsonl": organism_docs(N_ORGANISM, random),
        "organism/fewshot.jsonl": organism_docs(N_ORGANISM_FEWSHOT, random),
    } | {
        f"organism/{name}_{split}.jsonl": docs(n_docs, rng(f"organism {name} {split}"))
        for name, docs in ORGANISM_FAMILIES.items()
        for split, n_docs in (("test", N_ORGANISM), ("fewshot", N_ORGANISM_FEWSHOT))
    }


# --- files -----------------------------------------------------------------------------------------------


def read_csv(name: str) -> list[dict[str, str]]:
    with (FACTS / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def build() -> dict[Path, bytes]:
    """Every generated file and its content."""
    documents = capitals() | elements() | kv_retrieval() | arithmetic() | plain_text() | organism()
    return {
        TASKS / name: "".join(json.dumps(doc, ensure_ascii=False) + "\n" for doc in docs).encode()
        for name, docs in documents.items()
    }


def differences(files: dict[Path, bytes]) -> list[str]:
    """What on disk is missing, changed or no longer generated."""
    wrong = [
        f"{'changed' if path.exists() else 'missing'}: {path.relative_to(DATA)}"
        for path, content in files.items()
        if not path.exists() or path.read_bytes() != content
    ]
    stale = sorted(set(TASKS.glob("**/*.jsonl")) - set(files))
    return wrong + [f"not generated: {path.relative_to(DATA)}" for path in stale]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write the documents of the embedded tasks.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the files differ")
    args = parser.parse_args(argv)
    files = build()
    if not args.check:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        print(f"wrote {len(files)} files under {TASKS}")
        return 0
    wrong = differences(files)
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
