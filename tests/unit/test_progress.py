"""The bar: on one line in a notebook, and resumed where it was."""

import tiny
from stores import CHOICE

import depthlens as dl
from depthlens import progress


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


def test_a_sweep_that_is_resumed_starts_where_it_was(tmp_path, bar_states):
    lens = tiny.lens("llama-gqa", max_position_embeddings=4096)
    dl.layer_sweep(lens, CHOICE, limit=1, store=str(tmp_path), progress=False)
    dl.layer_sweep(lens, CHOICE, limit=3, store=str(tmp_path))
    assert bar_states[0] == (24, 72) and bar_states[-1] == (72, 72)
