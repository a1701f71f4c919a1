"""The sixteen artefacts that a review found in version 0.1, as scenarios that are put to both versions alike.

Usage::

    python benchmarks/artefacts.py [--only A1,A7]
    git worktree add /tmp/v01 4edc639
    python benchmarks/artefacts.py --code /tmp/v01

Every scenario draws data in which nothing of the kind claimed is true (in A8 a true effect), and gives them to the
functions of the version whose folder ``--code`` names (default: this checkout). A simulation of 10 to 1,000 draws
counts how often a false statement is made, or an interval covers the truth. Where a scenario is about an ability, such
as sparing the first token, the measured value is what the version answers. Printed is a table: artefact, criterion,
measured value and verdict. The exit status is 1 if a criterion is not met. Version 0.1 (commit 4edc639) meets none; see
benchmarks/README.md, "Artefacts of version 0.1".

The same scores stand for every view (first token spared, mean ablation) and, but for A11, for every few-shot seed, so
that a false statement of today's version has to be kept out by its test alone.
"""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from random import Random
from types import SimpleNamespace

import numpy as np
import pandas as pd

Check = tuple[str, str, bool]  # criterion, measured value, whether it is met
Rng = np.random.Generator
N_LAYERS, N_HEADS, TOP, DRAWS = 12, 16, 8, 40
THIRD = np.arange(N_LAYERS) * 3 // N_LAYERS
DEPTH = np.arange(N_LAYERS) / (N_LAYERS - 1)
N_BOOT = 200
ACCURACY = {"higher_is_better": True, "chance": 0.25}
NATS = {"higher_is_better": True, "chance": None}
OWN = {"retrieval": "kv", "reasoning": "sums"}  # the task of each list of heads


def old() -> bool:
    """Whether the code is that of version 0.1."""
    return find_spec("depthlens.claim_tests") is not None


def module(name: str, of_old: str = ""):
    """A module of depthlens, which may have another name in version 0.1."""
    return import_module(f"depthlens.{of_old or name if old() else name}")


def shares(once: Callable[[Rng], object], n: int, seed: int) -> np.ndarray:
    """Means of what a simulation returns over n draws."""
    return np.mean([once(np.random.default_rng([seed, i])) for i in range(n)], axis=0)


def at_most(what: str, share: float, limit: float = 0.05) -> Check:
    return f"{what}: at most {limit:.0%}", f"{share:.0%}", bool(share <= limit)


def at_least(what: str, share: float, limit: float) -> Check:
    return f"{what}: at least {limit:.0%}", f"{share:.0%}", bool(share >= limit)


def refusal(call: Callable[[], object]) -> str:
    """What is said where something cannot be done; "" if it can."""
    try:
        call()
    except Exception as error:  # noqa: BLE001 - the message is the measured value
        return str(error).partition(";")[0]
    return ""


# -- made-up results ------------------------------------------------------------------------------------------


@dataclass
class Table:
    """Scores [document] by condition of one task and metric."""

    task: str
    scores: dict[str, np.ndarray]
    metric: str = "acc"
    info: dict = field(default_factory=lambda: ACCURACY)
    written: bool = False
    parsed: dict[str, np.ndarray] | None = None
    questions: str = ""  # tasks with the same questions have the same name here; "": that of the task
    subjects: np.ndarray | None = None  # of a group of tasks, that of each document


