"""What a second worker of Ray gains: the same sweep on one worker and on two, of one thread each, on one machine.

Usage::

    python benchmarks/ray_workers.py [--repeats 5] [--documents 32] [--workers 2] [--num-fewshot 0]

All layers of the embedded model, without a store. The workers hold the model before the time is taken, as they do in a
longer sweep. Both numbers of workers alternate; the same sweep in this process on one thread shows what Ray costs.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from speed import spread, timed

import depthlens as dl


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--documents", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--num-fewshot", type=int, default=0)
    parser.add_argument("--task", default="capitals_continuation")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lens = dl.load("smollm2-135m")

    def sweep(workers: int | None, limit: int) -> dl.Result:
        size = {} if workers is None else {"workers": workers, "worker_cpus": 1}
        options = {"limit": limit, "num_fewshot": args.num_fewshot, "store": None, "progress": False}
        return dl.layer_sweep(lens, args.task, **options, **size)

    times: dict[int | None, list[float]] = {None: [], 1: [], args.workers: []}
    for _ in range(args.repeats):
        for workers, seconds in times.items():
            sweep(workers, 4)  # the workers load the model
            took, result = timed(lambda workers=workers: sweep(workers, args.documents))
            seconds.append(took)
            if workers is None:
                alone = result
            else:
                assert alone.docs.drop(columns="value").equals(result.docs.drop(columns="value")), "predictions differ"
                off = (alone.docs["value"] - result.docs["value"]).abs().max()
                assert off < 1e-3, f"scores differ by {off}"
    gain = [one / several for one, several in zip(times[1], times[args.workers], strict=True)]
    cost = [one / here - 1 for one, here in zip(times[1], times[None], strict=True)]
    medians = ", ".join(
        f"{workers or 'no'} workers {statistics.median(seconds):.1f} s {spread(seconds)}"
        for workers, seconds in times.items()
    )
    print(
        f"{args.task} {args.num_fewshot}-shot, {args.documents} documents, layers: {medians}; {args.workers} workers "
        f"do {statistics.median(gain):.2f} ({min(gain):.2f} to {max(gain):.2f}) times the work of one; one worker "
        f"takes {statistics.median(cost):+.1%} of this process; all predictions equal, scores within {off:.1e}"
    )


if __name__ == "__main__":
    main()
