"""Error rates and power of the claims' tests, through the whole of each test, on simulated sweeps.

Usage::

    python benchmarks/claim_errors.py [--simulations 500] [--documents 60] [--claims C2,C5] [--worlds token,formats]
    python benchmarks/claim_errors.py --power [--simulations 200] [--worlds "parsed,between tasks"]

Every simulation draws the documents of all tasks, under four views and three few-shot seeds, and judges the claims
(`tests/made_claims.py` has the model; for C5 `tests/made_heads.py`, which chooses heads on documents and tests them on
others). Printed is a table of docs/methods.md: the share of simulations in which a claim is supported, and in which it
is contradicted. With ``--power`` every effect is as large as what matters: a pilot plans the number of documents, and
printed is the share of simulations with so many documents in which the part passes.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import made_heads  # noqa: E402
from made_claims import EARLY, FEW, FLAT, LATE, LAYERS, NONE, THIRD, parts, sweeps  # noqa: E402
from made_sweeps import N_LAYERS, result_of  # noqa: E402

from depthlens.analysis.recovery import transplant_recovery  # noqa: E402
from depthlens.claims.decision import Part  # noqa: E402
from depthlens.claims.distilled import recovered  # noqa: E402
from depthlens.claims.heads import specific_heads  # noqa: E402
from depthlens.claims.layers import HARMLESS_LOSS, SMALL_LOSS  # noqa: E402
from depthlens.claims.verdicts import combined  # noqa: E402
from depthlens.progress import bar  # noqa: E402

CLAIMS = ("C1", "C2", "C3", "C4", "C6", "C7")  # on layers; C5 has worlds of its own
DEEP = np.where(THIRD > 0, 0.5, 0.0)
HALF = np.where(LAYERS < 2, 0.9, np.where(LAYERS % 2, SMALL_LOSS, 0.0))
THREE_QUARTERS = np.where(LAYERS < 2, 0.9, np.where(LAYERS % 4 == 3, 2 * SMALL_LOSS, HARMLESS_LOSS))


def by_token(broken: np.ndarray, n: int = 3) -> dict[str, np.ndarray]:
    """Written texts have n chances to break."""
    long = 1 - (1 - broken) ** n
    return {"rest": broken, "reasoning": long, "copying": long}


# what is simulated, and the claims that are not true there
NULLS = {
    "nothing breaks": ({"broken": NONE}, ("C2", "C3", "C4", "C6", "C7")),
    "every layer breaks every task": ({"broken": FLAT}, CLAIMS),
    "late layers break every task": ({"broken": LATE}, CLAIMS),
    "early layers break every task": ({"broken": 0.5 * EARLY}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, late": ({"broken": by_token(0.4 * LATE)}, ("C2", "C3", "C4", "C6", "C7")),
    "by token, everywhere": ({"broken": by_token(0.4 * FLAT)}, ("C2", "C3", "C4", "C6", "C7")),
    "formats are lost in deep layers": ({"broken": FEW, "formats": DEEP}, ("C2", "C3", "C4", "C6")),
    "formats are lost, every layer breaks": ({"broken": FLAT, "formats": DEEP}, ("C2", "C3", "C4", "C6")),
    "half of the later layers cost 10%": ({"broken": HALF}, ("C1",)),
}


# of C5: heads do not matter, or matter for both tasks; "likeness" is the correlation of attribution with removal
NO_HEADS = {f"no head matters, likeness {r}": {"likeness": r} for r in (0.3, 0.6, 1.0)}
NO_HEADS["heads matter for both tasks"] = {"effect": 5.0, "shared": True}


# of C6: what each of nine transplants of one layer recovers, of a gap of 0.5
NO_TRANSPLANT = {f"no transplant recovers anything, {p:.0%} of the answers change": {"change": p} for p in (0.0, 0.2)}
ONE_HELPS = {"share": 0.25, "change": 0.05}


def transplants(*, n: int, seed: list[int], share: float = 0.0, change: float = 0.0) -> Part:
    """C6's part on transplants: one recovers ``share``, all others nothing; a share of the answers turns either way."""
    rng = np.random.default_rng(seed)
    base, learns = rng.random(n) < 0.3, rng.random(n)
    donor = base | (learns < 0.5 / 0.7)
    values = {"baseline": (None, base)}
    for layer in range(N_LAYERS):
        moved = base | (donor & (rng.random(n) < share)) if layer == 4 else base
        turned = rng.random(n) < np.where(base, change * 0.7, change * 0.3)  # as many are lost as gained
        values[f"L{layer}@donor"] = None, moved ^ turned
    result, own = result_of(values), result_of({"baseline": (None, donor)}, model="donor")
    return recovered(transplant_recovery(result, own, seed=seed[0], n_boot=1000).table, N_LAYERS)


