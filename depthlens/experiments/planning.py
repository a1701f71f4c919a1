"""What a sweep would cost, told before anything is computed.

The tasks are loaded, their documents are tokenised, and packs are cut as the sweep would cut them, so that the tokens
and operations are those of the run, less what the store already has.

Time here is from a rate that is tried for about two seconds, on the first documents of each kind of task under some of
the conditions (`depthlens.engine.counting`). How long texts are is tried with it: ablated models often write on
until they are stopped. Where trying would take longer, a text has the length of the task's reference answer; the table
says how many tokens are written at most. Time on a GPU is what the operations take at `SHARE` of its peak, as its
vendor states it for dense products in bfloat16.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack, cast

import pandas as pd

from depthlens import arguments
from depthlens.ablations import Condition, expand
from depthlens.engine.counting import Counted, CountingEngine
from depthlens.engine.engine import Engine
from depthlens.engine.references import Reference
from depthlens.errors import UserError
from depthlens.experiments.options import EvalOptions, load_tasks, refuse_workers, settled
from depthlens.experiments.views import references_of, tokens_of_prompts, views_of
from depthlens.models import loading, pairs
from depthlens.models.lens import Lens, one_thread
from depthlens.store.answer_cache import AnswerStore
from depthlens.tasks.prepared_task import Prepared

MEAN_TEXTS = 32  # that are run to time the means of a task
SHARE = 0.4  # of a GPU's peak
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense, bfloat16
COUNTS = ("rows", "known", "tokens", "unshared_tokens", "written_tokens", "most_written_tokens", "flops")


@dataclass(frozen=True)
class Plan:
    """What a sweep would cost.

    Attributes:
        table: One row a task: conditions (the baseline included), documents, rows (answers of a request under a
            condition that are to be computed), known (that the store has), tokens (read, shared ones once),
            unshared_tokens (of every request under every condition), written_tokens, most_written_tokens, flops.
        seconds: Time here; 0 where everything is known, NaN where it was not tried.
        peak_bytes: Memory of this process when most is in use; of a model on GPUs, of the one that holds most.
        store_bytes: What the answers add to the store.
        gpu_seconds: Time on GPUs, by name.
    """

    table: pd.DataFrame
    seconds: float
    peak_bytes: int
    store_bytes: int
    gpu_seconds: dict[str, float]

    def describe(self) -> list[str]:
        """The plan in sentences."""
        total = {name: int(self.table[name].sum()) for name in COUNTS}
        if not total["rows"]:
            return ["The store has every answer: nothing is computed."]
        known = f"; the store has {total['known']:,} more" if total["known"] else ""
        shared = total["unshared_tokens"] / max(1, total["tokens"])
        lines = [
            f"{total['rows']:,} rows{known}.",
            f"{_short(total['tokens'])} tokens are read ({shared:.0f}x fewer than one by one), and about "
            f"{_short(total['written_tokens'])} written (at most {_short(total['most_written_tokens'])}).",
            f"{_short(total['flops'])} floating point operations.",
            f"Here: about {_time(self.seconds)}, {self.peak_bytes / 2**30:.1f} GiB of memory, "
            f"{self.store_bytes / 2**20:.1f} MiB in the store.",
        ]
        on = ", ".join(f"{name} {_time(seconds)}" for name, seconds in self.gpu_seconds.items())
        return [*lines, f"On a GPU at {SHARE:.0%} of its peak: {on}."]

    def __repr__(self) -> str:
        return "\n".join([self.table.to_string(index=False), *self.describe()])


@one_thread
def plan(
    lens: Lens,
    tasks: str | Sequence[str] | dict[str, Any],
    ablate: str | Iterable[str | Condition],
    *,
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    measured: bool = True,
    **options: Unpack[EvalOptions],
) -> Plan:
    """What `depthlens.condition_sweep` with the same arguments would cost.

    Args:
        lens: A loaded model.
        tasks: See `depthlens.condition_sweep`.
        ablate: See `depthlens.condition_sweep`.
        donor: See `depthlens.condition_sweep`.
        resample_prompts: See `depthlens.condition_sweep`.
        measured: Try for two seconds how fast this machine is; else there is no time here.
        options: `EvalOptions`.

    Raises:
        UserError: for anything asked for that does not exist.
    """
    arguments.loaded(lens)
    lens.needs_weights("plan")
    chosen = settled(options)
    refuse_workers(chosen, "plan", "")
    conditions = expand(ablate, lens.dims)
    both = pairs.join_donor(lens, donor, conditions, chosen["backend"])
    answers = AnswerStore(chosen["store"], both)
    if not isinstance(tasks, dict) or not tasks:
        tasks = load_tasks(cast(Sequence[str], tasks), chosen)
    views = views_of(lens, tasks, chosen)
    prompts = tokens_of_prompts(lens, conditions, resample_prompts)
    references = references_of(lens, views, chosen, conditions, with_prompts=bool(prompts))
    rows, lines = [], []
    for view in views:
        reference = references.get(view.name)
        if measured and reference and reference.texts:
            lines.append({"seconds": _seconds_of_means(lens, reference), "store_bytes": 0})
        counted = Counted(measured=measured)
        asked = view.with_reference_answers() if isinstance(view, Prepared) else view
        for one in reference.with_prompts(prompts, conditions) if reference and prompts else [reference]:
            cache = answers.entry(view.name, backend=chosen["backend"], reference=one.keys if one else None)
            engine = Engine(both, backend=chosen["backend"], batch_tokens=chosen["batch_tokens"], cache=cache)
            asked.run(cast(Engine, CountingEngine(engine, counted)), conditions)
        counts = {name: sum(line[name] for line in counted.lines) for name in COUNTS}
        n_docs = len(cast(pd.DataFrame, view.asked))
        rows.append({"task": view.name, "conditions": len(conditions), "documents": n_docs, **counts})
        lines += counted.lines
    return _planned(pd.DataFrame(rows), lines)


def _seconds_of_means(lens: Lens, reference: Reference) -> float:
    """About how long the means of a reference take, from a few of its texts."""
    few = reference.texts[:: max(1, len(reference.texts) // MEAN_TEXTS)]
    began = time.monotonic()
    Reference(reference.name, few).measure(lens)
    tokens = [sum(len(prompt) + len(answer) for prompt, answer in texts) for texts in (reference.texts, few)]
    return (time.monotonic() - began) * tokens[0] / tokens[1]


def _planned(table: pd.DataFrame, lines: Sequence[Mapping[str, Any]]) -> Plan:
    """The plan of what was counted, a line for each call of an engine."""
    seconds = [line["seconds"] for line in lines]
    timed = [line for line in lines if line.get("flops") and line["seconds"]]
    rate = sum(line["flops"] for line in timed) / max(1e-9, sum(line["seconds"] for line in timed))
    # what is measured text by text is not counted in operations: it has those that this machine makes in that time
    total = sum(line["flops"] if "flops" in line else line["seconds"] * rate for line in lines)
    return Plan(
        table,
        seconds=float("nan") if None in seconds else sum(seconds),
        peak_bytes=max((line["peak_bytes"] for line in lines if "peak_bytes" in line), default=0),
        store_bytes=sum(line["store_bytes"] for line in lines),
        gpu_seconds={name: total / (SHARE * peak) for name, peak in PEAKS.items()},
    )


def run_plan(
    model: str,
    tasks: str | Sequence[str],
    ablate: str | Iterable[str | Condition],
    *,
    donor: str | Path | Lens | None = None,
    resample_prompts: Sequence[str] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    offload: str | None = None,
    remote: bool = False,
    **options: Unpack[EvalOptions],
) -> Plan:
    """`plan` of a model by name; see `depthlens.experiments.sweep.run_sweep`.

    Raises:
        UserError: for anything asked for that does not exist; a model on a server, whose time nobody here can tell.
    """
    refuse_remote(remote)
    loaded = load_tasks(cast(Sequence[str], tasks), settled(options))  # its errors come before the model is loaded
    lens = loading.load(model, dtype=dtype, device=device, quantize=quantize, offload=offload)
    return plan(lens, loaded, ablate, donor=donor, resample_prompts=resample_prompts, **options)


def refuse_remote(remote: bool) -> None:
    """Refuse to plan for a server."""
    if remote:
        raise UserError("plan: a server's time and memory cannot be told from here; leave remote out")


def _short(number: int | float) -> str:
    """A large number in few letters: ``1.2e6``."""
    for size, name in ((1e18, "e18"), (1e15, "e15"), (1e12, "e12"), (1e9, "e9"), (1e6, "e6"), (1e3, "e3")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:.0f}"


def _time(seconds: float) -> str:
    """A time in words."""
    for size, name in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {name}"
    return f"{seconds:.0f} seconds"
