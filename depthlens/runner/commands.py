"""The commands ``claims``, ``compare``, ``answers`` and ``gallery``; nothing heavy is imported until one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from depthlens import arguments
from depthlens.errors import blaming
from depthlens.experiments.commands import with_options
from depthlens.progress import say

_FIXED = ("limit", "samples", "measure", "progress", "donor", "resample_prompts")  # claims choose these


@with_options(*(name for name in arguments.COMMANDS if name not in _FIXED))
def claims(
    model: str,
    *,
    out: str,
    base: str | None = None,
    control: str | None = None,
    tasks: str | None = None,
    only: str | None = None,
    minutes: float = 60.0,
    **options: Any,
) -> None:
    """Ask a model which of the study's claims hold for it, from as few documents as that takes.

    It stops when all claims are decided or the time is over. The same command goes on from there.

    Example: depthlens claims smollm2-135m-cot --base smollm2-135m --control smollm2-135m-direct --out runs/claims

    Args:
        model (MODEL): Short name (see `depthlens models`), Hugging Face id, folder or .gguf file.
        out (DIR): Folder for index.html, the table of all estimates (.parquet) and record.json.
        base (MODEL): What the model was distilled or fine-tuned from. [default: C6 is not judged]
        control (MODEL): What was fine-tuned from the same base, but not on reasoning.
        tasks (FILE): YAML file of tasks by role, such as ``letters: [mmlu]``. [default: the embedded tasks]
        only (C1,C2,...): Which claims. [default: all]
        minutes (X): The time after which no further sweep begins.
        options: Options of the models and of tasks.
    """
    import yaml

    from depthlens.models import names

    roles = None
    if tasks is not None:
        with blaming(
            f"--tasks {tasks!r} cannot be read", "give a YAML file of tasks by role", (OSError, yaml.YAMLError)
        ):
            roles = yaml.safe_load(Path(tasks).read_text(encoding="utf-8"))
    for name in filter(None, (model, base, control)):
        names.find(name)
    say(f"loading {', '.join(filter(None, (model, base, control)))}")
    from depthlens.claims.sweeps import ask, roles_of
    from depthlens.models.loading import load
    from depthlens.paths import writable_folder
    from depthlens.runner.finding_pages import write_verdicts

    folder = writable_folder(out)
    if roles is not None:
        roles_of(roles)
    loading = {name: options.pop(name) for name in arguments.LOADING}
    lens = load(model, **loading)
    start, other = (load(name, **loading) if name else None for name in (base, control))
    given = {name: value for name, value in options.items() if value is not None}
    chosen = only.split(",") if only else None
    found = ask(lens, base=start, control=other, tasks=roles, claims=chosen, minutes=minutes, **given)
    page = write_verdicts(found, folder)
    typer.echo("\n".join(found.describe()))
    typer.echo(f"\nWrote {page}")


def compare(
    runs: list[str], *, out: str, stages: bool = False, from_logs: bool = False, overwrite: bool = False
) -> None:
    """Compare runs: scores, profiles over depth, and critical parts, with differences tested.

    Only what was measured with equal settings is compared; the page says what was not.

    Example: depthlens compare runs/base runs/distilled --out runs/compared

    Args:
        runs (RUN...): Two folders or more that `depthlens sweep` or `depthlens run` wrote, each of one model.
        out (DIR): Folder for index.html, the tables (.parquet) and record.json.
        stages: The runs are stages of training, in order: compare each with the one before, not the first.
        from_logs: The runs are logs of lm-eval (folders of --output_path with --log_samples) or Inspect (.eval files).
        overwrite: Replace what --out holds.
    """
    arguments.check(out=out)
    say(f"reading {', '.join(runs)}")
    from depthlens.analysis.numbers.words import plain
    from depthlens.runner.compared_runs import compare as compared
    from depthlens.runner.finding_pages import write_comparison

    found = compared(*runs, stages=stages, from_logs=from_logs)
    page = write_comparison(found, out, overwrite=overwrite)
    for line in found.sentences:
        typer.echo(plain(line))
    for note in found.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"\nWrote {page}")


def answers(
    run: str,
    condition: str,
    *,
    change: str = "broken",
    task: str | None = None,
    against: str | None = None,
    format: str = "text",
) -> None:
    """Print the answers that a removal changes, beside those of the whole model.

    Example: depthlens answers runs/layers L11 --format csv > broken.csv

    Args:
        run (RUN): A folder that `depthlens sweep` wrote.
        condition (CONDITION): One of its conditions, such as L11.
        change: broken (the score falls), repaired (it rises), changed (another answer with the same score) or all.
        task (NAME): Of this task only.
        against (RUN): A run of another model on the same documents, whose whole model is the baseline. With the
            condition baseline: the documents on which two models differ.
        format: text, or a table with all columns for other programs: csv, or json (a list of one object an answer).
    """
    arguments.one_of("text", "csv", "json")("format", format)
    say(f"reading {run}")
    from depthlens.analysis.numbers.stats import BASELINE
    from depthlens.analysis.result.results import Result

    other = None if against is None else Result.load(against)
    found = Result.load(run).answers(condition, change, task=task, against=other)
    if format != "text":
        csv = format == "csv"
        return typer.echo(found.to_csv(index=False) if csv else found.to_json(orient="records", indent=2), nl=not csv)
    names = against or "whole model", run if condition == BASELINE else f"without {condition}"
    for row in found.itertuples():
        lines = row.question, row.reference, row.baseline_answer, row.answer
        for name, text in zip((f"{row.task} {row.doc_id}", "right answer", *names), lines, strict=True):
            typer.echo(f"{name + ':':<24} {' / '.join(text.strip().splitlines())}")
        typer.echo()
    typer.echo(f"{len(found)} answers: {change}")


def gallery(folder: str) -> None:
    """Make the web pages of executed notebooks again.

    Args:
        folder (DIR): Folder with executed notebooks.
    """
    say(f"reading the notebooks in {folder}")
    from depthlens.runner.pages import gallery as build

    typer.echo(f"Wrote {build(folder)}")
