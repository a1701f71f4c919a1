"""The bar: the same everywhere, also as lines of JSON, also from the kernel of a notebook that runs headlessly."""

from __future__ import annotations

import json
import os
import sys
import time

import pytest
import tiny

import depthlens as dl
from depthlens import cli, progress
from depthlens.ablations import parse_condition
from depthlens.engine import work
from depthlens.engine.engine import PATHS, Engine
from depthlens.requests import GenerateRequest
from depthlens.runner.progress import RunProgress, bar_text
from depthlens.runner.report import NotebookRun
from depthlens.store.answer_cache import AnswerRows

CHOICE = "capitals_continuation"


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


class TestBar:
    def test_json_lines_in_place_of_the_bar(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        monkeypatch.setattr(progress, "EVERY", 0)
        with progress.bar(total=10, initial=4, desc="task", unit="row") as bar:
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

    def test_a_file_takes_lines_beside_the_bar(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, str(tmp_path / "lines"))
        with progress.bar(total=2, desc="task", unit="row") as bar:
            bar.update(2)
        assert lines((tmp_path / "lines").read_text())[-1]["done"] == 2
        assert "task: 100%" in capsys.readouterr().err

    def test_a_bar_that_is_off_tells_nothing(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        with progress.bar(total=2, desc="task", disable=True) as bar:
            bar.update(2)
        assert capsys.readouterr() == ("", "")

    def test_the_time_left_is_that_of_the_work_that_is_left(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        monkeypatch.setattr(progress, "EVERY", 0)
        spent = 0.0
        with progress.bar(total=10, desc="task", unit="row") as bar:
            bar.expects(100.0, lambda: spent)
            time.sleep(0.05)
            spent = 80.0
            bar.update(2)  # a fifth of the rows took four fifths of the work
        told = lines(capsys.readouterr().err)[1]
        assert 0.05 <= 4 * told["seconds_left"] and told["per_second"] == pytest.approx(8 / told["seconds_left"])

    def test_not_every_update_is_a_line(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        monkeypatch.setattr(progress, "EVERY", 3600)
        with progress.bar(total=1000, desc="task") as bar:
            for _ in range(1000):
                bar.update()
        assert [line["done"] for line in lines(capsys.readouterr().err)] == [0, 1000]


@pytest.mark.parametrize("backend", ["torch", "nnsight"])
def test_a_bar_expects_what_is_computed(backend, monkeypatch):
    """At the end of a sweep the work that a bar expected is what was done."""
    lens, told = tiny.lens("llama-gqa", max_position_embeddings=4096), []
    expects = progress.Bar.expects

    def noted(bar, needed, spent):
        told.append((needed, spent))
        expects(bar, needed, spent)

    monkeypatch.setattr(progress.Bar, "expects", noted)
    dl.layer_sweep(lens, CHOICE, limit=2, store=None, backend=backend)
    ((needed, spent),) = told
    assert needed == spent() > 0


@pytest.mark.parametrize("path", PATHS)
def test_what_texts_that_end_early_do_not_need_is_not_left(path, monkeypatch):
    """Half of 200 tokens are expected and a few are written: as much of the work is done as there are rows."""
    lens, told, shares = tiny.lens("llama-gqa"), [], []
    lens.model.generation_config.eos_token_id = list(range(0, 256, 3))
    asked = [GenerateRequest((i, 7, i + 1), (), 200) for i in range(40)]
    conditions = [parse_condition(text) for text in ("baseline", "L2", "L1.H3")]
    keep = AnswerRows.keep

    def noted(rows, some, *, wait=False):
        keep(rows, some, wait=wait)
        for needed, spent in [] if wait and path == "wavefront" else told:  # a pack that is not at its end
            shares.append((rows.n_computed / (len(asked) * len(conditions)), spent() / needed))

    monkeypatch.setattr(progress.Bar, "expects", lambda bar, needed, spent: told.append((needed, spent)))
    monkeypatch.setattr(AnswerRows, "keep", noted)
    monkeypatch.setattr(work, "CPU_KEY_BYTES", 1 << 20)  # eight prompts at a time
    engine = Engine(lens, path=path)
    engine.generate_until(asked, conditions)
    assert engine.work.written_tokens < 10 * engine.work.rows
    assert len(shares) == (5 if path == "wavefront" else 12)
    # two percent: tokens of a text have as many before them as an average token of the plan has
    assert shares == [(rows, pytest.approx(rows, abs=0.02)) for rows, _ in shares] and shares[-1][0] == 1


def test_a_sweep_that_is_resumed_starts_where_it_was(tmp_path, monkeypatch, capsys):
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    monkeypatch.setenv(progress.ENVIRONMENT, "-")
    dl.layer_sweep(lens, CHOICE, limit=1, store=str(tmp_path))
    capsys.readouterr()
    dl.layer_sweep(lens, CHOICE, limit=3, store=str(tmp_path))
    told = lines(capsys.readouterr().err)
    known = {"what": CHOICE, "done": 24, "total": 72, "held": 24, "kept": None, "unit": "row"}
    assert told[0] == known | {"per_second": None, "seconds_left": None}
    assert told[-1]["done"] == 72 == told[-1]["kept"]


def test_sweep_with_json(tmp_path, monkeypatch, capsys):
    model = tiny.save(tmp_path / "model", "llama-gqa", max_position_embeddings=4096)
    monkeypatch.setenv(progress.ENVIRONMENT, "")
    command = ["sweep", str(model), CHOICE, "--ablate", "L1", "--limit", "1", "--out", str(tmp_path / "out"), "--json"]
    with pytest.raises(SystemExit) as end:
        cli.main([*command, "--store", "none"])
    out, err = capsys.readouterr()
    told = [json.loads(line) for line in err.splitlines() if line.startswith("{")]
    assert end.value.code == 0 and told[-1]["done"] == told[-1]["total"] == 8 and "Wrote" in out


class TestRun:
    LINE = {"what": "task", "done": 1, "total": 4, "held": 0, "unit": "row", "per_second": 2.0, "seconds_left": 1.5}

    def write(self, **line: object) -> None:
        with open(os.environ[progress.ENVIRONMENT], "a") as file:
            file.write(json.dumps(self.LINE | line) + "\n")

    def test_the_kernels_lines_are_shown_as_one_bar(self, monkeypatch, capsys):
        monkeypatch.delenv(progress.ENVIRONMENT, raising=False)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        monkeypatch.setattr("depthlens.runner.progress.EVERY", 0.02)
        run = NotebookRun("03_slow", {})
        with RunProgress(2, enabled=True) as show, show.notebook(run, 7):
            show.cell(3)
            self.write(done=3)
            time.sleep(0.2)
            run.status = "ok"
        err = capsys.readouterr().err
        assert "[1/2] 03_slow: cell 3/7" in err and "task 3/4 rows, 2/s, 00:01 left" in err
        assert "[1/2] 03_slow ok: cell 7/7" in err
        assert progress.ENVIRONMENT not in os.environ

    def test_json_of_the_run_and_of_its_kernels(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        run = NotebookRun("03_slow", {})
        with RunProgress(1, enabled=True) as show, show.notebook(run, 7):
            show.cell(1)
            self.write()
            run.status, run.seconds = "ok", 1.5
        told = lines(capsys.readouterr().err)
        assert all(line["notebook"] == "03_slow" and line["cells"] == 7 for line in told)
        ended = {"notebook": "03_slow", "cells": 7, "cell": None, "status": "ok", "seconds": 1.5}
        assert told[0]["status"] == "running" and told[-1] == ended
        assert any(line.get("done") == 1 for line in told)
        assert os.environ[progress.ENVIRONMENT] == "-"

    def test_half_a_line_waits_for_its_end(self, monkeypatch, capsys):
        monkeypatch.setenv(progress.ENVIRONMENT, "-")
        with RunProgress(1, enabled=True) as show:
            with open(os.environ[progress.ENVIRONMENT], "a") as file:
                file.write('{"what": "ta')
            show.refresh()
            assert capsys.readouterr().err == ""
            with open(os.environ[progress.ENVIRONMENT], "a") as file:
                file.write('sk"}\n')
            show.refresh()
        assert lines(capsys.readouterr().err)[0]["what"] == "task"

    def test_without_a_pace_there_is_no_time_left(self):
        line = {"what": "x", "done": 0, "total": 4, "unit": "row", "per_second": None, "seconds_left": None}
        assert bar_text(line) == " | x 0/4 rows"
