"""Races on organisms, whose planted heads are known: decisions, the store, other paths, and what is refused."""

import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml

import depthlens as dl
from depthlens.analysis.numbers.betting import AT_CHANCE, CRITICAL, SPARED
from depthlens.paths import tasks_dir

TASK, OTHER = "organism_one_hop", "organism_two_hop"
QUIET = {"progress": False, "store": None}
# planted: a previous-token head with a retrieval head, or with two that answer together
ONE_HOP, TWO_HOP = {"L1.H2", "L2.H1"}, {"L1.H2", "L3.H0", "L4.H3"}
SOME = ["L0.H0", "L1.H2", "L2.H1", "L3.H0", "L4.H3", "L5.H1"]


@pytest.fixture(scope="module")
def lens():
    return dl.load("organism")


@pytest.fixture(scope="module")
def raced(lens):
    return dl.race(lens, [TASK, OTHER], SOME, **QUIET)


def test_planted_heads_are_critical_and_all_others_spared(raced):
    assert set(raced.of(CRITICAL, TASK)) == ONE_HOP
    assert set(raced.of(CRITICAL, OTHER)) == TWO_HOP
    assert set(raced.decisions["decision"]) == {CRITICAL, SPARED}
    critical = raced.decisions["decision"] == CRITICAL
    assert raced.decisions.loc[critical, "n"].max() < raced.decisions.loc[~critical, "n"].min() <= 200


def test_losses_are_those_of_a_sweep(lens, raced):
    some = ["L0.H0", "L1.H2", "L4.H3"]
    swept = dl.condition_sweep(lens, TASK, some, **QUIET)
    losses = swept.losses(TASK)
    table = pd.DataFrame(losses.loss, swept.scores(TASK, "acc").index, pd.Index(losses.conditions, name="condition"))
    expected = table.melt(ignore_index=False, value_name="loss").reset_index()
    mine = raced.losses[(raced.losses["task"] == TASK) & raced.losses["condition"].isin(some)]
    both = mine.merge(expected, on=["condition", "doc_id"], suffixes=("", "_swept"))
    assert len(both) == len(mine) and (both["loss"] == both["loss_swept"]).all()
    assert not mine.duplicated(["condition", "doc_id"]).any()
    ran = raced.losses.groupby(["task", "condition"])["doc_id"].agg("size")
    for row in raced.decisions.itertuples():
        assert ran[row.task, row.condition] == row.n, "a condition that has left is not run"


def test_the_order_is_random_and_seeded(lens):
    orders = []
    for seed in (0, 0, 1):
        race = dl.race(lens, TASK, "L0", seed=seed, max_documents=40, **QUIET)
        orders.append(race.losses[race.losses["condition"] == "L0"]["doc_id"].tolist())
        assert race.record["n_documents"] == {TASK: 40}
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) != list(range(len(orders[0])))


def test_a_second_race_computes_nothing_and_a_first_may_be_cut_short(lens, tmp_path):
    options = {"progress": False, "store": str(tmp_path)}
    short, whole, again = (dl.race(lens, TASK, "L0,L1", max_documents=n, **options) for n in (30, 80, 80))
    assert set(short.decisions["n"]) <= {16, 30}
    assert again.record["store"]["rows_computed"] == 0 < whole.record["store"]["rows_computed"]
    pd.testing.assert_frame_equal(again.decisions, whole.decisions)
    pd.testing.assert_frame_equal(again.losses, whole.losses)


def test_written_answers_and_means(lens):
    race = dl.race(lens, "organism_two_hop_generative", "L1.H2,L0.H0,L5@mean", max_documents=60, **QUIET)
    assert race.decisions["decision"].tolist()[0] == CRITICAL
    assert set(race.decisions["n"]) <= {16, 32, 48, 60}


def test_a_model_at_chance_is_not_judged():
    race = dl.race(tiny.lens("llama-gqa"), "capitals_continuation", "layers", max_documents=40, **QUIET)
    assert set(race.decisions["decision"]) == {AT_CHANCE}
    assert "capitals_continuation (acc): no condition is judged, because 40 documents" in race.describe()[0]


ORGANISM = tasks_dir() / "organism"


def documents() -> list[dict]:
    return [json.loads(line) for line in (ORGANISM / "test.jsonl").read_text().splitlines()]


def write(folder: Path, name: str, docs: list[dict]) -> Path:
    """Write the organism's task with other documents."""
    (folder / "test.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    files = {"test": str(folder / "test.jsonl"), "fewshot": str(ORGANISM / "fewshot.jsonl")}
    own = {"include": str(ORGANISM / f"{TASK}.yaml"), "task": name, "dataset_kwargs": files}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    return folder


@pytest.mark.parametrize("solved, decision", [(7, SPARED), (4, AT_CHANCE)])
def test_the_whole_model_goes_on_alone_until_it_is_above_chance(lens, tmp_path, solved, decision):
    docs = documents()
    for i, doc in enumerate(docs):
        if i % 20 >= solved:  # another option is called right, so that the model is right in 35% or 20%
            doc["one_hop"] = next(option for option in doc["options"] if option != doc["one_hop"])
    race = dl.race(lens, "weak", "L0.H0", include_path=write(tmp_path, "weak", docs), **QUIET)
    assert race.decisions["decision"].tolist() == [decision]
    (n,) = race.decisions["n"]
    assert n == len(race.losses) < race.record["n_baseline"]["weak"] <= 200
    assert (race.record["n_baseline"]["weak"] == 200) == (decision == AT_CHANCE)


def test_a_question_that_a_task_holds_twice_counts_once(lens, tmp_path):
    docs = documents()[:30]
    folder = write(tmp_path, "twice", [*docs, *docs[:20]])
    race = dl.race(lens, "twice", "L5.H1", include_path=folder, **QUIET)
    assert race.record["n_documents"] == {"twice": 30}
    asked = race.losses["doc_id"].where(race.losses["doc_id"] < 30, race.losses["doc_id"] - 30)
    assert asked.is_unique and (race.losses["doc_id"] >= 30).any(), "of two, any one"


def test_the_command_prints_and_writes_and_goes_on_in_its_own_folder_only(call, tmp_path):
    typed = [*f"sweep organism {TASK} --race --ablate L1,L4 --max-documents 32 --store none --out".split(), tmp_path]
    code, printed, _ = call(*typed)
    assert code == 0 and "cost something" in printed and "is wrong is at most 0.05" in printed and "**" not in printed
    race = dl.Race.load(tmp_path)
    assert len(race.decisions) == 2 and race.record["command"][:3] == ["depthlens", "sweep", "organism"]
    assert call(*typed)[0] == 0
    code, _, told = call(*typed, "--margin", "0.2")
    assert code == 2 and "holds another result (margin" in told
