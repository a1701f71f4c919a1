"""Error rates and power of the claims' tests, through the whole of each test, on simulated sweeps.

Usage::

    python benchmarks/claim_errors.py [--simulations 500] [--documents 60] [--claims C2,C5] [--worlds token,formats]
    python benchmarks/claim_errors.py --power [--simulations 200] [--worlds "parsed,between tasks"]

Every simulation draws the documents of all tasks, under four views and three few-shot seeds, and judges the claims
(`tests/made_claims.py` has the model; for C5 heads are chosen on documents and tested on others). The views have the
same scores unless ``--alike`` says otherwise, so that none can disagree with the view that decides: views of real
models are neither the same nor independent.

Printed are two tables of docs/methods.md: the share of simulations in which a claim is supported, and in which it is
contradicted; and the share in which the deciding interval of each part alone is on the claimed side. A claim of several
parts has its largest error where one part is at its threshold and all others are true, and the second table says which
parts that is so for. With ``--power`` every effect is as large as what matters: a pilot plans the number of documents,
and printed is the share of simulations with so many documents in which the part passes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import made_claims  # noqa: E402
from made_claims import EARLY, FEW, FLAT, LATE, LAYERS, NONE, THIRD, parts, sweeps  # noqa: E402
from made_results import N_LAYERS, result_of  # noqa: E402

from depthlens.analysis.layer_profiles import Profile  # noqa: E402
from depthlens.analysis.recovery import transplant_recovery  # noqa: E402
from depthlens.claims.decision import CONTRADICTED, SUPPORTED, Part  # noqa: E402
from depthlens.claims.distilled import recovered  # noqa: E402
from depthlens.claims.estimates import Source, Sweeps  # noqa: E402
from depthlens.claims.heads import specific_heads  # noqa: E402
from depthlens.claims.layers import HARMLESS_LOSS, SMALL_LOSS  # noqa: E402
from depthlens.claims.verdicts import LETTERS, combined  # noqa: E402
from depthlens.errors import UserError  # noqa: E402
from depthlens.progress import Bar  # noqa: E402

Simulate = Callable[[Callable, str], Iterator]  # from what one simulation does and a world to what comes out
CHUNK = 5  # simulations that a process takes at a time
CLAIMS = ("C1", "C2", "C3", "C4", "C6", "C7")  # on layers; C5 has worlds of its own
SEED_SD_OF_NULLS = 0.15  # of `made_claims.sweeps`
DEEP = np.where(THIRD > 0, 0.5, 0.0)


def on_average(rate: np.ndarray | float) -> np.ndarray:
    """What breaks documents at this rate on average over few-shot seeds, whose latent scores differ."""
    return norm.cdf(norm.ppf(rate) * np.sqrt(1 + SEED_SD_OF_NULLS**2))


def by_thirds(first_two: float, first: float, middle: float, last: float) -> np.ndarray:
    """A rate for L0 and L1, for the rest of the first third, and for the other thirds. Shape [layer]."""
    return on_average(np.where(LAYERS < 2, first_two, np.array([first, middle, last])[THIRD]))


def by_token(broken: np.ndarray, n: int = 3) -> dict[str, np.ndarray]:
    """Written texts have n chances to break."""
    long = 1 - (1 - broken) ** n
    return {"rest": broken, "reasoning": long, "copying": long}


THREE_QUARTERS = np.where(LAYERS < 2, 0.9, np.where(LAYERS % 4 == 3, 2 * SMALL_LOSS, HARMLESS_LOSS))
HALF = on_average(np.where(LAYERS < 2, 0.9, np.where(LAYERS % 2, SMALL_LOSS, 0.0)))
RIVAL = on_average(np.where(LAYERS < 2, 0.9, np.where(LAYERS == 9, 0.45, 0.01)))
# the tasks of C7; the first, third and fifth lose by late layers what the others lose by early ones
TASKS = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")
DEEPER, SHALLOWER, EVEN = by_thirds(0.5, 0.1, 0.2, 0.3), by_thirds(0.5, 0.3, 0.2, 0.1), by_thirds(0.5, 0.2, 0.2, 0.2)
OPPOSITE = {"rest": EVEN} | {task: SHALLOWER if i % 2 else DEEPER for i, task in enumerate(TASKS)}
# the centre of mass of 4 layers of the first third and 12 later ones moves by 0.05 of depth
MOVED = {"rest": by_thirds(0.0, 0.2, 0.1, 0.1), "reasoning_choice": by_thirds(0.0, 0.1472, 0.1176, 0.1176)}

# what is simulated, and the claims that are not true there
NULLS = {
    "nothing breaks": ({"broken": NONE}, ("C2", "C3", "C4", "C6", "C7")),
    "every layer breaks every task": ({"broken": FLAT}, CLAIMS),
    "late layers break every task": ({"broken": LATE}, CLAIMS),
    "early layers break every task": ({"broken": 0.5 * EARLY}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, late": ({"broken": by_token(0.4 * LATE)}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, everywhere": ({"broken": by_token(0.4 * FLAT)}, ("C2", "C3", "C4", "C6", "C7")),
    # what loses its format in deep layers makes these cost more than early ones, so that C7 is not true either
    "formats are lost in deep layers": ({"broken": FEW, "formats": DEEP}, ("C2", "C3", "C4", "C6", "C7")),
    "formats are lost, every layer breaks": ({"broken": FLAT, "formats": DEEP}, ("C2", "C3", "C4", "C6", "C7")),
    "half of the tasks lose by late layers what the others lose by early ones": (
        {"broken": OPPOSITE},
        ("C2", "C3", "C4", "C7"),
    ),
    # so many documents that layers without a loss are shown to cost under 10%
    "half of the later layers cost 10%": ({"broken": HALF, "n": 200}, ("C1",)),
    "half of the later layers cost 10% of letters": ({"broken": {"rest": FEW, "letters": HALF}, "n": 200}, ("C1",)),
    "one later layer costs half as much as the first tenth": ({"broken": RIVAL, "n": 200}, ("C1",)),
    "reasoning moves by 0.05 of depth": ({"broken": MOVED}, ("C6",)),
}


# of C5: heads do not matter, or matter for both tasks; "likeness" is the correlation of attribution with removal
NO_HEADS = {f"no head matters, likeness {r}": {"likeness": r} for r in (0.3, 0.6, 1.0)}
NO_HEADS |= {
    "heads matter for retrieval, none for reasoning": {"effect": {"retrieval": 5.0, "reasoning": 0.0}},
    "heads matter for both tasks": {"effect": 5.0, "both": True},
    "by token, heads matter for both tasks": {"effect": 5.0, "both": True, "tokens": 3},
    "formats of solutions are lost with their heads": {"effect": {"retrieval": 5.0, "reasoning": 0.0}, "formats": 0.3},
}


def of_heads(seed: list[int], n: int, world: dict[str, object]) -> list[Part]:
    """C5's parts. All views and few-shot seeds have the same scores, so that none of them can disagree."""
    curve, scores = made_claims.evidence(seed=seed, n=n, **world)
    return [replace(part, others=()) for part in specific_heads([curve], made_claims.TASKS, scores)]


