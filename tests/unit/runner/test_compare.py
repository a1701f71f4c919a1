"""`depthlens compare`: folders in, a page and tables out."""

import pandas as pd
import pytest
from made_results import EARLY, LATE, steps, sweep

import depthlens as dl
from depthlens import runner

pytestmark = pytest.mark.slow

TABLES = ("table", "settings", "answers")


@pytest.fixture
def runs(tmp_path):
    """Two folders of results."""
    for name, loss in (("base", EARLY), ("late", LATE)):
        sweep(loss, model=name, seed=len(name)).save(tmp_path / name)
    return [tmp_path / "base", tmp_path / "late"]


def page_of(found, folder) -> str:
    return runner.write_comparison(found, folder).read_text()


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
    assert page.count("data:image/svg+xml;base64,") == 3 and "<script" not in page and "http://" not in page
    assert "default-src 'none'" in page
    assert call("compare", *runs, "--out", out)[0] == 0, "the same comparison is written again"
    assert call("compare", *runs[::-1], "--out", out)[0] == 2, "another comparison"
    assert pd.read_parquet(out / "table.parquet")["run"].unique().tolist() == ["base", "late"]


def test_folders_of_notebooks_are_paired_by_the_path_below_them(tmp_path):
    folders = [tmp_path / name for name in ("few", "flat")]
    for folder, loss in zip(folders, (EARLY, LATE), strict=True):
        for place, task in (("00_tour", "sums"), ("08_geometry", "letters")):
            sweep(loss, model=folder.name, task=task).save(folder / place)
    found = dl.compare(*folders)
    places = found.table[["place", "task"]].drop_duplicates().to_numpy().tolist()
    assert places == [["00_tour", "sums"], ["08_geometry", "letters"]]
    assert "08_geometry few, flat: loss by removed part, layers" in page_of(found, tmp_path / "out")
    one = dl.compare(folders[0] / "00_tour", folders[1] / "00_tour")
    assert set(one.table["place"]) == {""} and one.runs == ["few/00_tour", "flat/00_tour"]


def test_names_and_places_of_runs(tmp_path):
    """Results in memory have names that differ; a run may be called as a column; alone a folder's name is no place."""
    assert dl.compare(sweep(EARLY), sweep(EARLY), sweep(LATE, model="late")).runs == [*("base (1)", "base (2)", "late")]
    for name, place in (("task", "x"), ("setting", "y")):
        sweep(EARLY, model=name, record={"time": name}).save(tmp_path / name / place)
    found = dl.compare(tmp_path / "task", tmp_path / "setting")
    assert found.table["reference"].any() and "<th>task</th>" in page_of(found, tmp_path / "out")


def test_stages_have_a_page_of_their_own_figures(call, tmp_path):
    names = [tmp_path / f"step{i + 1}" for i in range(5)]
    for name, result in zip(names, steps(5), strict=True):
        result.save(name)
    assert call("compare", *names, "--stages", "--out", tmp_path / "out")[0] == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert "compared with the stage before" in page
    assert "scores and centres, layers" in page and "loss by removed part" not in page, "more runs than colours"


@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_results_of_a_sweep_are_never_replaced_by_a_comparison(runs, call, overwrite):
    before = {p.name: p.read_bytes() for p in runs[0].iterdir()}
    code, _, told = call("compare", *runs, "--out", runs[0], *overwrite)
    assert code == 2 and "holds results of a sweep, which are never replaced; name another folder" in told
    assert {p.name: p.read_bytes() for p in runs[0].iterdir()} == before
