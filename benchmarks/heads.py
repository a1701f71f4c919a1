"""Speed of head sweeps and of the backends: same documents, one process, alternating, medians.

Usage::

    python benchmarks/heads.py [--repeats 3] [--documents 32] [--heads 5] [--attribution TASK]... [--backends]

- An exact sweep of all heads against lm-eval's ``hf`` model with a hook per head, timed on a few heads and scaled.
- ``--attribution``: attribution and integrated gradients of all heads against the exact sweep, without examples, the
  computation alone (no set-up of the task), and how well they rank the heads.
- ``--backends``: TransformerLens, nnsight and plain torch rows against the fast path.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from speed import Likelihoods, matmul_rate, spread, timed

import depthlens as dl
from depthlens.ablations import Condition, expand
from depthlens.analysis import agreement
from depthlens.analysis.rank_correlations import in_words
from depthlens.engine.engine import Engine
from depthlens.experiments.attribution import GROUPS, STEPS, attribute
from depthlens.tasks import harness
from depthlens.tasks.measures import Answers

TASK = "capitals_continuation"


class HeadLoop(Likelihoods):
    """lm-eval's ``hf`` model under the hook of a user who zeroes one head."""

    def run_head(self, condition: Condition) -> list[float]:
        (ablation,) = condition.ablations
        d = self.lens.dims.d_head
        part = slice(ablation.index * d, (ablation.index + 1) * d)

        def zero(module: Any, args: tuple) -> tuple:
            z = args[0].clone()
            z[..., part] = 0
            return (z,)

        handle = self.lens.arch.o_proj[ablation.layer].register_forward_pre_hook(zero)
        try:
            return self._hf(self.hf, self.batch_size)
        finally:
            handle.remove()


def against_lm_eval(lens: Any, n_docs: int, n_heads: int, repeats: int) -> None:
    prepared = harness.prepare(lens, harness.load_tasks([TASK]), limit=n_docs)[0]
    side, conditions = HeadLoop(lens, prepared), expand("heads", lens.dims)[1:]
    sample = [conditions[(i + 1) * len(conditions) // (n_heads + 1)] for i in range(n_heads)]
    engine = Engine(lens, progress=False)
    ours, theirs, note = [], [], ""
    for _ in range(repeats):
        seconds, answers = timed(lambda: prepared.run(engine, conditions))
        ours.append(seconds)
        seconds, found = timed(lambda: [side.run_head(c) for c in sample])
        theirs.append(seconds / len(sample) * len(conditions))
        notes = [side.compare(answers[conditions.index(c)], f) for c, f in zip(sample, found, strict=True)]
        note = max(notes, key=lambda text: float(text.split()[2]))
    ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
    print(
        f"{TASK}, {len(prepared.docs)} documents, {len(conditions)} heads: ours {statistics.median(ours):.1f} s "
        f"{spread(ours)}\n  against lm-eval hf, batch {side.batch_size}: {ratio:.1f}x {spread(theirs)}; {note}",
        flush=True,
    )


def against_exact(lens: Any, task: str, n_docs: int, repeats: int) -> None:
    prepared = harness.prepare(lens, harness.load_tasks([task], num_fewshot=0), limit=n_docs)[0]
    view, conditions = Answers(prepared), expand("heads", lens.dims)
    engine = Engine(lens, progress=False)
    exact: list[float] = []
    estimated: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(repeats):
        exact.append(timed(lambda: view.run(engine, conditions))[0])
        for name, steps in STEPS.items():
            estimated[name].append(timed(lambda steps=steps: attribute(lens, view.requests, steps=steps))[0])
    print(f"{task}, {len(view.requests)} documents: exact {statistics.median(exact):.1f} s {spread(exact)}", flush=True)
    options = {"limit": n_docs, "num_fewshot": 0, "measure": "answer_logprob", "store": None, "progress": False}
    removed = dl.head_sweep(lens, task, method="exact", **options)
    for name, seconds in estimated.items():
        ratio = statistics.median(e / a for e, a in zip(exact, seconds, strict=True))
        row = agreement.head_agreement(removed, dl.head_sweep(lens, task, method=name, **options)).table.iloc[0]
        print(
            f"  {name} {statistics.median(seconds):.2f} s {spread(seconds)}: {ratio:.1f}x; "
            f"{row.n_parts} heads: {in_words(row)}",
            flush=True,
        )
    by_heads = ", ".join(f"{n}: {n / (2 * GROUPS):.1f}x" for n in (lens.dims.n_heads, 16, 32, 64))
    print(f"  integrated gradients by heads in a layer, counting forward passes: {by_heads}", flush=True)


def backends(lens: Any, n_docs: int, repeats: int) -> None:
    prepared = harness.prepare(lens, harness.load_tasks([TASK], num_fewshot=0), limit=n_docs)[0]
    conditions = expand("layers", lens.dims)
    engines = {name: Engine(lens, backend=name, progress=False) for name in dl.backends.BACKENDS}
    engines["torch rows"] = Engine(lens, path="padded_rows", progress=False)
    seconds: dict[str, list[float]] = {}
    worst: dict[str, float] = {}

    for _ in range(repeats):
        runs = {name: (lambda e=e: prepared.run(e, conditions)) for name, e in engines.items()}
        wanted = None
        for name, run in runs.items():
            took, answers = timed(run)
            seconds.setdefault(name, []).append(took)
            flat = torch.tensor([[a.logprob for a in row] for row in answers])
            wanted = flat if wanted is None else wanted
            worst[name] = float((flat - wanted).abs().max())
    for name, found in seconds.items():
        ratio = statistics.median(f / o for f, o in zip(found, seconds["torch"], strict=True))
        print(
            f"{name}: {statistics.median(found):.1f} s {spread(found)}, {ratio:.1f} times; differs by {worst[name]:.1e}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--heads", type=int, default=5, help="heads that lm-eval runs; 0 leaves it out")
    parser.add_argument("--attribution", action="append", default=[], metavar="TASK")
    parser.add_argument("--backends", action="store_true")
    args = parser.parse_args()
    lens = dl.load("smollm2-135m")
    print(f"{lens}; {torch.get_num_threads()} threads; torch {torch.__version__}; matmul {matmul_rate():.0f} GFLOP/s")
    if args.heads:
        against_lm_eval(lens, args.documents, args.heads, args.repeats)
    for task in args.attribution:
        against_exact(lens, task, args.documents, args.repeats)
    if args.backends:
        backends(lens, min(args.documents, 8), args.repeats)


if __name__ == "__main__":
    main()
