"""Simulations with known truth: how often claims, races and intervals of the package are wrong.

Usage::

    python benchmarks/simulations.py claims [--simulations 200] [--layers 12,24,32] [--documents 300] [--claims C2,C4]
    python benchmarks/simulations.py races [--sweeps 2000]
    python benchmarks/simulations.py coverage [SAMPLES]
    python benchmarks/simulations.py planted [--layers 30] [--seeds 1] [--claims C1,C5] [--processes 2]

**Claims.** Every simulation draws the documents of all tasks (`tests/made_claims.py`) and judges the claims by the
package's own code: tasks at chance are left out, documents are matched, lists of heads and transplants are chosen.
Printed is the table of docs/methods.md: for each world and claim the share of simulations in each state.

**Races** (`tests/simulated_races.py`). A sweep has 30 layers and 2,000 documents in random order. A race of it is
stopped at a time that the worst user would choose: at the first wrong decision if there ever is one. A decision is
wrong if it says *critical* of a layer whose true loss is 0 or less, or *spared* of one whose true loss is the margin or
more. The structures:

- ``none``: no layer changes anything (0.2% of documents flip either way);
- ``noise``: no layer costs anything, but a fifth of all documents flips, as often to right as to wrong;
- ``edge``: every layer costs exactly the margin;
- ``mixed``: ten layers cost nothing, ten exactly the margin, ten half of it to everything;
- ``nats``: losses in nats with a long tail, whose clipped mean is exactly 0 in 15 layers and the margin in the others;
- ``shared``: as ``mixed``, but the same documents are hard under every layer.

**Coverage** of the 95% intervals that the package prints (`tests/coverage_cases.py`): one row a case and the share of
samples of 30, 100 and 300 questions (or subjects) whose interval covers the truth. With 2,000 samples a share has a
standard error of 0.005.

**Planted**: states of the claims on organisms with planted depth, each claim where it holds and where it fails.
`tests/planted_depth.py` and `tests/planted_heads.py` say what is planted. The claims are judged by sweeps of the
organisms' own tasks. Printed is every part with its estimate and with what was planted, then how often each state came
out. C5 is judged on organisms of 6 layers. A claim that fails should be *smaller* or *reversed*. C5 fails where no few
heads carry retrieval, and where each list is said to belong to the other's task. C6 fails where the distilled model
reasons where its base does.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import typer

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests")]

import coverage_cases  # noqa: E402
import made_claims  # noqa: E402
import planted_depth  # noqa: E402
from made_claims import Task  # noqa: E402
from shared import in_processes  # noqa: E402
from simulated_races import MARGIN, binary, race  # noqa: E402

from depthlens.analysis.numbers.betting import CRITICAL, SPARED, UNDECIDED  # noqa: E402
from depthlens.claims.claims import CLAIMS  # noqa: E402
from depthlens.claims.parts import CONTROLLED, ROWS, STATES, Part, worst  # noqa: E402
from depthlens.claims.verdicts import judge  # noqa: E402

app = typer.Typer()
EVERY = ("C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8")
NOT_EARLY = ("C1", "C2", "C3", "C4", "C6", "C7", "C8")
DEPTH = ("C3", "C4", "C6")


def by_thirds(n_layers: int, first_two: float, first: float, middle: float, last: float) -> np.ndarray:
    """A number for L0 and L1, for the rest of the first third, and for the other thirds. Shape [layer]."""
    layers = np.arange(n_layers)
    return np.where(layers < 2, first_two, np.array([first, middle, last])[layers * 3 // n_layers])


# worlds where all tasks, models and layers are alike: no claim holds there in the study's own words either
ALIKE = (
    "no layer does anything", "every layer harms every task",
    "each question is asked three times, no layer does anything",
    "each question is asked three times, every layer harms", "20 subjects, every layer harms every task",
)  # fmt: skip


def nulls(n: int) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Worlds of models of n layers, and the claims that are false there."""
    none, flat = by_thirds(n, 0, 0, 0, 0), by_thirds(n, 0.6, 0.6, 0.6, 0.6)
    early, late = by_thirds(n, 3.0, 0.9, 0.3, 0.2), by_thirds(n, 0.2, 0.2, 0.6, 0.9)
    breaks = by_thirds(n, 0.6, 0.15, 0.15, 0.15)
    # every layer does the same to every task; the tasks differ in how easy they are, and so do the models
    easy = {"rest": 1.2, "continuation": 2.0, "retrieval": 2.2, "text": 0.6, "long_text": 0.7, "reasoning": 0.6}
    easy |= {"copying": 1.8, "reasoning_choice": 0.5}

    def unequal(**harm: Any) -> dict[str, Any]:
        control = {"rest": Task(**harm, margin=1.2), "reasoning_choice": Task(**harm, margin=0.0)}
        control["reasoning_choice"] = Task(**harm, margin=-0.3)
        return {"tasks": {name: Task(**harm, margin=margin) for name, margin in easy.items()}, "control": control}

    def same(task: Task, **written: Task) -> dict[str, Any]:
        return {"tasks": {"rest": task, **written}, "control": {"rest": task}}

    long = Task(none, 1 - (1 - by_thirds(n, 0.6, 0.02, 0.06, 0.1)) ** 3)
    by_token = {"reasoning": long, "copying": long}
    unread = {name: Task(flat, unread=by_thirds(n, 0, 0, 0.4, 0.4)) for name in ("generation", "reasoning", "copying")}
    third = by_thirds(n, 3.0, 0.9, 0.3, 0.3)
    return {
        "no layer does anything": (same(Task(none)), EVERY),
        "every layer harms every task": (same(Task(flat)), EVERY),
        "every layer breaks every task": (same(Task(none, breaks)), NOT_EARLY[1:]),
        "late layers harm every task": (same(Task(late)), NOT_EARLY),
        "early layers harm every task": (same(Task(early)), ("C2", *DEPTH)),
        "by token, late": (same(Task(none, by_thirds(n, 0.6, 0.02, 0.06, 0.1)), **by_token), ("C2", *DEPTH, "C7")),
        "formats are lost in deep layers": (same(Task(flat), **unread), (*DEPTH, "C7")),
        "unequal margins, every layer harms alike": (unequal(lowered=flat), (*DEPTH, "C7")),
        "unequal margins, the first third harms 3 times as much": (unequal(lowered=third), DEPTH),
        "unequal margins, L0 and L1 destroy": (
            unequal(lowered=by_thirds(n, 0, 0.6, 0.6, 0.6), destroyed=by_thirds(n, 0.9, 0, 0, 0)), (*DEPTH, "C7")),
        "unequal margins, the first third destroys": (
            unequal(lowered=by_thirds(n, 0, 0, 0.4, 0.4), destroyed=by_thirds(n, 0.9, 0.9, 0, 0)), DEPTH),
        "a broken chooser scores 0.35": (
            {"tasks": {"rest": Task(none, breaks, floor=0.35)}, "control": {"rest": Task(none, breaks, floor=0.35)}},
            NOT_EARLY[1:]),
        "each question is asked three times, no layer does anything": (same(Task(none)) | {"repeats": 3}, EVERY),
        "each question is asked three times, every layer harms": (same(Task(flat)) | {"repeats": 3}, EVERY),
        "20 subjects, every layer harms every task": (same(Task(flat)) | {"subjects": 20}, EVERY),
    }  # fmt: skip


