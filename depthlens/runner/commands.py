"""The commands ``compare``, ``answers`` and ``gallery``; nothing heavy is imported until one is called."""

from __future__ import annotations

import typer

from depthlens.progress import say


def compare(runs: list[str], *, out: str, stages: bool = False, overwrite: bool = False) -> None:
    """Compare runs: scores, profiles over depth, critical parts, and verdicts, with differences tested.

    Only what was measured with equal settings is compared; the page says what was not.

    Example: depthlens compare runs/base runs/distilled --out runs/compared

    Args:
        runs (RUN...): Two folders or more that `depthlens sweep` or `depthlens run` wrote, each of one model.
        out (DIR): Folder for index.html, the tables (.parquet) and record.json.
        stages: The runs are stages of training, in order: compare each with the one before, not the first.
        overwrite: Replace what --out holds.
    """
    from depthlens import arguments

    arguments.check(out=out)
    say(f"reading {', '.join(runs)}", runs=runs)
    from depthlens.analysis.numbers.words import plain
    from depthlens.runner.compare_page import write_comparison
    from depthlens.runner.compared_runs import compare as compared

    found = compared(*runs, stages=stages)
    page = write_comparison(found, out, overwrite=overwrite)
    for line in found.sentences:
        typer.echo(plain(line))
    for note in found.notes:
        typer.echo(f"Note: {note}")
    typer.echo(f"\nWrote {page}")


def answers(
    run: str, condition: str, *, change: str = "broken", task: str | None = None, against: str | None = None
) -> None:
    """Print the answers that a removal changes, beside those of the whole model.

    Example: depthlens answers runs/layers L11

    Args:
        run (RUN): A folder that `depthlens sweep` wrote.
        condition (CONDITION): One of its conditions, such as L11.
        change: broken (the score falls), repaired (it rises), changed (another answer with the same score) or all.
        task (NAME): Of this task only.
        against (RUN): A run of another model on the same documents, whose whole model is the baseline. With the
            condition baseline: the documents on which two models differ.
    """
    say(f"reading {run}", run=run)
    from depthlens.analysis.numbers.stats import BASELINE
    from depthlens.analysis.result.results import Result

    other = None if against is None else Result.load(against)
    found = Result.load(run).answers(condition, change, task=task, against=other)
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
    say(f"reading the notebooks in {folder}", folder=folder)
    from depthlens.runner.pages import gallery as build

    typer.echo(f"Wrote {build(folder)}")
