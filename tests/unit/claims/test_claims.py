"""The claims on made-up sweeps: from results with views and seeds to states, sentences, tables and the scorecard."""

import made_results
import numpy as np
import pytest
from made_results import FEW, FLAT, nested, result_of, same_documents, tokens, viewed

import depthlens as dl
from depthlens.claims import CLAIMS, Evidence, judge
from depthlens.claims.claims import CALIPER, matched
from depthlens.claims.verdicts import DECIDES
from depthlens.errors import UserError

pytestmark = pytest.mark.slow

LAYERS = np.arange(12)
EARLY, EVEN, LATE = np.where(LAYERS < 4, 0.5, 0.03), np.full(12, 0.2), np.where(LAYERS < 4, 0.03, 0.4)
LITTLE = np.where(LAYERS < 2, 0.5, 0.02)


def judged(claim, **evidence):
    """The verdict on one claim: its state, and its parts that decide."""
    found = judge(Evidence(**evidence), claims=claim)
    parts = found.parts[found.parts["view"] == DECIDES].reset_index(drop=True)
    return found.states[claim], parts


def both(loss=FEW, **options):
    return {"letters": viewed(loss, "letters", **options), "continuation": viewed(loss, "facts", **options)}


@pytest.mark.parametrize(("loss", "state"), [(FEW, "shown"), (FLAT, "reversed")])
def test_few_layers_are_critical_or_all_are(loss, state):
    found, parts = judged("C1", **both(loss, seeds=3))
    assert found == state, list(parts["sentence"])
    assert len(parts) == 4 and set(parts["n"]) == {150}
    effect = judged("C1", **both(loss))[1]["effect"]
    right = 0.9 - 0.25
    assert effect[0] == pytest.approx(loss[2:].mean() * 0.9 / right, abs=0.06), "six standard errors"


def test_measured_floors_are_used_and_stand_beside_those_by_form():
    guessed, measured = (judged("C1", **both(EARLY, broken=broken))[1] for broken in (None, 0.5))
    assert "the floor of letters is 0.25 by its form; it was not measured" in guessed["notes"][0]
    by_hand = viewed(EARLY, "letters", broken=0.5)[0].primary().summary.set_index("condition")["value"]
    broken = by_hand["L0-5"]
    assert f"a broken model scores {broken:.2f} on letters (0.25 by its form)" in measured["notes"][0]
    loss = np.mean([by_hand["baseline"] - by_hand[f"L{i}"] for i in range(2, 12)])
    assert measured["effect"][0] == pytest.approx(loss / (by_hand["baseline"] - broken))
    assert measured["effect"][0] > guessed["effect"][0]


def written(loss, task="letters_w", **options):
    """The same questions with answers that are written."""
    made = viewed(loss, task, info={"floor": 0.0}, chance=None, **options)
    return [same_documents(sweep) for sweep in made]


@pytest.mark.parametrize(("loss", "state"), [(EVEN, "shown"), (LITTLE, "smaller"), (np.zeros(12), "reversed")])
def test_written_answers_need_deep_layers_that_chosen_ones_do_not(loss, state):
    chosen = 0.15 if state == "reversed" else 0.0
    letters = [same_documents(x) for x in viewed(np.where(LAYERS < 2, 0.5, chosen), "letters")]
    options = [same_documents(x) for x in viewed(np.full(12, chosen), "options", n=140)]
    solved = {"reasoning": written(loss, "sums", n=140), "reasoning_continuation": options}
    found, parts = judged("C2", letters=letters, generation=written(loss), **solved)
    assert found == state, list(parts["sentence"])
    assert list(parts["tasks"]) == ["letters_w, letters", "sums, options"] and list(parts["n"]) == [150, 140]