def truths(n: int) -> dict[str, tuple[dict[str, Any], tuple[str, ...]]]:
    """Worlds of the study's size, and the claims that are true there.

    L0 and L1 cost 0.6, later layers 0.1 to 0.02 of a chosen answer and 0.5 to 0.2 of a written one.
    """
    chosen, written = by_thirds(n, 0.6, 0.1, 0.05, 0.02), by_thirds(n, 0.6, 0.5, 0.35, 0.2)
    early, flat = by_thirds(n, 0, 0.3, 0.1, 0.05), by_thirds(n, 0, 0.15, 0.15, 0.15)
    little = by_thirds(n, 0.6, 0.02, 0.01, 0.01)
    known = {"continuation": Task(early, little), "retrieval": Task(early, little)}
    texts = {"text": Task(flat), "long_text": Task(flat)}
    shallow = known | texts | {"rest": Task(0 * flat, chosen)}
    shallow |= {name: Task(0 * flat, written) for name in ("generation", "reasoning", "copying")}
    late = by_thirds(n, 0.6, 0.02, 0.2, 0.3)
    deep = shallow | {"reasoning_choice": Task(by_thirds(n, 0, 0.03, 0.2, 0.3), late)}
    deep |= {
        "reasoning": Task(0 * flat, by_thirds(n, 0.6, 0.05, 0.4, 0.5)),
        **dict.fromkeys(("generation", "letters"), Task(0 * flat, by_thirds(n, 0.6, 0.05, 0.4, 0.5))),
        "copying": Task(0 * flat, by_thirds(n, 0.6, 0.4, 0.2, 0.2)),
    }
    control = {"continuation": known["continuation"], "reasoning_choice": Task(early, little), "rest": Task(flat)}
    return {
        "shallow layers matter most, most of all to texts": ({"tasks": shallow}, ("C1", "C2", "C3", "C7")),
        "reasoning is deep": ({"tasks": deep, "control": control}, ("C4", "C6", "C8")),
    }


