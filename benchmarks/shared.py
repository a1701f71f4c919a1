"""What the benchmarks share: seconds of runs that alternate, their table, and processes of one thread each."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import pandas as pd
import torch

from depthlens.progress import Bar


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds that something takes, and what it gives."""
    start = time.perf_counter()
    found = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, found


def alternating(runs: Mapping[str, Callable[[], Any]], repeats: int) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Seconds of runs that take turns, one row a repeat, and what each of them gave last."""
    seconds, found = pd.DataFrame(index=range(repeats), columns=[*runs], dtype=float), {}
    for repeat in range(repeats):
        for name, run in runs.items():
            seconds.loc[repeat, name], found[name] = timed(run)
    return seconds, found


def show(title: str, seconds: pd.DataFrame, **more: Mapping[str, Any]) -> None:
    """Print a row for each run: its seconds, and the median over repeats of its ratio to the first."""
    ratio = seconds.div(seconds.iloc[:, 0], axis=0)
    columns = {"seconds": seconds.median(), "least": seconds.min(), "most": seconds.max(), "ratio": ratio.median()}
    table = pd.DataFrame(columns).join(pd.DataFrame(more))
    print(f"\n{title}\n{table.to_markdown(floatfmt='.3g')}", flush=True)


def in_processes(function: Callable[[Any], Any], cases: Sequence[Any], processes: int | None, chunk: int = 1) -> list:
    """What a function gives of every case; by default as many processes as cores."""
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")  # new processes read them
    with ProcessPoolExecutor(processes or os.cpu_count(), mp_context=get_context("spawn")) as executor:
        found = executor.map(function, cases, chunksize=chunk)
        return list(Bar(iterable=found, total=len(cases), desc=function.__name__, unit="case"))