def result(*tables: Table):
    """A result of the version at hand; 0.1 has no place for what was parsed, nor for what the documents are."""
    docs, asked, tasks = [], [], {}
    for t in tables:
        layer, head = zip(*(_part(name) for name in t.scores), strict=True)
        n = len(t.scores["baseline"])
        rows = {
            "model": "m", "task": t.task, "metric": t.metric, "condition": np.repeat(list(t.scores), n),
            "layer": pd.array(layer, dtype="Int64").repeat(n), "head": pd.array(head, dtype="Int64").repeat(n),
            "doc_id": np.tile(np.arange(n), len(layer)), "value": np.concatenate([*t.scores.values()]), "response": "",
        }  # fmt: skip
        if not old():
            rows["parsed"] = np.concatenate([*t.parsed.values()]) if t.parsed else True
        docs.append(pd.DataFrame(rows))
        identity = {"doc_hash": [f"{t.questions or t.task} {i}" for i in range(n)], "subtask": t.subjects}
        asked.append(pd.DataFrame({"task": t.task, "doc_id": range(n), "question": "?", "reference": "!", **identity}))
        output = "generate_until" if t.written else "multiple_choice"
        task = tasks.setdefault(t.task, {"version": 1, "num_fewshot": 0, "output_type": output, "metrics": {}})
        task["metrics"][t.metric] = t.info
    record = {"model": {"dims": {"n_layers": N_LAYERS, "n_heads": N_HEADS}}, "seed": 0, "tasks": tasks}
    questions = pd.concat(asked).drop_duplicates(["task", "doc_id"]).assign(choices=None)
    more = () if old() else (questions,)
    return module("analysis.results", "results").Result(pd.concat(docs, ignore_index=True), record, *more)


def _part(condition: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"L(\d+)(?:\.H(\d+)|\[1:\]|@mean)?", condition)
    return (int(match[1]), int(match[2]) if match[2] else None) if match else (None, None)


def by_layer(whole: np.ndarray, without: np.ndarray, *, plain: bool = False) -> dict[str, np.ndarray]:
    """Scores of a layer sweep [document, layer] by condition; today's has all views, a plain one has not."""
    views = ("",) if old() or plain else ("", "[1:]", "@mean")
    removed = {f"L{i}{view}": column for view in views for i, column in enumerate(without.T.astype(float))}
    return {"baseline": whole.astype(float), **removed}


def choice(task: str, rng: Rng, right: np.ndarray, hits: np.ndarray) -> Table:
    """Documents that a removal breaks [document, layer] are guessed among four options."""
    return Table(task, by_layer(right, np.where(hits, rng.random(hits.shape) < 0.25, right[:, None])))


def written(task: str, rng: Rng, right: np.ndarray, hits: np.ndarray, chance: float | None = None) -> Table:
    """Documents that a removal breaks are wrong, and mostly not to be read. Chance: the commonest answer's share."""
    unread = hits & (rng.random(hits.shape) < 0.7)
    info = {"higher_is_better": True, "chance": chance}
    parsed = {name: x.astype(bool) for name, x in by_layer(np.ones(len(right)), ~unread).items()}
    return Table(task, by_layer(right, right[:, None] & ~hits), "exact_match", info, True, parsed, "questions")


def tokens(task: str, rng: Rng, hits: np.ndarray) -> Table:
    """Log-likelihood of one token: a broken one costs a nat or so."""
    whole = -np.exp(0.5 * rng.standard_normal(len(hits)))
    cost = hits * np.exp(0.5 * rng.standard_normal(hits.shape))
    return Table(task, by_layer(whole, whole[:, None] - cost), "token_logprob", NATS)


def verdict(claim: str, **evidence: object) -> str:
    """The verdict on a claim; today's takes three few-shot seeds of every sweep."""
    judging = module("claims")
    if old():
        found = judging.judge(judging.Evidence(**evidence), n_boot=N_BOOT)
        return next(v for v in found if v.claim.id == claim).verdict
    sweeps = {name: [x] * 3 if hasattr(x, "docs") else x for name, x in evidence.items()}
    (found,) = judging.judge(judging.Evidence(**sweeps), claims=claim, n_boot=N_BOOT)
    return found.verdict