HEADS_FALSE = {
    "no head matters": {"cost": {}},
    "heads matter for retrieval, none for reasoning": {"cost": {"retrieval": 0.3}},
    "lists cost nothing, removing other heads helps": {"cost": {}, "others": -0.1},
}
HEADS_TRUE = {"heads matter for their own task": {"cost": {"retrieval": 0.6, "reasoning": 0.6}}}
TRANSPLANTS_FALSE = {f"transplants change {share:.0%} of the answers": {"change": share} for share in (0.0, 0.2)}
TRANSPLANTS_TRUE = {"one transplant recovers half of the gap": {"share": 0.5, "change": 0.05}}


def simulate(case: tuple[str, str, int, tuple[int, ...], int, tuple[str, ...]]) -> list[tuple[str, str, int, str]]:
    """The claims that are judged in one simulation, each with a row, and its state at a number of documents.

    Every look has the documents of the one before.
    """
    kind, name, n_layers, looks, seed, claims = case
    rng = np.random.default_rng([seed, n_layers, looks[-1]])
    if kind == "heads":
        parts = made_claims.head_parts(**(HEADS_FALSE | HEADS_TRUE)[name], n=looks[-1], rng=rng)
        return states("C5", looks[-1], parts)
    if kind == "transplants":
        parts = made_claims.transplants(**(TRANSPLANTS_FALSE | TRANSPLANTS_TRUE)[name], n=looks[-1], rng=rng)
        return states("C6", looks[-1], parts)
    world, of = (truths if kind == "true" else nulls)(n_layers)[name]
    every = made_claims.evidence(n=looks[-1], rng=rng, **world)
    # C6 has its transplants apart, and is here its shift alone
    judged = [claim for claim in CLAIMS if claim.id in of and claim.id in claims and claim.id != "C5"]
    found = []
    for n in looks:
        evidence = every.first(n * world.get("repeats", 1))
        for claim in judged:
            found += states(claim.id, n, [part for part in claim.of(evidence) if "not measured" not in part.main.why])
    return found


def states(claim: str, n: int, parts: list[Part]) -> list[tuple[str, str, int, str]]:
    """The state of either row."""
    rows = {row: [part for part in parts if part.question.row == row] for row in ROWS}
    return [(claim, row, n, worst(of).state) for row, of in rows.items() if of]


def table(
    simulations: int, layers: list[int], documents: Sequence[int], claims: tuple[str, ...], run: Any = map
) -> pd.DataFrame:
    """One row a world, number of layers, claim and row of it: how often it ever has each state, and when half have one.

    Columns: for each state the share of simulations that have it at any look; ``at`` with a number of documents, the
    share that is decided (not open) there.
    """
    worlds = {"null": nulls, "true": truths}
    kinds = [(kind, name, n) for kind, of in worlds.items() for n in layers for name in of(n)]
    kinds += [("heads", name, 0) for name in HEADS_FALSE | HEADS_TRUE]
    kinds += [("transplants", name, 0) for name in TRANSPLANTS_FALSE | TRANSPLANTS_TRUE]
    cases = [(*kind, tuple(documents), seed, claims) for kind in kinds for seed in range(simulations)]
    rows = [
        (*case[1:3], case[4], *judged)
        for case, found in zip(cases, run(simulate, cases), strict=True)
        for judged in found
    ]
    keys = ["world", "layers", "claim", "row"]
    found = pd.DataFrame(rows, columns=["world", "layers", "seed", "claim", "row", "n", "state"])
    found = found[found["claim"].isin(claims)].assign(**{state: found["state"] == state for state in STATES})
    ever = found.groupby([*keys, "seed"], sort=False)[[*STATES]].any().groupby(keys, sort=False).mean()
    decided = (1 - found.pivot_table("open", keys, "n", sort=False)).add_prefix("at ")
    shown = found.pivot_table("shown", keys, "n", sort=False).add_prefix("shown at ")
    return ever.join(decided).join(shown).reset_index()


@app.command("claims")
def print_claims(
    simulations: int = 200,
    layers: str = "12,24,32",
    documents: str = "25,50,100,200,400",
    claims: str = ",".join(EVERY),
    processes: int = 0,
) -> None:
    """Print the table."""
    run = partial(in_processes, processes=processes, chunk=10)
    layers_of, looks = ([int(n) for n in of.split(",")] for of in (layers, documents))
    found = table(simulations, layers_of, looks, tuple(claims.split(",")), run)
    print(found.round(3).to_markdown(index=False))


LAYERS, DOCUMENTS = 30, 2000
STRUCTURES = ("none", "noise", "edge", "mixed", "nats", "shared")


