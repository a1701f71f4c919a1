"""Where the time of each row of the speed table goes, by kind of operation.

Run: ``python benchmarks/where_time_goes.py [--work NAME]... [--documents N]``. 10 minutes on two cores.

Each work of `speed.py` runs once to warm up, then plain for its time, then under torch's profiler for the shares of
its operations. Times of operations are those of the thread that calls them, which waits for the others. What is left
of the plain time is Python: the launching of operations, packing, scoring.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from speed import WORKS, prepared_work
from torch.profiler import ProfilerActivity, profile, record_function

from depthlens.ablations import expand
from depthlens.backends import row_edits
from depthlens.engine.engine import Engine

UNEMBEDDING = "unembedding"
KINDS = {  # kind: what its operations begin with
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "attention": ("aten::_scaled_dot_product", "aten::_flash", "aten::_softmax"),
    "memory moves": (
        "aten::copy_",
        "aten::cat",
        "aten::index",
        "aten::stack",
        "aten::clone",
        "aten::gather",
        "aten::fill",
    ),
}
OTHERS = "norms and other elementwise"


def shares(events: Any) -> dict[str, float]:
    """Seconds by kind of operation."""
    found = dict.fromkeys([*KINDS, UNEMBEDDING, OTHERS], 0.0)
    for event in events:
        inside, parent = False, event
        while parent is not None:
            inside |= parent.name == UNEMBEDDING
            parent = parent.cpu_parent
        kind = next((k for k, starts in KINDS.items() if event.name.startswith(starts)), OTHERS)
        if event.name != UNEMBEDDING or event.self_cpu_time_total:
            found[UNEMBEDDING if inside else kind] += event.self_cpu_time_total / 1e6
    return found


def main() -> None:
    """Print a row for each work."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", action="append", choices=[*WORKS])
    parser.add_argument("--documents", type=int, help="documents of each work; its own number without")
    options = parser.parse_args()
    chosen = options.work or [*WORKS]
    unembed = row_edits.unembed

    def marked(*args: Any, **kwargs: Any) -> Any:
        with record_function(UNEMBEDDING):
            return unembed(*args, **kwargs)

    row_edits.unembed = marked
    columns = [*KINDS, UNEMBEDDING, OTHERS, "Python"]
    print(f"| work | seconds | {' | '.join(columns)} |\n|---|---|{'---|' * len(columns)}")
    for name in chosen:
        if (work := prepared_work(name, options.documents)) is None:
            continue
        lens, prepared = work
        conditions = expand("layers", lens.dims)
        prepared.run(Engine(lens, progress=False), conditions)
        start = time.perf_counter()
        prepared.run(Engine(lens, progress=False), conditions)
        seconds = time.perf_counter() - start
        with profile(activities=[ProfilerActivity.CPU]) as run:
            prepared.run(Engine(lens, progress=False), conditions)
        found = shares(run.events())
        found["Python"] = max(0.0, seconds - sum(found.values()))
        print(
            f"| {name} | {seconds:.1f} | " + " | ".join(f"{found[c] / seconds:.0%}" for c in columns) + " |", flush=True
        )


if __name__ == "__main__":
    main()