def removal_curve(rng: Rng, lost: dict[str, np.ndarray], lists: dict[str, list], *, able: bool | None = None):
    """The curve of lists of heads, from losses in nats by task [document, layer, head]; removals add up.

    0.1 measures nats or accuracy, and its head notebook took nats. Today's C5 takes both, so ``able`` says whether the
    model can do the tasks; None: no accuracy.
    """
    removal = module("experiments.head_removal", "removal")
    draw, random = drawing(), Random(int(rng.integers(2**31)))
    rivals = {name: [draw(x, N_HEADS, random) for _ in range(DRAWS)] for name, x in lists.items()}
    heads = [x for name in lists for x in (lists[name], *rivals[name])]
    tables = []
    for task, loss in lost.items():
        nats = {_removal(x): loss[:, [a for a, _ in x], [b for _, b in x]].sum(1) for x in heads}
        nats = {"baseline": np.zeros(len(loss)), **nats}
        hard = rng.standard_normal(len(loss))
        right = {name: hard + x / 8 < 1 if able else rng.random(len(loss)) < 0.25 for name, x in nats.items()}
        tables.append(Table(task, {name: -1 - x for name, x in nats.items()}, "answer_logprob", NATS))
        if not old() and able is not None:
            tables.append(Table(task, {name: x.astype(float) for name, x in right.items()}))
    made = result(*tables)
    record = made.record | {"k": [TOP], "n_draws": DRAWS, "lists": lists, "draws": rivals}
    if not old():
        record["n_lists"] = {name: removal.n_lists(x, [TOP], N_HEADS) for name, x in lists.items()}
    return removal._assemble(made, lists, rivals, [TOP], record)


def drawing() -> Callable:
    """What draws a random list of the same layers."""
    return module("removal").draw if old() else module("experiments.lists_of_heads").same_layers


def parser() -> Callable:
    """What reads the text of a condition."""
    return getattr(module("ablations"), "parse" if old() else "parse_condition")


def _removal(heads: list) -> str:
    parts = module("ablations")
    return str(parts.Condition(tuple(parts.Ablation(layer, site="head", index=head) for layer, head in heads)))


# -- the artefacts --------------------------------------------------------------------------------------------


def _heads(rng: Rng, *, reuse: bool, effect: float = 0.0, able: bool = True, n: int = 100) -> str:
    """The verdict on C5 for lists that attribution chose; of each document it equals the loss by removal."""
    lost, lists, chosen_by = {}, {}, {}
    for i, (name, task) in enumerate(OWN.items()):
        loss = rng.standard_normal((2 * n, N_LAYERS, N_HEADS)) * (1 + rng.exponential(size=(N_LAYERS, N_HEADS)))
        loss[:, :TOP, i] += effect
        lost[task], chooses = loss[:n], range(n) if reuse else range(n, 2 * n)
        mean = loss[list(chooses)].mean(0)
        best = np.argsort(-mean, axis=None)[:TOP]
        lists[name] = [(int(a), int(b)) for a, b in zip(*np.unravel_index(best, mean.shape), strict=True)]
        scores = module("analysis.head_scores", "head_scores").HeadScores
        record = {"tasks": [task], "samples": list(chooses)}
        chosen_by[name] = scores(name, "nats", mean, mean, mean, n, None, record)
    evidence = {} if old() else {"head_scores": chosen_by}
    return verdict("C5", heads=removal_curve(rng, lost, lists, able=able), head_tasks=OWN, **evidence)


def a1() -> list[Check]:
    """No head matters on average; the documents that test the heads have chosen them."""
    false = shares(lambda rng: _heads(rng, reuse=True) == "supported", 20, 1)
    return [at_most("C5 supported, heads chosen and tested on the same documents", false)]


def a2() -> list[Check]:
    """The same documents break under both protocols: one guesses a letter, the other writes nonsense."""

    def once(rng: Rng) -> bool:
        right, hits = rng.random(150) < 0.85, rng.random((150, N_LAYERS)) < np.where(THIRD > 0, 0.4, 0.1)
        chosen, wrote = result(choice("questions", rng, right, hits)), result(written("w", rng, right, hits, 0.25))
        return verdict("C2", **{"likelihood" if old() else "letters": chosen, "generation": wrote}) == "supported"

    return [at_most("C2 supported, the same documents broken under both protocols", shares(once, 20, 2))]