# of C6: what each of nine transplants of one layer recovers, of a gap of 0.5
NO_TRANSPLANT = {f"no transplant recovers anything, {p:.0%} of the answers change": {"change": p} for p in (0.0, 0.2)}
ONE_HELPS = {"share": 0.25, "change": 0.05}


def transplants(*, n: int, seed: list[int], share: float = 0.0, change: float = 0.0) -> Part:
    """C6's part on transplants: one recovers ``share``, all others nothing; a share of the answers turns either way."""
    rng = np.random.default_rng(seed)
    base, learns = rng.random(n) < 0.3, rng.random(n)
    donor = base | (learns < 0.5 / 0.7)
    values = {"baseline": base}
    for layer in range(N_LAYERS):
        moved = base | (donor & (rng.random(n) < share)) if layer == 4 else base
        turned = rng.random(n) < np.where(base, change * 0.7, change * 0.3)  # as many are lost as gained
        values[f"L{layer}@donor"] = moved ^ turned
    result, own = result_of(values), result_of({"baseline": donor}, model="donor")
    return recovered(transplant_recovery(result, own, seed=seed[0], n_boot=1000).table, N_LAYERS)


def _deep(first: float, later: float) -> np.ndarray:
    return np.where(LAYERS < 2, 0.0, np.where(THIRD == 0, first, later))