def test_other_questions_are_not_compared_nor_tasks_at_chance():
    letters = [same_documents(x) for x in viewed(FEW, "letters")]
    _, parts = judged("C2", letters=viewed(FEW, "letters"), generation=viewed(FEW, "other", chance=0.0))
    assert "ask other questions" in parts["sentence"][0] and "has no reasoning and no" in parts["sentence"][1]
    guess = [dl.concat([letters[0], *viewed(FEW, "guess", accuracy=0.25)])]
    assert judged("C1", letters=guess, continuation=guess)[1]["tasks"][0] == "letters acc"
    found, parts = judged("C1", **both(accuracy=0.25))
    assert found == "open" and "is not shown to be above chance (" in parts["sentence"][0]


def depth(**of_task):
    """What the comparisons of depth take: sweeps by their field, and all of them in nats."""
    return {**{field: viewed(FEW, field, views=("",)) for field in of_task}, "tokens": tokens(of_task)}


SHALLOW = {"continuation": EARLY, "retrieval": EARLY, "text": EVEN, "long_text": EVEN}
DEEP = {"reasoning": LATE, "copying": EARLY, "reasoning_choice": LATE, "continuation": EARLY}


@pytest.mark.parametrize(
    ("claim", "losses", "state"),
    [
        ("C3", SHALLOW, "shown"),
        ("C3", SHALLOW | {"text": EARLY}, "smaller"),
        ("C3", SHALLOW | {"retrieval": LATE}, "reversed"),
        ("C4", DEEP, "shown"),
        ("C4", DEEP | {"copying": LATE}, "smaller"),
        ("C4", DEEP | {"continuation": LATE, "reasoning_choice": EARLY}, "reversed"),
    ],
)
def test_depth_is_compared_on_documents_with_matched_log_odds(claim, losses, state):
    found, parts = judged(claim, **depth(**losses))
    assert found == state, list(parts["sentence"])
    assert parts["n"].between(100, 149).all(), "those that have no partner are left out"


def test_a_document_has_one_partner_that_is_as_likely():
    rng = np.random.default_rng(0)
    own, other = (
        made_results.profile(base, np.zeros((len(base), 12)), None, documents=tuple(f"{name}{x}" for x in base))
        for name, base in (("a", rng.normal(0, 1, 200)), ("b", rng.normal(0.5, 1, 300)))
    )
    a, b = matched(own, other)
    assert len(set(a.documents)) == len(set(b.documents)) == len(a.base) == len(b.base) >= 100
    assert abs(np.sort(a.base) - np.sort(b.base)).max() < 2 * CALIPER and a.documents[0][0] == "a"
    far = made_results.profile(own.base + 9, own.values, None)
    with pytest.raises(UserError, match="of t and t with matched log-odds, .* take at least 100"):
        matched(own, far)


def distilled(moved=LATE, gain=0.5, **other):
    reasoning = result_of(nested({"baseline": 0.9, "L0": 0.9}, 240), task="sums", model="m", n_layers=12)
    recovers = {"baseline": 0.3, "L0-3@donor": 0.3, "L4-7@donor": 0.3 + gain * 0.6, "L0-11@donor": 0.9}
    return {
        **depth(continuation=EARLY, reasoning_choice=moved),
        "reasoning": reasoning,
        "control": tokens({"continuation": EARLY, "reasoning_choice": EARLY}, model="control"),
        "transplants": result_of(nested(recovers, 240), task="sums", model="base", n_layers=12),
    } | other


