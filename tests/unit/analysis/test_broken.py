"""What broken questions have in common: groups, shares, one family, and where the fields come from."""

import json

import made_results
import mini_tasks
import numpy as np
import pandas as pd
import pytest

import depthlens as dl
from depthlens.analysis.result.results import Result
from depthlens.errors import UserError
from depthlens.requests import LoglikelihoodAnswer
from depthlens.tasks import harness

N = 120
RNG = np.random.default_rng(0)
REGION, NOISE = RNG.choice(["north", "south", "east"], N), RNG.choice(["a", "b"], N)
BASE, LENGTH, MARGIN = np.arange(N) % 6 > 0, RNG.integers(5, 99, N), RNG.normal(size=N)
LOST = {"L0": RNG.random(N) < np.where(REGION == "north", 0.9, 0.1), "L1": RNG.random(N) < 0.3, "L2": MARGIN < 0}


def made(fields: bool = True) -> Result:
    """Without L0 it is the north that is lost, without L1 anything, and without L2 what the model was unsure of."""
    result = made_results.result_of({"baseline": BASE} | {name: BASE & ~of for name, of in LOST.items()}, n_layers=3)
    questions = [f"{'x' * (n - 3)}it?" for n in LENGTH]
    asked = pd.DataFrame(
        {"task": "sums", "doc_id": range(N), "question": questions, "reference": "it", "choices": None}
    )
    if not fields:
        return Result(result.docs, result.record, asked)
    said = [json.dumps({"region": r, "noise": n}) for r, n in zip(REGION, NOISE, strict=True)]
    margin = np.where(result.docs["condition"] == "baseline", np.tile(MARGIN, 4), np.nan)
    return Result(result.docs.assign(margin=margin), result.record, asked.assign(fields=said))


def test_broken_questions_are_counted_by_each_value_among_those_that_can_break():
    found = made().broken("L0")
    rows = found.by("region").set_index("value")
    for region in ("north", "south", "east"):
        inside, outside = (LOST["L0"][BASE & of] for of in (REGION == region, REGION != region))
        assert rows.loc[f"= {region}", ["n", "broken", "others"]].tolist() == pytest.approx(
            [len(inside), inside.mean(), outside.mean()]
        )
    north = rows.loc["= north"]
    assert north["p_adjusted"] < 0.05 and north["ci_low"] < north["difference"] < north["ci_high"]
    assert found.describe()[0] == f"L0 breaks {(BASE & LOST['L0']).sum()} of {BASE.sum()} questions of sums that " + (
        "the whole model can lose."
    )
    assert "with region = north" in found.describe()[1]
    assert len(found.by("noise")) == 1, "the rest of a group is not asked again"


def test_nothing_in_common_is_said_and_other_fields_are_length_place_and_margin():
    result = made()
    none, unsure = result.broken("L1"), result.broken("L2")
    nothing = "Nothing that they have in common is shown (6 groups by region, noise, question length, margin)."
    assert none.describe()[1:] == [nothing]
    (row,) = unsure.by("margin").itertuples()
    assert row.value == f"above {np.median(MARGIN[BASE].astype('float32')):.3g}" and row.p_adjusted < 0.05
    middle = np.median(LENGTH[BASE])
    (row,) = unsure.by("question length").itertuples()
    assert row.n == (LENGTH[BASE] > middle).sum()
    assert set(unsure.table["field"]) == {"region", "noise", "question length", "margin"}, "the place says the length"
    with pytest.raises(UserError, match="did you mean region"):
        none.by("regoin")


def test_conditions_that_are_asked_for_together_are_one_family():
    alone, together = made().broken("L0"), made().broken(["L0", "L1", "L2"])
    of_both = together.table[together.table["condition"] == "L0"].reset_index(drop=True)
    unadjusted = [column for column in alone.table if column != "p_adjusted"]
    pd.testing.assert_frame_equal(of_both[unadjusted], alone.table[unadjusted])
    assert (of_both["p_adjusted"] >= alone.table["p_adjusted"] - 0.01).all()
    assert of_both["p_adjusted"].sum() > alone.table["p_adjusted"].sum()


def test_fields_and_margins_are_saved_and_not_all_results_have_them(tmp_path):
    assert set(made(fields=False).broken("L0").table["field"]) == {"question length"}
    made().save(tmp_path / "new")
    found = dl.Result.load(tmp_path / "new").broken("L0")
    pd.testing.assert_frame_equal(found.table, made().broken("L0").table)


def test_the_page_of_answers_says_it_of_critical_parts(monkeypatch):
    (task,) = made().explore().data["tasks"]
    assert "with region = north" in task["common"]["L0"] and "**" not in task["common"]["L0"]
    monkeypatch.setenv("DEPTHLENS_NO_ANSWERS", "1")
    assert not made().explore().data["tasks"][0]["common"], "values are texts of documents"


def test_fields_and_margins_come_from_documents_and_likelihoods(lens, tmp_path):
    docs = [{"q": f"{i}?", "o": ["a", "b", "c"], "a": i % 3, "kind": "odd" if i % 2 else "even"} for i in range(4)]
    docs = [doc | {"own": f"only {i}", "long": "x" * 99, "sure": i > 1} for i, doc in enumerate(docs)]
    config = mini_tasks.choice("{{q}}", "acc", doc_to_choice="o", doc_to_target="a")
    mini_tasks.write_task(tmp_path, "kinds", {"test": docs}, **config)
    tasks = harness.load_tasks(["kinds"], include_path=tmp_path)
    (prepared,) = harness.prepare(lens, tasks)
    said = [json.loads(text) for text in prepared.asked["fields"]]
    assert said == [{"a": doc["a"], "kind": doc["kind"], "sure": doc["sure"]} for doc in docs]
    likelihoods = RNG.normal(size=(4, 3)).round(2)
    scores = prepared.score([LoglikelihoodAnswer(x, False) for x in likelihoods.ravel()])
    by_hand = [row[i % 3] - max(np.delete(row, i % 3)) for i, row in enumerate(likelihoods)]
    assert [score.margin for score in scores] == pytest.approx(by_hand)
    swept = dl.condition_sweep(lens, tasks, "L0", progress=False).docs
    assert swept["margin"].notna().tolist() == (swept["condition"] == "baseline").tolist()