def a3() -> list[Check]:
    """Each token breaks alike for knowledge and reasoning; an answer has 1 token, a solution and its copy have 60."""

    def once(rng: Rng) -> bool:
        token = np.where(THIRD == 0, 0.3, 0.02)

        def drawn(rate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return rng.random(150) < 0.85, rng.random((150, N_LAYERS)) < rate

        facts = result(choice("facts", rng, *drawn(token)))
        sums = result(written("sums", rng, *drawn(1 - (1 - token) ** 60)))
        if old():
            return verdict("C4", knowledge=facts, reasoning=sums) == "supported"
        copies = result(written("copies", rng, *drawn(1 - (1 - token) ** 60)))
        short = result(choice("step", rng, *drawn(token)))
        nats = result(*(tokens(task, rng, drawn(token)[1]) for task in ("facts", "step")))
        controls = {"copying": copies, "reasoning_choice": short, "tokens": nats}
        return verdict("C4", continuation=facts, reasoning=sums, **controls) == "supported"

    return [at_most("C4 supported, equal damage per token", shares(once, 20, 3))]


def a4() -> list[Check]:
    """The model guesses; removing the lists lowers the likelihood of answers, which it does not find by itself."""
    judged = shares(lambda rng: _heads(rng, reuse=False, effect=5.0, able=False) != "cannot judge", 20, 4)
    return [at_most("C5 judged in nats, accuracy at chance", judged)]


def a5() -> list[Check]:
    """Two noisy layer profiles, with a known rank correlation, or as unrelated random walks over depth."""
    depth, n_layers = module("analysis.depth", "depth"), 30

    def agreement(rng: Rng, profiles: list[np.ndarray], noise: float):
        tables = []
        for name, profile in zip("ab", profiles, strict=True):
            loss = rng.exponential(size=(100, 1)) * profile + noise * rng.standard_normal((100, n_layers))
            scores = {"baseline": np.full(100, -1.0), **{f"L{i}": -1 - column for i, column in enumerate(loss.T)}}
            tables.append(Table(name, scores, "answer_logprob", NATS))
        found = depth.rank_agreement(result(*tables))
        return next((found if old() else found.table).itertuples())

    def covers(rng: Rng, rho: float) -> bool:
        pearson = 2 * np.sin(np.pi * rho / 6)
        a, b = rng.standard_normal((2, n_layers))
        b = pearson * a + np.sqrt(1 - pearson**2) * b
        truth = np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1]
        row = agreement(rng, [a, b], 3.0)
        return row.ci_low <= truth <= row.ci_high

    def related(rng: Rng) -> bool:
        row = agreement(rng, list(rng.standard_normal((2, n_layers)).cumsum(1)), 0.1)
        return row.ci_low > 0 or row.ci_high < 0 if old() else row.p_value <= 0.05

    return [
        *(at_least(f"interval of rho = {rho} covers", shares(lambda rng: covers(rng, rho), 100, 5), 0.93)  # noqa: B023
          for rho in (0.6, 0.9)),
        at_most("unrelated random walks called related", shares(related, 100, 50), 0.08),
    ]  # fmt: skip


def a6() -> list[Check]:
    """A list that costs equally much on two tasks; and blocks of layers each of which costs 20 of 100 answers."""

    def specific(rng: Rng) -> bool:
        heads, lost = [(layer, 0) for layer in range(TOP)], {}
        for task in OWN.values():
            loss = 2 * rng.standard_normal((60, N_LAYERS, N_HEADS))
            loss[:, :TOP, 0] += 0.2
            lost[task] = loss
        curve = removal_curve(rng, lost, {"list": heads})
        said = curve.specificity("kv") if old() else curve.describe(specific_to="kv")
        return any(line.endswith(": specific to kv.") for line in said)

    def sparable(rng: Rng) -> bool:
        right = rng.random(40) < 0.9
        names = [f"L{i}" if size == 1 else f"L{i}-{i + size - 1}" for size in (1, 2, 3) for i in range(9 - size)]
        scores = {name: (right & (rng.random(40) > 0.2 / 0.9)).astype(float) for name in names}
        made = result(Table("q", {"baseline": right.astype(float), **scores}))
        blocks = module("analysis.block_losses", "blocks")
        (line,) = blocks.block_findings(made) if old() else blocks.describe_blocks(made)
        return "**L" in line

    return [
        at_most("a list called specific to one of two tasks, equal costs on both", shares(specific, 200, 6)),
        at_most("a block named that can go, every block costs 20%", shares(sparable, 60, 60)),
    ]