def test_distillation_moves_losses_and_transplants_recover_the_gap():
    found, parts = judged("C6", **distilled())
    assert found == "shown", list(parts["sentence"])
    recovered = parts.iloc[1]
    assert recovered.effect == pytest.approx(0.5, abs=0.02) and recovered.n == 120, "half of the documents have chosen"
    assert recovered.notes == "the best is L4-7@donor", "all layers are the distilled model itself"
    assert list(judged("C6", **distilled(moved=EARLY))[1]["state"]) == ["smaller", "shown"]
    assert list(judged("C6", **distilled(gain=0.1))[1]["state"]) == ["shown", "smaller"]
    alike = tokens({"continuation": EARLY, "reasoning_choice": LATE}, model="control")
    assert judged("C6", **distilled(control=alike))[1]["state"][0] == "smaller", "A16: every fine-tune moves them so"
    whole = result_of(nested({"baseline": 0.3, "L0-11@donor": 0.9}, 240), task="sums", model="base", n_layers=12)
    assert "takes all layers" in judged("C6", **distilled(transplants=whole))[1]["sentence"][1]
    other = result_of(nested({"baseline": 0.3, "L0-3@donor": 0.9}, 260), task="sums", model="base", n_layers=12)
    with pytest.raises(UserError, match="alone has it; run both alike"):
        judged("C6", **distilled(transplants=other))


def test_the_trend_has_its_tasks_beside():
    found = judge(Evidence(**both(EARLY), retrieval=viewed(EVEN, "kv")), claims="C7")
    assert found.states == {"C7": "shown"}, found.describe()
    beside = found.parts.set_index("view")["effect"]
    assert {"letters", "facts", "kv", "first token spared", "mean ablation"} <= set(beside.index)
    assert beside[DECIDES] == pytest.approx(beside[["letters", "facts", "kv"]].mean())
    assert "between tasks the difference has a standard deviation of" in found.table["notes"][0]
    assert judged("C7", letters=viewed(LATE, "letters"))[0] == "reversed"
    shallow = viewed(np.full(6, 0.1), "letters")
    assert "no layer of the first third" in judged("C7", letters=shallow)[1]["sentence"][0], "L0 and L1 are all of it"


def test_views_and_seeds_stand_beside_and_take_nothing_away():
    found = judge(Evidence(**both(views=("",), seeds=2)), claims="C1").parts
    first = found[found["part"] == "a"].set_index("view")
    assert list(first.index) == [DECIDES, "first token spared", "mean ablation", "few-shot seed 1", "few-shot seed 2"]
    assert first.loc[DECIDES, "state"] == "shown" and "sweep of layers[1:]" in first.loc["first token spared", "why"]
    assert first.loc[DECIDES, "effect"] == pytest.approx(first["effect"].iloc[-2:].mean())


def test_missing_evidence_says_what_to_give():
    found = judge(Evidence())
    assert found.states == {claim.id: "open" for claim in CLAIMS} and found.headline == "7 claims: 7 open."
    for claim, row in zip(CLAIMS, found.table.itertuples(), strict=True):
        assert all(f"no {field}" in row.sentence for field in claim.needs) and row.n == 0 and np.isnan(row.effect)
    some = judge(Evidence(**both()), claims=["C7", "C1"])
    assert list(some.states) == ["C1", "C7"] and some.describe()[1].startswith("C1a shown: Scored by letters, ")


def test_too_few_questions_are_open_and_say_so():
    found, parts = judged("C1", **both(n=99))
    assert found == "open" and np.isfinite(parts["effect"]).all()
    assert parts["sentence"][0].endswith("(n = 99), but 99 questions are too few; take at least 100.")
    thrice = {name: same_documents(*sweeps, times=3) for name, sweeps in both().items()}
    assert "50 questions are too few" in judged("C1", **thrice)[1]["sentence"][0]


def test_evidence_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="models m, other"):
        Evidence(letters=viewed(FLAT), generation=viewed(FLAT, model="other"))
    with pytest.raises(UserError, match="2 and 3 few-shot seeds"):
        judge(Evidence(letters=viewed(FLAT, seeds=2), generation=viewed(FLAT, seeds=3)), claims="C2")
    blocks = made_results.sweep({f"L{i}-{i + 1}": 0.0 for i in range(8)}, chance=0.25)
    with pytest.raises(UserError, match="sweep of layers"):
        judge(Evidence(letters=blocks, continuation=blocks), claims="C1")
