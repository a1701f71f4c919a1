"""Every object of results comes back from its folder as it was, and no other is replaced."""

import json
import re
import shutil
import warnings
from pathlib import Path

import made_results
import numpy as np
import pandas as pd
import pytest
import torch
from made_results import capitals_and_elements, docs_of
from refusals import refused

import depthlens as dl
from depthlens import cli, paths
from depthlens.analysis.numbers.betting import CRITICAL, SPARED, UNDECIDED

N, N_LAYERS, N_HEADS = 120, 6, 2
EARLY = [0.9, 0.6, 0.2, 0.1, 0.0, 0.0]


def swept(model: str = "base", *, heads: bool = False, seed: int = 0) -> dl.Result:
    """Right answers that are lost with the probabilities `EARLY` without each layer, or both heads of each layer."""
    of_heads = {f"L{layer}.H{h}": loss for layer, loss in enumerate(EARLY) for h in range(N_HEADS)}
    options = {"task": "t", "model": model, "chance": 0.25, "n_layers": N_LAYERS, "n_heads": N_HEADS}
    made = made_results.sweep(of_heads if heads else EARLY, n=N, seed=seed, **options)
    return dl.Result(made.docs.assign(response="1 + 1 = 3"), made.record)


def geometry() -> dl.Geometry:
    table = pd.DataFrame({"layer": range(N_LAYERS), "influence": np.linspace(0, 1, N_LAYERS)})
    return dl.Geometry(table, table.assign(size=1), table.assign(rank=[1.5] * N_LAYERS), {"texts": 3})


def scores(seed: int = 0, **record) -> dl.HeadScores:
    cases = np.random.default_rng(seed).normal(1, 1, (20, N_LAYERS, N_HEADS))
    record = {"model": {"name": "m"}, **record}
    return dl.HeadScores.of_cases("loss", "nats", cases, record, tested=True, heads=[(1, 0), (2, 1), (3, 0)])


MADE = {
    "result": swept,
    "curve": made_results.removal_curve,
    "greedy": made_results.greedy,
    "geometry": geometry,
    "head scores": scores,
    "verdicts": lambda: dl.claims.judge(dl.claims.Evidence(letters=swept())),
    "centres": lambda: swept().centre_of_mass(),
    "runs": lambda: dl.compare(swept(), swept("d", seed=1)),
    "race": lambda: made_results.race([CRITICAL, SPARED, UNDECIDED]),
}


@pytest.fixture
def result() -> dl.Result:
    return capitals_and_elements()


def same(one, other):
    """Whether two findings have the same files."""
    before, after = one.contents(), other.contents()
    assert set(before) == set(after)
    for file, content in before.items():
        if isinstance(content, pd.DataFrame):
            pd.testing.assert_frame_equal(after[file], content, check_exact=True)
        else:
            assert after[file] == content


@pytest.mark.parametrize("name", MADE)
def test_an_object_comes_back_as_it_was(name, tmp_path):
    made = MADE[name]()
    made.save(tmp_path / "out")
    back = type(made).load(tmp_path / "out")
    same(made, back)
    assert set(made.files()) >= {path.name for path in (tmp_path / "out").iterdir()} - {"summary.parquet"}
    if name != "geometry":  # says nothing
        assert back.describe() == made.describe() and all(line.endswith(".") for line in made.describe())
    made.save(tmp_path / "out")  # the same may be written again
    if name in ("curve", "greedy"):
        inside = dl.Result.load(tmp_path / "out")
        pd.testing.assert_frame_equal(inside.docs, made.result.docs, check_exact=True)
        assert inside.record == made.result.record