def _deep(first: float, later: float) -> np.ndarray:
    return np.where(LAYERS < 2, 0.0, np.where(THIRD == 0, first, later))


SEED_SD = 0.03  # few-shot seeds differ little: more documents would not lower what lies between seeds
# so noisy that the pilot is too small; of a pilot that suffices a number is printed only where it is unlucky
NOISY = {"base": 0.5, "fragility": 0.8}
ONE_LATER = np.where(LAYERS < 2, 0.9, np.where(LAYERS == 9, 0.25, 0.01))  # 0.2 less than half of the first tenth's 0.9
TASKS = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")
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


def asked(args: argparse.Namespace, world: str) -> bool:
    """Whether a world is to be simulated."""
    return any(part in world for part in args.worlds.split(","))


def heads(args: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    for name, world in NO_HEADS.items():
        if not asked(args, name):
            continue
        count: Counter[str] = Counter()
        for i in bar(iterable=range(args.simulations), desc=name, unit="simulation"):
            curve, scores = made_heads.evidence(seed=[i, args.documents], n=args.documents, **world)
            count[combined(specific_heads(curve, made_heads.TASKS, scores))] += 1
        rows += [
            {"world": name, "verdict": v, "n": args.documents, "C5": f"{count[v] / args.simulations:.1%}"}
            for v in ("supported", "contradicted")
        ]


def of_transplants(args: argparse.Namespace, rows: list[dict[str, object]]) -> None:
    for name, world in NO_TRANSPLANT.items():
        if asked(args, name):
            found = [transplants(n=args.documents, seed=[i, args.documents], **world) for i in range(args.simulations)]
            share = np.mean([part.verdict == "supported" for part in found])
            rows.append({"world": name, "verdict": "supported", "n": args.documents, "C6": f"{share:.1%}"})


def power(args: argparse.Namespace) -> None:
    rows = []
    for name, (claim, at, world) in TRUTHS.items():
        if claim not in args.claims.split(",") or not asked(args, name):
            continue

        def found(i: int, n: int, claim: str = claim, at: int = at, world: dict[str, object] = world) -> Part:
            if claim == "C5":
                curve, scores = made_heads.evidence(seed=[i, n, 1], n=n, **world)
                return specific_heads(curve, made_heads.TASKS, scores)[at]
            if claim == "C6" and at:
                return transplants(n=n, seed=[i, n, 1], **world)
            return parts(claim, sweeps(n=n, seed=[i, n, 1], seed_sd=SEED_SD, **world), seed=i, n_boot=args.draws)[at]

        plans, passed = [], []
        for i in bar(iterable=range(args.simulations), desc=name, unit="simulation"):
            if (n := found(i, args.documents).planned) and n > args.documents:  # else no number is printed
                plans.append(n)
                passed.append(found(args.simulations + i, n).passes)
        middle = f"{np.median(plans):.0f} ({np.quantile(plans, 0.1):.0f} to {np.quantile(plans, 0.9):.0f})"
        rows.append({"effect": name, "documents": middle, "power": f"{np.mean(passed):.0%}"})
        print(rows[-1], flush=True)
    print(pd.DataFrame(rows).to_markdown(index=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--simulations", type=int, default=500)
    parser.add_argument("--documents", type=int, default=60)
    parser.add_argument("--draws", type=int, default=400, help="bootstrap draws")
    parser.add_argument("--claims", default=",".join((*CLAIMS, "C5")))
    parser.add_argument("--worlds", default="", help="parts of the names of the worlds to simulate, comma-separated")
    parser.add_argument("--power", action="store_true", help="power at the planned number of documents")
    args = parser.parse_args()
    if args.power:
        return power(args)
    rows: list[dict[str, object]] = []
    for name, (world, false) in NULLS.items():
        if not asked(args, name):
            continue
        wanted = [claim for claim in args.claims.split(",") if claim in false]
        if not wanted:
            continue
        count: Counter[tuple[str, str]] = Counter()
        with bar(total=args.simulations, desc=name, unit="simulation") as progress:
            for i in range(args.simulations):
                of = sweeps(n=args.documents, seed=[i, args.documents], **world)
                for claim in wanted:
                    count[claim, combined(parts(claim, of, seed=i, n_boot=args.draws))] += 1
                progress.update(1)
        for verdict in ("supported", "contradicted"):
            row = {"world": name, "verdict": verdict, "n": args.documents}
            rows.append(row | {c: f"{count[c, verdict] / args.simulations:.1%}" for c in wanted})
        print(pd.DataFrame(rows[-2:]).fillna("").to_string(index=False), flush=True)
    if "C5" in args.claims.split(","):
        heads(args, rows)
    if "C6" in args.claims.split(","):
        of_transplants(args, rows)
    print(pd.DataFrame(rows).fillna("").to_markdown(index=False))


if __name__ == "__main__":
    main()