SEED_SD = 0.03  # few-shot seeds differ little: more documents would not lower what lies between seeds
# so noisy that the pilot is too small; of a pilot that suffices a number is printed only where it is unlucky
NOISY = {"base": 0.5, "fragility": 0.8}
ONE_LATER = np.where(LAYERS < 2, 0.9, np.where(LAYERS == 9, 0.25, 0.01))  # 0.2 less than half of the first tenth's 0.9
# claim, part, world: each true effect is as large as what matters
TRUTHS = {
    "C1: three of four later layers cost 1.5%": ("C1", 0, {"broken": THREE_QUARTERS}),
    "C1: the costliest later layer costs 0.2 less than half of the first tenth": ("C1", 1, {"broken": ONE_LATER}),
    "C2: written letters cost 0.1 more": (
        "C2",
        0,
        {"broken": {"rest": _deep(0, 0.05), "generation": _deep(0, 0.15)}, **NOISY},
    ),
    # 0.34: by simulation of 20,000 documents, since sturdy documents are parsed more often
    "C2: written letters that can be parsed cost 0.1 more": (
        "C2",
        1,
        {"broken": {"rest": _deep(0, 0.05), "generation": _deep(0, 0.34)}, **NOISY},
    ),
    # of 4 layers of the first third and 12 later ones, without L0 and L1
    "C3: the share is 0.15 larger": ("C3", 0, {"broken": {"rest": _deep(0.2, 0.1), "text": _deep(0.15, 0.15)}}),
    "C4: the share is 0.15 larger than for copying": (
        "C4",
        0,
        {
            "broken": {"rest": _deep(0.2, 0.1), **dict.fromkeys(("reasoning", "reasoning_choice"), _deep(0.15, 0.15))},
            **NOISY,
        },
    ),
    "C4: the share per token is 0.15 larger": (
        "C4",
        1,
        {"broken": {"rest": _deep(0.2, 0.1), "reasoning_tokens": _deep(0.15, 0.15)}},
    ),
    # so large that the lists that are chosen with the planned documents cost 0.1 on average
    "C5: a list costs 0.1 more than 3 times random heads": ("C5", 0, {"effect": 1.65}),
    "C5: lists cost 0.1 more on their own tasks": ("C5", 4, {"effect": 0.34}),
    "C6: the shift is 0.1": ("C6", 0, {"broken": {"rest": _deep(0.2, 0.1), "reasoning_choice": _deep(0.094, 0.135)}}),
    "C6: one transplant recovers 0.25": ("C6", 1, ONE_HELPS),
    "C7: late layers cost 0.1 less": ("C7", 0, {"broken": _deep(0.2, 0.1), **NOISY}),
    # the standard deviation of six values of 0.046 and -0.046 is 0.05
    "C7: the trend differs between tasks by 0.05": (
        "C7",
        1,
        {"broken": {"rest": _deep(0.2, 0.15)} | {t: _deep(0.2, 0.15 + 0.046 * (-1) ** i) for i, t in enumerate(TASKS)}},
    ),
}


def first_view(of: dict[str, Sweeps]) -> dict[str, Sweeps]:
    """The same sweeps with no other layers removed than those of the first view."""

    def only(sweep: Source, suffix: str) -> list[Profile]:
        if suffix:
            raise UserError(f"sweep layers{suffix}")
        return sweep(suffix)

    return {role: [partial(only, sweep) for sweep in by_seed] for role, by_seed in of.items()}


def of_layers(claim: str, of: dict[str, Sweeps], *, alike: float, seed: int, n_boot: int) -> list[Part]:
    """The parts of a claim on layers. Views of the same scores have the same effects, so one of them is computed."""
    if alike < 1:
        return parts(claim, of, seed=seed, n_boot=n_boot)
    found = parts(claim, first_view(of), seed=seed, n_boot=n_boot)
    return [replace(part, others=tuple(e for e in part.others if e.n)) for part in found]


def outcomes(i: int, *, name: str, args: argparse.Namespace) -> list[tuple[str, str, list[bool]]]:
    """One simulation of a world: each claim with its verdict, and whether each of its parts alone passes."""
    n, seed, found = args.documents, [i, args.documents], {}
    if name in NO_HEADS:
        found["C5"] = of_heads(seed, n, NO_HEADS[name])
    elif name in NO_TRANSPLANT:
        found["C6"] = [transplants(n=n, seed=seed, **NO_TRANSPLANT[name])]
    else:
        world, false = NULLS[name]
        of = sweeps(**{"n": n, "seed": seed, "alike": args.alike} | world)
        for claim in args.claims:
            if claim in false:
                found[claim] = of_layers(claim, of, alike=args.alike, seed=i, n_boot=args.draws)
    return [(claim, combined(of_claim), [part.passes for part in of_claim]) for claim, of_claim in found.items()]


