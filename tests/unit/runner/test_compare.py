"""`depthlens compare`: folders in, a page and tables out."""

import pandas as pd
import pytest
from made_results import EARLY, LATE, steps, sweep

import depthlens as dl

pytestmark = pytest.mark.slow

TABLES = ("table", "answers")


@pytest.fixture
def runs(tmp_path):
    """Two folders of results."""
    for name, loss in (("base", EARLY), ("late", LATE)):
        sweep(loss, model=name, seed=len(name)).save(tmp_path / name)
    return [tmp_path / "base", tmp_path / "late"]


def test_two_results_become_a_page_and_tables_that_only_they_replace(runs, call, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "index.html").write_text("precious")
    code, _, told = call("compare", *runs, "--out", out)
    assert code == 2 and "holds a index.html of something else; name another folder, or replace it (--overwrite" in told
    assert [p.name for p in out.iterdir()] == ["index.html"] and (out / "index.html").read_text() == "precious"
    code, printed, _ = call("compare", *runs, "--out", out, "--overwrite")
    assert code == 0 and f"Wrote {out / 'index.html'}" in printed and "**" not in printed
    files = [*(f"{t}.parquet" for t in TABLES), "index.html", "record.json"]
    assert sorted(p.name for p in out.iterdir()) == sorted(files)
    found = dl.Comparison.load(out)
    assert found.runs == ["base", "late"] and found.table["shown"].any()
    page = (out / "index.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 2 and "<script" not in page and "http://" not in page
    assert "default-src 'none'" in page
    assert call("compare", *runs, "--out", out)[0] == 0, "the same comparison is written again"
    assert call("compare", *runs[::-1], "--out", out)[0] == 2, "another comparison"
    assert pd.read_parquet(out / "table.parquet")["run"].unique().tolist() == ["base", "late"]


def test_names_of_runs(tmp_path):
    """Results in memory have names that differ, and folders as much of their path as tells them apart."""
    assert dl.compare(sweep(EARLY), sweep(EARLY), sweep(LATE, model="late")).runs == [*("base (1)", "base (2)", "late")]
    for name in ("few", "flat"):
        sweep(EARLY, model=name, record={"time": name}).save(tmp_path / name / "00_tour")
    found = dl.compare(tmp_path / "few" / "00_tour", tmp_path / "flat" / "00_tour")
    assert found.table["reference"].any() and found.runs == ["few/00_tour", "flat/00_tour"]


def test_more_runs_than_colours_have_tables_alone(call, tmp_path):
    names = [tmp_path / f"step{i + 1}" for i in range(5)]
    for name, result in zip(names, steps(5), strict=True):
        result.save(name)
    assert call("compare", *names, "--stages", "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "compared with the stage before" in page and "Scores with nothing removed" in page and "<img" not in page


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_results_of_a_sweep_are_never_replaced_by_a_comparison(runs, call, overwrite):
    before = {p.name: p.read_bytes() for p in runs[0].iterdir()}
    code, _, told = call("compare", *runs, "--out", runs[0], *overwrite)
    assert code == 2 and "holds results of a sweep, which are never replaced; name another folder" in told
    assert {p.name: p.read_bytes() for p in runs[0].iterdir()} == before
