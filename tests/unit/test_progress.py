"""The bar: the same everywhere, also as lines of JSON, and resumed where it was."""

import json
import time

import pytest
import tiny
from stores import CHOICE

import depthlens as dl
from depthlens import progress


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_lines_in_place_of_the_bar(monkeypatch, capsys):
    monkeypatch.setenv(progress.ENVIRONMENT, "-")
    monkeypatch.setattr(progress, "EVERY", 0)
    with progress.Bar(total=10, initial=4, desc="task", unit="row") as bar:
        time.sleep(0.01)
        bar.update(3)
        bar.update(3)
    out, err = capsys.readouterr()
    told = lines(err)
    assert out == "" and [line["done"] for line in told] == [4, 7, 10, 10]
    assert all(line["total"] == 10 and line["held"] == 4 and line["what"] == "task" for line in told)
    assert told[0]["per_second"] is None and told[0]["seconds_left"] is None
    # what the store held does not count into the pace: three rows in ten milliseconds at the least, not seven
    assert 0 < told[1]["per_second"] <= 300 and told[1]["seconds_left"] == pytest.approx(3 / told[1]["per_second"])
    assert told[-1]["seconds_left"] == 0


def test_not_every_update_is_a_line(monkeypatch, capsys):
    monkeypatch.setenv(progress.ENVIRONMENT, "-")
    monkeypatch.setattr(progress, "EVERY", 3600)
    with progress.Bar(total=1000, desc="task") as bar:
        for _ in range(1000):
            bar.update()
    assert [line["done"] for line in lines(capsys.readouterr().err)] == [0, 1000]


def screen(stream: str) -> list[str]:
    """The lines that JupyterLab shows of a stream: after a carriage return text takes the place of what stood there."""
    shown = []
    for line in stream.removesuffix("\n").split("\n"):
        cells = ""
        for text in line.split("\r"):
            cells = text + cells[len(text) :]
        shown.append(cells.rstrip())
    return shown


def test_bars_on_one_line_leave_nothing_of_each_other(monkeypatch, capsys):
    monkeypatch.setattr(progress, "in_kernel", lambda: True)
    with progress.working("loading a model with a long name and three tasks"):
        with progress.working("loading it"):
            pass
        with progress.Bar(total=2, desc="rows", bar_format="{desc}: {n}/{total}") as bar:
            bar.update(2)
            bar.refresh()
    stream = capsys.readouterr().out
    assert "\x1b" not in stream, "JupyterLab's cursor does not go up"
    shown = [line.partition(": ")[0] for line in screen(stream)]
    assert shown == ["loading it", "rows", "loading a model with a long name and three tasks"]
    assert "rows: 2/2" in screen(stream)


def test_a_sweep_that_is_resumed_starts_where_it_was(tmp_path, monkeypatch, capsys):
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    monkeypatch.setenv(progress.ENVIRONMENT, "-")
    dl.layer_sweep(lens, CHOICE, limit=1, store=str(tmp_path))
    capsys.readouterr()
    dl.layer_sweep(lens, CHOICE, limit=3, store=str(tmp_path))
    told = lines(capsys.readouterr().err)
    known = {"what": CHOICE, "done": 24, "total": 72, "held": 24, "unit": "row"}
    assert told[0] == known | {"per_second": None, "seconds_left": None}
    assert told[-1]["done"] == 72
