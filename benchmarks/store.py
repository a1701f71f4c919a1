"""What keeping answers costs a sweep that is computed, and what it saves one that is not.

Usage::

    python benchmarks/store.py [--repeats 5] [--documents 32]

The same sweeps without a store and into an empty one, alternating: all layers of the embedded model (the fast sweep of
the suite) and all heads of an organism, whose packs take so little that writing them shows most. Then once more, read.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from speed import spread, timed

import depthlens as dl


def compare(lens: Any, task: str, ablate: str, n_docs: int, repeats: int) -> None:
    def sweep(store: str | None) -> dl.Result:
        return dl.condition_sweep(lens, task, ablate, limit=n_docs, store=store, progress=False)

    sweep(None)  # warm
    without, into, read, size = [], [], [], 0
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder:
            seconds, plain = timed(lambda: sweep(None))
            without.append(seconds)
            seconds, kept = timed(lambda at=folder: sweep(at))
            into.append(seconds)
            seconds, again = timed(lambda at=folder: sweep(at))
            read.append(seconds)
            size = sum(p.stat().st_size for p in Path(folder).rglob("*.parquet"))
            assert plain.docs.equals(kept.docs) and plain.docs.equals(again.docs), "the documents differ"
    overhead = [b / a - 1 for a, b in zip(without, into, strict=True)]
    rows = kept.record["store"]["rows_computed"]
    times = ", ".join(
        f"{name} {statistics.median(of):.1f} s {spread(of)}"
        for name, of in (("without", without), ("into a store", into), ("read", read))
    )
    print(
        f"{task}, {ablate}, {n_docs} documents ({rows} rows, {size / 1000:.0f} kB): {times}; overhead "
        f"{statistics.median(overhead):+.1%} ({min(overhead):+.1%} to {max(overhead):+.1%}); same documents"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, default=32)
    args = parser.parse_args()
    compare(dl.load("smollm2-135m"), "capitals_continuation", "layers", args.documents, args.repeats)
    compare(dl.load("organism"), "organism_one_hop", "heads", args.documents, args.repeats)


if __name__ == "__main__":
    main()
