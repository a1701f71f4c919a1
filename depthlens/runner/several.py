"""The same notebooks on several models: a folder each, and one index over them.

Names, parameters and models are all checked before the first notebook runs, so that a mistake in the last of them costs
nothing. A notebook that fails on one model does not keep the others from running.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from depthlens import arguments
from depthlens.errors import UserError
from depthlens.models import sources
from depthlens.paths import writable_folder
from depthlens.progress import say
from depthlens.runner import execute, pages
from depthlens.runner.notebook_files import read_notebook, write_whole
from depthlens.runner.report import RunReport


@dataclass(frozen=True)
class SeveralReports:
    """What runs on several models did.

    Attributes:
        reports: By model; those of models that were reached.
    """

    reports: dict[str, RunReport]

    @property
    def errors(self) -> list[str]:
        """One line per notebook that failed, with its model."""
        return [f"{model}: {line}" for model, report in self.reports.items() for line in report.errors]

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, 1 where a notebook failed, else 0."""
        return max((report.exit_code for report in self.reports.values()), default=0)


def folder_name(model: str) -> str:
    """A model's name as that of a folder: ``Qwen/Qwen3-8B`` becomes ``Qwen--Qwen3-8B``, a path its last part."""
    name = Path(model).name if Path(model).exists() else model.replace("/", "--")
    return re.sub(r"[^\w.@=,+-]", "_", name)


def _checked(models: Sequence[str], parameters: Mapping[str, object] | None) -> tuple[Sequence[str], list[str]]:
    """Several models, each of which can be reached, and the folder of each."""
    models = arguments.names("models", models, "smollm2-135m")
    if "model" in (parameters or {}):
        raise UserError("the parameter model and several models: give one of them")
    folders = [folder_name(model) for model in models]
    if repeated := next((f for i, f in enumerate(folders) if f in folders[:i]), None):
        raise UserError(f"models: two of them would write to the folder {repeated!r}; run one of them apart")
    for model in models:
        sources.probe(sources.find(model))
    return models, folders


def run_models(
    names: Sequence[str] | str,
    models: Sequence[str],
    *,
    out: Path | str,
    profile: str | None = "demo",
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> SeveralReports:
    """Execute notebooks of the suite on each of some models.

    Args:
        names: See `depthlens.runner.execute.run`.
        models: Names of models; the value of every notebook's parameter ``model``.
        out: Folder with a folder for each model, and ``index.html`` over them.
        profile: See `depthlens.runner.execute.run`.
        parameters: The same, without ``model``.
        progress: The same.

    Raises:
        UserError: a model that does not exist, cannot be reached or is named twice; or see
            `depthlens.runner.execute.run`.
    """
    models, folders = _checked(models, parameters)
    arguments.check(out=out)
    out = Path(out)
    prepared = {
        model: execute.prepare(
            names, out=out / folder, profile=profile, parameters={**(parameters or {}), "model": model}
        )
        for model, folder in zip(models, folders, strict=True)
    }
    writable_folder(out)
    cards = [pages.Card(name=f"{folder}/index", question=model, status=pages.TO_COME)
             for model, folder in zip(models, folders, strict=True)]  # fmt: skip
    done: dict[str, RunReport] = {}
    for i, (model, run) in enumerate(prepared.items()):
        cards[i] = replace(cards[i], status=pages.RUNNING, has_page=True)
        _write(out, cards)
        if progress:
            say(f"[{i + 1}/{len(models)}] {model}", model=model)
        done[model] = execute.start(run, progress=progress)
        cards[i] = _card(cards[i], done[model])
        if done[model].exit_code == 130:
            cards[i + 1 :] = [replace(card, status="not run") for card in cards[i + 1 :]]
            break
        _write(out, cards)
    _write(out, cards)
    return SeveralReports(done)


def _card(card: pages.Card, report: RunReport) -> pages.Card:
    """The card of a model whose notebooks have run: what the one that opens its index found."""
    notebooks = {run.name: read_notebook(report.out / f"{run.name}.ipynb") for run in report.notebooks if run.seconds}
    if not notebooks:
        return replace(card, status="interrupted", detail="")
    first = next((nb for nb in notebooks.values() if any(map(pages.opens, nb.cells))), next(iter(notebooks.values())))
    found, details = pages.finding(first)
    bad = [run for run in report.notebooks if run.status != "ok"]
    return replace(
        card,
        status=bad[0].status if bad else "ok",
        finding=found,
        details=details,
        figure=pages.first_figure(first),
        error=bad[0].error if bad else None,
        seconds=sum(run.seconds or 0.0 for run in report.notebooks),
        profile=report.profile,
        finished=report.finished,
    )


def _write(out: Path, cards: Sequence[pages.Card]) -> None:
    finished = max((card.finished for card in cards if card.finished), default="")
    title = f"depthlens: {out.resolve().name}"
    write_whole(out / "index.html", pages.index_page(cards, title=title, subtitle=finished, of="model"))