def error_rates(args: argparse.Namespace, simulate: Simulate) -> None:
    """Print how often claims that are not true are supported or contradicted, and how often their parts pass."""
    false = {name: claims for name, (_, claims) in NULLS.items()}
    documents = {name: world["n"] for name, (world, _) in NULLS.items() if "n" in world}
    false |= dict.fromkeys(NO_HEADS, ("C5",)) | dict.fromkeys(NO_TRANSPLANT, ("C6",))
    verdicts: list[dict[str, object]] = []
    alone: list[dict[str, object]] = []
    for name, claims in false.items():
        if not asked(args, name) or not set(claims) & set(args.claims):
            continue
        count, passes = Counter(), Counter()
        for found in simulate(outcomes, name):
            for claim, verdict, of_parts in found:
                count[claim, verdict] += 1
                passes.update({(claim, part): passed for part, passed in zip(LETTERS, of_parts, strict=False)})
        of_world = dict.fromkeys(claim for claim, _ in count)
        for verdict in (SUPPORTED, CONTRADICTED):
            rates = {claim: f"{count[claim, verdict] / args.simulations:.1%}" for claim in of_world}
            n = documents.get(name, args.documents)
            verdicts.append({"world": name, "verdict": verdict, "n": n} | rates)
        for claim in of_world:
            rates = {part: f"{times / args.simulations:.1%}" for (of, part), times in passes.items() if of == claim}
            alone.append({"world": name, "claim": claim} | rates)
        print(pd.DataFrame(verdicts[-2:]).to_string(index=False), flush=True)
    for title, rows in (("Verdicts", verdicts), ("Parts that pass alone", alone)):
        print(f"\n{title}\n\n{pd.DataFrame(rows).fillna('').to_markdown(index=False)}")


def planned(i: int, *, name: str, args: argparse.Namespace) -> tuple[int, bool] | None:
    """The number of documents that a pilot plans, and whether the part passes with so many; None where none is printed.

    The power is that of the deciding interval, so that other views are left out.
    """
    claim, at, world = TRUTHS[name]

    def found(i: int, n: int) -> Part:
        seed = [i, n, 1]
        if claim == "C5":
            return of_heads(seed, n, world)[at]
        if claim == "C6" and at:
            return transplants(n=n, seed=seed, **world)
        of = first_view(sweeps(n=n, seed=seed, seed_sd=SEED_SD, **world))
        return parts(claim, of, seed=i, n_boot=args.draws)[at]

    if not (n := found(i, args.documents).planned) or n <= args.documents:
        return None
    return n, found(args.simulations + i, n).passes


def power(args: argparse.Namespace, simulate: Simulate) -> None:
    """Print how often a part passes with the number of documents that a pilot plans."""
    rows = []
    for name, (claim, *_) in TRUTHS.items():
        if claim not in args.claims or not asked(args, name):
            continue
        if not (printed := [found for found in simulate(planned, name) if found]):
            continue  # the pilots were large enough
        plans, passed = zip(*printed, strict=True)
        middle = f"{np.median(plans):.0f} ({np.quantile(plans, 0.1):.0f} to {np.quantile(plans, 0.9):.0f})"
        rows.append({"effect": name, "documents": middle, "power": f"{np.mean(passed):.0%}", "pilots": len(plans)})
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))


def asked(args: argparse.Namespace, world: str) -> bool:
    """Whether a world is to be simulated."""
    return any(part in world for part in args.worlds.split(","))


@contextmanager
def pool(args: argparse.Namespace) -> Iterator[Simulate]:
    """Simulations in several processes, each with one thread."""
    threads = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    os.environ |= dict.fromkeys(threads, "1")  # new processes read them as they import numpy
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as executor:

        def simulate(of: Callable, name: str) -> Iterator[object]:
            found = executor.map(partial(of, name=name, args=args), range(args.simulations), chunksize=CHUNK)
            return Bar(iterable=found, total=args.simulations, desc=name, unit="simulation")

        yield simulate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws")
    parser.add_argument("--claims", type=lambda text: text.split(","), default=[*CLAIMS, "C5"], help="e.g. C2,C5")
    parser.add_argument("--worlds", default="", help="parts of the names of the worlds to simulate, comma-separated")
    parser.add_argument("--alike", type=float, default=1.0, help="share of scores that all views have in common")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="each with one thread")
    parser.add_argument("--power", action="store_true", help="power at the planned number of documents")
    args = parser.parse_args()
    with pool(args) as simulate:
        (power if args.power else error_rates)(args, simulate)


if __name__ == "__main__":
    main()