def population(mean: float) -> np.ndarray:
    """Losses in nats with a long tail, clipped, whose mean is exactly this."""
    rng = np.random.default_rng(1)
    raw = rng.exponential(1.5, 20000) * (rng.random(20000) < 0.2) - rng.exponential(0.2, 20000)
    inside = np.clip(raw, -0.8, 0.8)  # a shift leaves them between -1 and 1
    return inside - inside.mean() + mean


NATS = {mean: population(mean) for mean in (0.0, MARGIN)}


def sample(structure: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Losses of a sweep, shape [document, layer], and their true means."""
    third = LAYERS // 3
    if structure == "nats":
        mean = np.repeat([*NATS], LAYERS // 2)
        return np.stack([rng.choice(NATS[m], DOCUMENTS) for m in mean], 1), mean
    if structure in ("mixed", "shared"):
        mean = np.concatenate([np.zeros(third), np.full(third, MARGIN), np.linspace(MARGIN / 2, 0.6, third)])
        flips = np.maximum(mean + 0.02, 0.1)
    else:
        mean = np.full(LAYERS, MARGIN if structure == "edge" else 0.0)
        flips = np.full(LAYERS, 0.004 if structure == "none" else 0.2)
    return binary(rng, mean, flips, DOCUMENTS, shared=structure == "shared"), mean


def raced(structure: str, rng: np.random.Generator) -> tuple[bool, float, float]:
    """Whether any decision of a race is wrong, the share of layers decided, and the documents that a layer took."""
    losses, mean = sample(structure, rng)
    decided, n = race(losses)
    says = np.array(decided)
    # a mean is known to 1e-9
    wrong = ((says == CRITICAL) & (mean <= 1e-9)) | ((says == SPARED) & (mean >= MARGIN - 1e-9))
    return bool(wrong.any()), float((says != UNDECIDED).mean()), float(n.mean())


@app.command("races")
def print_races(sweeps: int = 2000) -> None:
    """Print the table."""
    rows = {}
    for structure in STRUCTURES:
        rng = np.random.default_rng(0)
        rows[structure] = np.mean([raced(structure, rng) for _ in range(sweeps)], axis=0)
    columns = ["sweeps with a wrong decision", "decided", "documents a layer, of 2,000"]
    print(pd.DataFrame.from_dict(rows, orient="index", columns=columns).to_markdown(floatfmt=".3g"))


@app.command("coverage")
def print_coverage(samples: int = typer.Argument(500)) -> None:
    """Print how often intervals cover the truth."""
    cases, sizes = coverage_cases.CASES, (30, 100, 300)
    found = {f"n = {n}": {case: coverage_cases.coverage(case, n, samples) for case in cases} for n in sizes}
    print(pd.DataFrame(found).to_markdown(floatfmt=".3f"))


HOLDS, FAILS, SWAPPED = "holds", "fails", "lists swapped"
COLUMNS = ["claim", "planted", "seed", "row", "part", "state", "effect", "ci_low", "ci_high", "n", "why", "minutes"]


def judged(case: tuple[str, str, int, int]) -> pd.DataFrame:
    """The parts of a claim on one organism."""
    claim, planted, seed, n_layers = case
    start, true = time.perf_counter(), planted == HOLDS
    if claim == "C5":
        import planted_heads  # slow to import

        evidence = planted_heads.evidence(true=planted != FAILS, seed=seed, swapped=planted == SWAPPED)
    else:
        evidence = planted_depth.evidence(claim, true=true, seed=seed, n_layers=n_layers)
    parts = judge(evidence, claims=claim).parts.query("view == 'decides'")
    parts = parts.assign(planted=planted, seed=seed, minutes=(time.perf_counter() - start) / 60)[[*COLUMNS, "worst"]]
    if claim in planted_depth.CLAIMS:
        parts = parts[parts["row"] == planted_depth.ROW.get(claim, CONTROLLED)].copy()
        name = planted_depth.organism(claim, true=true, seed=seed, n_layers=n_layers)
        parts["true effect"] = [part.main.effect for part in planted_depth.planted(name)[claim]]
    return parts


@app.command("planted")
def print_planted(
    layers: int = planted_depth.LAYERS, seeds: int = 1, claims: str = "C1,C2,C3,C4,C5,C6,C7", processes: int = 0
) -> None:
    """Print both tables."""
    kinds = [(claim, planted) for claim in claims.split(",") for planted in (HOLDS, FAILS)]
    kinds += [("C5", SWAPPED)] * ("C5" in claims)
    cases = [(*kind, seed, layers) for kind in kinds for seed in range(seeds)]
    found = pd.concat(in_processes(judged, cases, processes), ignore_index=True)
    print(found.drop(columns="worst").round(3).to_markdown(index=False))
    states_of = found[found["worst"]].value_counts(["claim", "planted", "state"], sort=False)
    print(states_of.rename("organisms").reset_index().to_markdown(index=False))


if __name__ == "__main__":
    app()