@pytest.mark.parametrize("name", ["result", "curve", "verdicts", "head scores", "centres"])
def test_other_folders_full_disks_and_damaged_files_are_one_line(name, tmp_path, monkeypatch):
    made = MADE[name]()
    other, own, file = tmp_path / "other", tmp_path / "own", tmp_path / "own" / made.RECORD
    other.mkdir()
    (other / "record.json").write_text('{"profile": "demo"}')
    refused("holds a record.json of something else; name another folder", made.save, other)
    assert len(list(other.iterdir())) == 1
    made.save(other, overwrite=True)
    same(type(made).load(other), made)

    made.save(own)
    before, calls = {path.name: path.read_bytes() for path in own.iterdir()}, []

    def full(path, *args, open_file=open):
        calls.append(path)
        if len(calls) == len(before):  # the last file
            raise OSError(28, "No space left on device")
        return open_file(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(paths, "open", full, raising=False)
        refused("cannot write to .*No space left on device", made.save, own, overwrite=True)
    assert {path.name: path.read_bytes() for path in own.iterdir()} == before
    for content in ("{half", "[1]"):
        file.write_text(content)
        refused(f"does not hold what {type(made).__name__}.save writes .*; make it again", type(made).load, own)
    file.unlink()
    refused(f"holds no {made.RECORD}; give a folder that {type(made).__name__}.save wrote", type(made).load, own)


def test_other_settings_and_other_kinds_do_not_replace_each_other(tmp_path):
    scores(limit=2).save(tmp_path / "scores")
    refused(r"holds another result \(limit 2, not 3\)", lambda: scores(limit=3).save(tmp_path / "scores"))
    MADE["centres"]().save(tmp_path / "centres")
    refused("holds a record.json of something else", lambda: geometry().save(tmp_path / "centres"))
    with pytest.raises(dl.UserError, match="holds no heads.parquet; give a folder that HeadScores.save wrote"):
        dl.HeadScores.load(tmp_path / "centres")


def test_a_finding_with_a_result_inside_is_refused_by_its_own_settings(tmp_path):
    made_results.greedy().save(tmp_path)
    with pytest.raises(dl.UserError, match=r"holds another result \(tolerance 0.1, not 0.2\)"):
        made_results.greedy(tolerance=0.2).save(tmp_path)


def test_a_table_shows_itself_rounded():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = swept().centre_of_mass()
    centre = made.table["centre"].item()
    assert f"{centre:.2f}" in repr(made) and f"{centre:.2f}" in made._repr_html_() and "<table" in made._repr_html_()
    assert made.record["made_by"] == "centre_of_mass" and made.record["made_from"][0]["tasks"] == ["t"]


def test_every_column_is_on_the_page_of_files_in_its_order(result, tmp_path):
    dl.Result(result.docs, result.record, pd.concat([asked_of(), asked_of("elements")])).save(tmp_path)
    page = (Path(__file__).parents[3] / "docs" / "files.md").read_text()
    for name in ("docs", "questions", "summary"):
        section = page.partition(f"## {name}.parquet\n")[2].partition("\n## ")[0]
        told = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert told == pd.read_parquet(tmp_path / f"{name}.parquet").columns.tolist(), name


def asked_of(task="capitals", n=20, **columns) -> pd.DataFrame:
    """Questions of a task, and of one more document than was scored."""
    ids = range(n + 1)
    table = {"task": task, "doc_id": ids, "question": [f"Q{i}?" for i in ids], "reference": [f"r{i}" for i in ids]}
    return pd.DataFrame(table | {"choices": [["a", f"r{i}"] for i in ids]} | columns)


def test_questions_travel_with_a_result(result, tmp_path):
    whole = dl.Result(result.docs, result.record, pd.concat([asked_of(), asked_of("elements", choices=None)]))
    asked = whole.questions()
    columns = ["task", "doc_id", "question", "reference", "choices", "doc_hash", "subtask", "fields"]
    assert len(asked) == 40 and asked.columns.tolist() == columns
    assert asked[["doc_hash", "subtask"]].isna().all(axis=None)  # as in a folder that says nothing of them
    whole.save(tmp_path)
    pd.testing.assert_frame_equal(dl.Result.load(tmp_path).questions(), asked)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "questions.parquet")[["question"]], asked[["question"]])
    one = whole.select(tasks="elements", conditions=["L0"])
    assert set(one.questions()["task"]) == {"elements"} and one.questions()["choices"].tolist() == [None] * 20
    joined = dl.concat([whole.select(tasks="capitals"), whole.select(tasks="elements"), whole])
    pd.testing.assert_frame_equal(joined.questions(), asked)
    result.save(tmp_path, overwrite=True)
    assert not (tmp_path / "questions.parquet").exists(), "questions of an older result are not left beside another"


def test_a_result_without_questions_says_so(result, tmp_path):
    result.save(tmp_path)  # as a folder that version 0.1 wrote
    old = dl.Result.load(tmp_path)
    refused(r"holds no questions \(no questions.parquet\); run the sweep again", old.questions)
    assert dl.concat([old, result]).asked is None
    result.docs.drop(columns=["response"]).to_parquet(tmp_path / "docs.parquet")
    refused("lacks column response", dl.Result.load, tmp_path)


def test_results_that_ask_something_else_are_not_joined(result):
    one = result.select(tasks="capitals")
    other = asked_of(question=[f"Q{i}!" for i in range(21)])
    with pytest.raises(dl.UserError, match="disagree on what document 0 of task 'capitals' asks"):
        dl.concat([dl.Result(one.docs, one.record, asked_of()), dl.Result(one.docs, one.record, other)])