def a7() -> list[Check]:
    """A list of one random head of a layer whose heads differ in cost, ranked among random lists."""

    def once(rng: Rng) -> bool:
        cost, own = rng.standard_cauchy(9), int(rng.integers(9))
        random, draw = Random(int(rng.integers(2**31))), drawing()
        worse = sum(cost[draw([(0, own)], 9, random)[0][1]] >= cost[own] for _ in range(DRAWS))
        return (1 + worse) / (1 + DRAWS) < 0.05

    return [at_most("p < 0.05 for a random list of one head", shares(once, 1000, 7), 0.06)]


def a8() -> list[Check]:
    """A true effect that is as large as what matters; a sample of the promised number of documents."""
    rule = module("claims.decision", "claim_parts")
    spec = rule.Spec("the effect", "units", 0.0, rule.ABOVE, 0.1, **({} if old() else {"main": None}))

    def part(values: np.ndarray):
        n, mean, se = len(values), values.mean(), values.std(ddof=1) / np.sqrt(len(values))
        half = 1.96 * se
        if old():
            return rule.Part(spec, mean, mean - half, mean + half, n)
        return rule.Part(spec, rule.Estimate("", mean, mean - half, mean + half, n, 3, se, critical=1.96))

    def once(rng: Rng) -> float:
        needed = part(0.1 + 0.6 * rng.standard_normal(50)).needed
        return np.nan if needed is None else part(0.1 + 0.6 * rng.standard_normal(needed)).verdict == "supported"

    found = np.nanmean([once(np.random.default_rng([8, i])) for i in range(1000)])
    return [at_least("a true effect supported with the promised number of documents", found, 0.75)]


def a9() -> list[Check]:
    """12 documents, 192 heads that cost nothing on average: many small losses and rare large gains."""

    def once(rng: Rng) -> bool:
        z = np.sqrt(0.4) * rng.standard_normal((1, 12)) + np.sqrt(0.6) * rng.standard_normal((N_LAYERS * N_HEADS, 12))
        loss = (np.exp(0.5) - np.exp(z)) * np.exp(0.7 * rng.standard_normal((len(z), 1)))
        whole = rng.normal(-3, 1, 12)
        scores = {f"L{i // N_HEADS}.H{i % N_HEADS}": whole - row for i, row in enumerate(loss)}
        table = Table("q", {"baseline": whole, **scores}, "answer_logprob", NATS | {"least": 0.05})
        return len(result(table).critical()) > 0

    return [at_most("a head called critical, none costs anything", shares(once, 60, 9))]


def a10() -> list[Check]:
    """Each layer costs 0.06; 0.1 are allowed, so that two layers are too many. Half of 80 documents judge."""
    experiment = module("experiments.block_removal", "blocks")
    sweeping = module("experiments.block_removal", "sweep")  # where it looks up what runs the model
    parse = parser()
    lens = SimpleNamespace(dims=SimpleNamespace(n_layers=8), tokenizer=None)

    def once(rng: Rng) -> tuple[bool, float]:
        whole = rng.normal(size=80)

        def condition_sweep(lens: object, task: str, conditions: list[str], **options: object):
            n_gone = {name: len(parse(name).ablations) for name in conditions}
            scores = {name: whole - 0.06 * n + 0.3 * rng.normal(size=80) for name, n in n_gone.items()}
            return result(Table("q", {"baseline": whole, **scores}, "score", NATS))

        real, sweeping.condition_sweep = sweeping.condition_sweep, condition_sweep
        try:
            found = experiment.greedy_removal(lens, "q", tolerance=0.1)
        finally:
            sweeping.condition_sweep = real
        last = found.steps[found.steps["within"]].iloc[-1]
        true = 0.06 * len(found.removed)
        within = len(found.removed) > 0 if old() else found.verdict == "within"
        return within and true > 0.1, true + last["delta"]

    false, better = shares(once, 80, 10)
    return [
        at_most("said to be within the tolerance, truly beyond", false),
        ("the loss that is judged is too small by at most 0.01", f"{better:.3f}", bool(better <= 0.01)),
    ]


