"""The index of a run before, while and after its notebooks run."""

from __future__ import annotations

import re

import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import code, write

from depthlens.runner import execute, index, pages

pytestmark = pytest.mark.slow

REFRESH = '<meta http-equiv="refresh"'


@pytest.fixture
def versions(monkeypatch):
    """Every text that the index had, in order."""
    texts = []
    real = index.write_whole

    def write_whole(path, text):
        if path.name == "index.html":
            texts.append(text)
        real(path, text)

    monkeypatch.setattr(index, "write_whole", write_whole)
    return texts


def statuses(text: str) -> dict[str, str]:
    """Status of each card by the name of its notebook."""
    cards = re.findall(r"<article.*?</article>", text, re.DOTALL)
    names = [re.search(r"· (\w+)</p>\n</div>", card)[1] for card in cards]
    return dict(zip(names, (re.search(r'class="status [\w-]+">. ([\w ]+)<', card)[1] for card in cards), strict=True))


def test_the_index_says_what_is_done_what_runs_and_what_is_to_come(suite, tmp_path, versions):
    execute.run(["00_good", "02_plain"], out=tmp_path / "out", progress=False)
    progress = [tuple(statuses(text).values()) for text in versions]
    assert list(dict.fromkeys(progress)) == [
        ("to come", "to come"),
        ("running", "to come"),
        ("ok", "to come"),
        ("ok", "running"),
        ("ok", "ok"),
    ]
    first, last = versions[0], versions[-1]
    assert "Does one layer matter?" in first and "Plain?" in first and '.html"' not in first
    assert "0 of 2 notebooks done, 2 to come" in first
    assert any("cell 3 of 8 since " in text for text in versions)
    for text, state in zip(versions, progress, strict=True):
        assert (REFRESH in text) == (set(state) != {"ok"}), state
    assert "2 notebooks · " in last and pages.RUNNING not in statuses(last).values()


def test_a_finding_can_be_read_while_the_next_notebook_runs(suite, tmp_path, versions):
    execute.run(["00_good", "02_plain"], out=tmp_path / "out", progress=False)
    text = next(text for text in versions if statuses(text) == {"00_good": "ok", "02_plain": "running"})
    assert "documents of <code>organism</code>" in text and 'src="data:image/png' in text
    assert 'href="00_good.html"' in text and 'href="02_plain.html"' not in text
    assert "1 of 2 notebooks done, 1 running" in text


def test_the_page_of_a_notebook_is_there_when_its_card_links_to_it(suite, tmp_path, monkeypatch):
    real = index.Index.write

    def write(self):
        for card in self.cards.values():
            assert not card.has_page or self.path.with_name(f"{card.name}.html").exists()
        return real(self)

    monkeypatch.setattr(index.Index, "write", write)
    execute.run(["00_good", "01_bad", "02_plain"], out=tmp_path / "out", progress=False)


@pytest.fixture
def stops(suite, monkeypatch):
    """A notebook of the suite in whose second cell the user presses Ctrl-C."""
    write(suite, "03_stops", new_markdown_cell("# Stopped?"), code("print('begun')"), code("1"))
    real = execute.NBClientEngine.execute_notebook

    def interrupted(nb, *args, on_cell_start, **kwargs):
        if nb.cells[0].source != "# Stopped?":
            return real(nb, *args, on_cell_start=on_cell_start, **kwargs)
        on_cell_start(nb.cells[1], 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(execute.NBClientEngine, "execute_notebook", interrupted)
    return "03_stops"


def test_an_interrupted_run_says_so_and_no_longer_reloads(stops, tmp_path):
    report = execute.run(["02_plain", stops, "00_good"], out=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "index.html").read_text()
    assert report.exit_code == 130
    assert statuses(text) == {"00_good": "not run", "02_plain": "ok", "03_stops": "interrupted"}
    assert REFRESH not in text and "3 notebooks, 2 not finished" in text
    assert "03_stops was interrupted in cell 2" in text and 'href="00_good.html"' not in text


def test_an_interrupted_run_leaves_the_results_of_an_earlier_one(stops, tmp_path):
    execute.run(["02_plain"], out=tmp_path / "out", progress=False)
    report = execute.run([stops, "02_plain"], out=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "index.html").read_text()
    assert [run.status for run in report.notebooks] == ["interrupted", "not run"]
    assert statuses(text) == {"02_plain": "ok", "03_stops": "interrupted"} and "&lt;b&gt;7&lt;/b&gt; layers" in text


def test_a_run_that_breaks_leaves_a_page_that_says_so(suite, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("a bug of ours")

    monkeypatch.setattr(execute.NBClientEngine, "execute_notebook", broken)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        execute.run(["00_good", "02_plain"], out=tmp_path / "out", progress=False)
    text = (tmp_path / "out" / "index.html").read_text()
    assert statuses(text) == {"00_good": "interrupted", "02_plain": "not run"} and REFRESH not in text
    assert (tmp_path / "out" / "record.json").exists()


def test_an_earlier_result_is_not_shown_as_that_of_the_run(suite, tmp_path, versions):
    execute.run(["02_plain"], out=tmp_path / "out", progress=False)
    versions.clear()
    execute.run(["02_plain", "01_bad"], out=tmp_path / "out", progress=False)
    assert statuses(versions[0]) == {"01_bad": "to come", "02_plain": "to come"}
    assert "7&lt;/b&gt; layers" not in versions[0]


def test_the_path_of_the_page_is_said_when_the_run_begins(suite, tmp_path, capfd):
    execute.run(["02_plain"], out=tmp_path / "out")
    first = capfd.readouterr().err.splitlines()[0]
    assert first == f"writing findings to {tmp_path / 'out' / 'index.html'} as notebooks end ..."