def test_notes_tell_of_cut_prompts_in_joined_results_too(result):
    cut = {"n_truncated": 3, "max_tokens_cut": 17}
    one = result.select(tasks="capitals")
    tasks = {t: v | cut for t, v in one.record["tasks"].items()}
    one = dl.Result(one.docs, one.record | {"tasks": tasks})
    note = "capitals: 3 prompts are longer than the model reads and lost up to 17 tokens at their left end"
    assert one.notes.count(note) == 1
    assert dl.concat([one, result.select(tasks="elements")]).notes.count(note) == 1
    assert dl.concat([dl.concat([one, one]), one]).notes.count(note) == 1


def test_nothing_is_written_for_a_result_that_cannot_be_summarised(tmp_path):
    broken = dl.Result(docs_of({"L0": [1, 0]}), {})
    refused("no 'baseline'", broken.save, tmp_path / "out")
    assert not (tmp_path / "out").exists()


TASK = "organism_one_hop"


@pytest.fixture
def sweep(call, tmp_path):
    """Run the command line on one folder: exit code and the last line that was told."""

    def run(*flags, model="organism", ablate="L1,L2", limit=2):
        given = f"sweep {model} {TASK} --ablate {ablate} --limit {limit} --out".split()
        code, *printed = call(*given, tmp_path / "out", *flags)
        return code, "".join(printed).splitlines()[-1]

    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder that a sweep wrote."""
    torch.set_num_threads(1)  # as in the tests: the weights of an organism hang on it in their last bits
    folder = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.raises(SystemExit) as ended:
        cli.main(f"sweep organism {TASK} --ablate L1,L2 --limit 2 --out {folder}".split())
    assert ended.value.code == 0
    return folder


@pytest.fixture
def out(made, tmp_path):
    return shutil.copytree(made, tmp_path / "out")


def state(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_sweep_goes_on_in_its_folder(sweep, out):
    before = dl.Result.load(out)
    code, line = sweep(ablate="L2,L1")
    assert code == 0, line
    after = dl.Result.load(out)
    assert set(after.docs["condition"]) == set(before.docs["condition"]) and len(after.docs) == len(before.docs)
    assert set(state(out)) >= {"docs.parquet", "questions.parquet", "record.json", "summary.parquet"}


@pytest.mark.parametrize(("changes", "said"), [
    ({"model": "organism:seed=2"}, "model organism, not organism:seed=2"),
    ({"flags": ("--donor", "organism:seed=2")}, "donor none, not organism:seed=2"),
], ids=lambda value: None if isinstance(value, dict) else value)  # fmt: skip
def test_another_sweep_is_refused_before_anything_is_loaded(sweep, out, monkeypatch, changes, said):
    monkeypatch.setattr("depthlens.experiments.sweep.run_by_name", lambda *a, **k: pytest.fail("the sweep runs"))
    before, changes = state(out), dict(changes)
    code, line = sweep(*changes.pop("flags", ()), **changes)
    assert code == 2 and line.startswith(f"Error: {str(out)!r} holds another result ({said}"), line
    assert line.endswith("name another folder, or replace it (--overwrite, in Python overwrite=True)")
    assert state(out) == before


def test_overwrite_replaces_and_other_files_do_no_harm(sweep, out):
    (out / "notes.txt").write_text("mine")
    assert sweep("--overwrite", limit=3)[0] == 0
    assert json.loads((out / "record.json").read_text())["limit"] == 3 and (out / "notes.txt").read_text() == "mine"


def test_what_only_the_result_can_tell_is_seen_before_it_is_written(sweep, out):
    path = out / "record.json"
    record = json.loads(path.read_text())
    record["model"]["fingerprint"] = "0" * 32  # other weights under the same name
    path.write_text(json.dumps(record))
    before = state(out)
    code, line = sweep()
    assert code == 2 and f"(model fingerprint {'0' * 32}, not " in line
    assert state(out) == before


def test_a_second_process_is_refused_the_folder_and_a_dead_one_leaves_it_free(sweep, tmp_path):
    out = tmp_path / "out"
    with paths.locked(out):
        code, line = sweep()
    assert code == 2 and line.startswith(f"Error: another process is writing to {str(out)!r} now; wait for its end")
    (out / paths.LOCK).touch()
    assert sweep()[0] == 0
    assert set(state(out)) >= {"docs.parquet", "questions.parquet", "record.json", "summary.parquet"}


def test_other_documents_under_the_same_record_are_not_replaced(result, tmp_path):
    result.save(tmp_path)
    docs = result.docs[result.docs["doc_id"] < 10]  # the record does not tell the two apart
    refused("rows of documents, not", lambda: dl.Result(docs, result.record).save(tmp_path))