def a11() -> list[Check]:
    """Documents of a subject are alike; few-shot seeds differ."""

    def covers(rng: Rng) -> bool:
        subject = np.repeat(np.arange(30), 10)
        rate = rng.choice([0.1, 0.5], 30)[subject]  # of documents that each layer breaks; 0.3 on average
        right, hits = rng.random(300) < 0.85, rng.random((300, N_LAYERS)) < rate[:, None]
        scores = by_layer(right, np.where(hits, rng.random(hits.shape) < 0.25, right[:, None]), plain=True)
        group = Table("group", scores, subjects=np.char.add("subject ", subject.astype(str)))
        table = module("analysis.depth", "depth").loss_by_third(result(group), n_boot=N_BOOT)
        return table["ci_low"][1] <= 0.3 <= table["ci_high"][1]

    def once(rng: Rng) -> bool:
        letters, generation = [], []
        for _ in range(1 if old() else 3):
            rates = np.clip(0.3 + 0.1 * rng.standard_normal(2), 0.02, 0.9)  # of the seed, for both protocols
            right = rng.random(100) < 0.85
            hits = [rng.random((100, N_LAYERS)) < rate for rate in rates]
            letters.append(result(choice("questions", rng, right, hits[0])))
            generation.append(result(written("w", rng, right, hits[1])))
        if old():
            return verdict("C2", likelihood=letters[0], generation=generation[0]) == "supported"
        return verdict("C2", letters=letters, generation=generation) == "supported"

    return [
        at_least("interval of a loss covers, 30 subjects of 10 documents", shares(covers, 100, 11), 0.93),
        at_most("C2 supported, protocols differ by few-shot seed alone", shares(once, 40, 110)),
    ]


def a12() -> list[Check]:
    """What ``@mean`` puts in place of a layer: by token, and over which texts."""
    lens, harness = import_module("depthlens").load("organism"), module("tasks.harness", "harness")
    name = "organism_one_hop"
    (task,) = harness.prepare(lens, harness.load_tasks([name], num_fewshot=2), limit=20)
    if old():
        reference = module("references").of_task(name, task.requests)
        prompts = reference.contexts
    else:
        reference = module("tasks.answer_logprob").reference_of(task)
        prompts = [prompt for prompt, _ in reference.texts]
    evaluated = {tuple(q.context) for q in task.requests}
    again = sum(tuple(prompt) in evaluated for prompt in prompts)
    mean = reference.measure(lens).layer
    vectors = 1 if mean.ndim == 2 else len({tuple(row.tolist()) for row in mean[2]})
    return [
        ("means differ by class of token (first, prompt, answer)", f"{vectors} vector(s) a layer", vectors == 3),
        ("no mean over evaluated prompts", f"{again} of {len(prompts)} texts are evaluated", again == 0),
    ]


def a13() -> list[Check]:
    """A text of one token does not change where the first token is spared, and a longer one does."""
    engine, parse = module("engine.engine", "engine").Engine, parser()
    criterion = "L2[1:] spares the first token's state"
    if said := refusal(lambda: parse("L2[1:]")):
        return [(criterion, f'refused: "{said}"', False)]
    ask = module("requests").LoglikelihoodRequest
    asked = [ask((5,), (6,)), ask((5, 7, 8, 9), (6,))]
    conditions = [parse(text) for text in ("baseline", "L2", "L2[1:]")]
    lens = import_module("depthlens").load("organism")
    answers = engine(lens, progress=False).loglikelihood(asked, conditions)
    (clean, longer), (gone, _), (spared, cut) = ([a.logprob for a in row] for row in answers)
    met = abs(spared - clean) < 1e-4 and abs(gone - clean) > 0.01 and abs(cut - longer) > 0.01
    said = f"first token alone: {spared - clean:+.3f} nats with L2[1:], {gone - clean:+.3f} with L2"
    return [(criterion, said, met)]


def a14() -> list[Check]:
    """Two tasks with other questions, numbered alike: their documents are drawn apart."""
    profiles = module("analysis.layer_profiles", "profiles")
    right = np.random.default_rng(14).random(200) < 0.7
    scores = {"baseline": right.astype(float), **{f"L{i}": np.zeros(200) for i in range(N_LAYERS)}}
    both = result(Table("gsm8k", scores), Table("mmlu", scores))
    drawn = [base[1:] for _, base in profiles.drawn(profiles.profiles(both), seed=0, n_boot=1000)]
    r = float(np.corrcoef(*drawn)[0, 1])
    return [("draws of two tasks with other questions correlate by at most 0.1", f"{r:.2f}", r <= 0.1)]


def a15() -> list[Check]:
    """Layers beyond the first third carry the format of the answer alone; the numbers stay right."""
    rng = np.random.default_rng(15)
    right, kept = rng.random(200) < 0.8, rng.random((200, N_LAYERS)) < np.where(THIRD > 0, 0.2, 1.0)
    values = {"strict-match": right[:, None] & kept, "flexible-extract": right[:, None] & np.ones_like(kept)}
    match = {"higher_is_better": True, "chance": None}
    tables = []
    for reading, without in values.items():
        tables.append(Table("gsm8k", by_layer(right, without, plain=True), f"exact_match,{reading}", match, True))
    made = result(*tables)
    used = module("depth").primary(made) if old() else made.primary()
    (profile,) = module("analysis.layer_profiles", "profiles").profiles(used)
    loss = float(profile.loss[:, THIRD > 0].mean())
    return [("a lost format costs nothing in reasoning", f"{loss:.2f} by {profile.metric}", loss == 0)]


def a16() -> list[Check]:
    """Every fine-tune moves the losses by 0.02 of depth, on every task; 0.05 is what matters."""
    kind = module("analysis.layer_profiles", "profiles").Profile
    layers = np.arange(N_LAYERS)

    def profile(rng: Rng, task: str, model: str, tilt: float, n: int = 2000, nats: bool = False):
        right = rng.random(n) < 0.85
        lost = rng.random((n, N_LAYERS)) < 0.3 * (1 + tilt * (DEPTH - 0.5))
        values = -1.0 - lost if nats else (right[:, None] & ~lost).astype(float)
        documents = tuple(range(n)) if old() else tuple(f"{task}:{i}" for i in range(n))
        base, floor = (-np.ones(n), None) if nats else (right.astype(float), 0.0)
        return kind(
            model, task, "answer_logprob" if nats else "acc", task, values, base, layers, documents, N_LAYERS, floor,
            not nats, False, 1.0,
        )  # fmt: skip

    def shift(rng: Rng, **options: object) -> str:
        """The verdict on C6's part on the losses."""
        tasks = ("sums", "facts")
        if old():
            one, two = (profile(rng, "sums", m, tilt, **options) for m, tilt in (("base", 0.0), ("distilled", 0.2)))
            return module("claim_tests").moved([one], [two], seed=0, n_boot=N_BOOT).verdict
        found = [profile(rng, task, model, 0.2, **options) for model in ("distilled", "control") for task in tasks]
        sweeps = [[lambda suffix, p=p: [p]] * 3 for p in found]
        return module("claims.distilled").shifted(*sweeps, seed=0, n_boot=N_BOOT).verdict

    said = refusal(lambda: module("claims").Evidence(control=None))
    return [
        at_most(
            "C6's shift supported, as small and the same for all", shares(lambda r: shift(r) == "supported", 30, 16)
        ),
        at_most("C6's shift judged in nats", shares(lambda r: shift(r, n=200, nats=True) != "cannot judge", 10, 160)),
        ("C6 takes a control fine-tune", f'refused: "{said}"' if said else "taken", not said),
    ]


ARTEFACTS = {f.__name__.upper(): f for f in (a1, a2, a3, a4, a5, a6, a7, a8, a9, a10, a11, a12, a13, a14, a15, a16)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--code", type=Path, default=Path(__file__).parents[1], help="folder of the version's checkout")
    parser.add_argument("--only", default=",".join(ARTEFACTS), help="comma-separated, e.g. A1,A7")
    args = parser.parse_args()
    code = args.code.resolve()
    sys.path.insert(0, str(code))
    import depthlens

    assert Path(depthlens.__file__).resolve().parents[1] == code, f"{depthlens.__file__} is not of {code}"
    warnings.simplefilter("ignore")  # tasks at chance are meant
    print(f"depthlens {depthlens.__version__}\n\n| artefact | criterion | measured | verdict |\n|---|---|---|---|")
    failed = 0
    for name in args.only.split(","):
        for criterion, measured, met in ARTEFACTS[name]():
            failed += not met
            print(f"| {name} | {criterion} | {measured} | {'passes' if met else 'FAILS'} |", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
