"""The claims on made-up sweeps: from results to the states of both rows, sentences and tables."""

import made_results
import numpy as np
import pytest
from made_results import FEW, FLAT, nested, result_of, same_documents, tokens, viewed
from refusals import refused

import depthlens as dl
from depthlens.claims import CLAIMS, Evidence, judge
from depthlens.claims.measures import balanced, excess, log_odds
from depthlens.claims.parts import CONTROLLED, STUDY
from depthlens.claims.verdicts import DECIDES

pytestmark = pytest.mark.slow

LAYERS = np.arange(12)
EARLY, EVEN, LATE = np.where(LAYERS < 4, 0.5, 0.03), np.full(12, 0.2), np.where(LAYERS < 4, 0.03, 0.4)
LITTLE = np.where(LAYERS < 2, 0.5, 0.02)


def judged(claim, **evidence):
    """The verdict on one claim: the states of both rows, and its parts that decide."""
    found = judge(Evidence(**evidence), claims=claim)
    parts = found.parts[found.parts["view"] == DECIDES].reset_index(drop=True)
    return (found.states[claim][STUDY], found.states[claim][CONTROLLED]), parts


def of_row(parts, row):
    return parts[parts["row"] == row].reset_index(drop=True)


def both(loss=FEW, **options):
    return {"letters": viewed(loss, "letters", **options), "continuation": viewed(loss, "facts", **options)}


@pytest.mark.parametrize(("loss", "state"), [(FEW, "shown"), (FLAT, "reversed")])
def test_few_layers_are_critical_or_all_are(loss, state):
    states, parts = judged("C1", **both(loss))
    assert states == (state, state), list(parts["sentence"])
    assert len(parts) == 8 and set(parts["n"]) == {150}
    absolute, relative = parts["effect"][:2]
    assert relative == pytest.approx(absolute / (0.9 - 0.25), rel=0.1), "of what is right beyond guessing"


def test_most_layers_are_three_quarters_of_them():
    """One of ten later layers may cost everything; four may not."""
    one, four = np.where(LAYERS < 2, 0.9, 0.0), np.where(LAYERS < 2, 0.9, 0.0)
    one[5], four[5:9] = 0.9, 0.9
    assert judged("C1", **both(one))[0] == ("shown", "shown")
    assert judged("C1", **both(four))[0] == ("reversed", "reversed")


def test_measured_floors_are_used_and_stand_beside_those_by_form():
    guessed, measured = (judged("C1", **both(EARLY, broken=broken))[1] for broken in (None, 0.5))
    assert "the floor of letters is 0.25 by its form; it was not measured" in guessed["notes"][0]
    by_hand = viewed(EARLY, "letters", broken=0.5).primary().summary.set_index("condition")["value"]
    broken = by_hand["L0-5"]
    assert f"a broken model scores {broken:.2f} on letters (0.25 by its form)" in measured["notes"][0]
    loss = sorted(by_hand["baseline"] - by_hand[f"L{i}"] for i in range(2, 12))
    near = np.mean(loss[5:9])  # ranks 6 to 9 of ten
    assert measured["effect"][0] == pytest.approx(near)
    assert measured["effect"][1] == pytest.approx(near / (by_hand["baseline"] - broken))


def written(loss, task="letters_w", **options):
    """The same questions with answers that are written."""
    return same_documents(viewed(loss, task, info={"floor": 0.0}, chance=None, **options))


@pytest.mark.parametrize(("loss", "state"), [(EVEN, "shown"), (LITTLE, "smaller"), (np.zeros(12), "reversed")])
def test_written_answers_need_deep_layers_that_chosen_ones_do_not(loss, state):
    chosen = 0.15 if state == "reversed" else 0.0
    letters = same_documents(viewed(np.where(LAYERS < 2, 0.5, chosen), "letters"))
    options = same_documents(viewed(np.full(12, chosen), "options", n=140))
    solved = {"reasoning": written(loss, "sums", n=140), "reasoning_continuation": options}
    states, parts = judged("C2", letters=letters, generation=written(loss), texts=texts(0.4)[0], **solved)
    assert states == (state, state), list(parts["sentence"])
    assert list(parts["tasks"][::2]) == ["letters, letters_w", "options, sums", ""]
    assert list(parts["n"][::2]) == [150, 140, 48]


def test_equal_answers_under_two_floors_do_not_differ():
    """W1: each loss divided by its own floor would be reversed."""
    made = (viewed(np.full(12, 0.3), task, n=400, **o) for task, o in WRITTEN_ALIKE.items())
    letters, same = map(same_documents, made)
    parts = judged("C2", letters=letters, generation=same)[1]
    assert list(parts["effect"][:2]) == [0.0, 0.0] and set(parts["state"][:2]) == {"smaller"}


WRITTEN_ALIKE = {"letters": {}, "letters_w": {"info": {"floor": 0.0}, "chance": None}}


def texts(loss):
    """Texts of which so many more 4-grams occurred before without a layer beyond the first third; and their values."""
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 0.2, 48)
    values = {f"L{i}": np.clip(base + loss * (i > 3) + rng.normal(0, 0.02, 48), 0, 1) for i in range(12)}
    about = {"task": "free_text", "metric": "repetition", "chance": None, "better": False, "n_layers": 12, "model": "m"}
    return result_of({"baseline": base} | values, **about), base, values


@pytest.mark.parametrize(("loss", "state"), [(0.4, "shown"), (0.02, "smaller")])
def test_texts_that_repeat_themselves_without_deep_layers_are_no_longer_coherent(loss, state):
    found, base, values = texts(loss)
    parts = judged("C2", texts=found)[1]
    absolute, relative = parts["effect"][4:]
    assert list(parts["state"][4:]) == [state, state], list(parts["sentence"])
    gain = np.mean([values[f"L{i}"] - base for i in range(4, 12)])
    assert absolute == pytest.approx(gain) and relative == pytest.approx(gain / (1 - base.mean()))


def test_other_questions_are_not_compared_nor_tasks_at_chance():
    letters = same_documents(viewed(FEW, "letters"))
    _, parts = judged("C2", letters=viewed(FEW, "letters"), generation=viewed(FEW, "other", chance=0.0))
    both_said = parts["sentence"][0], parts["sentence"][2]
    assert "ask other questions" in both_said[0] and "no reasoning, no reasoning_continuation" in both_said[1]
    guess = dl.concat([letters, viewed(FEW, "guess", accuracy=0.25)])
    assert judged("C1", letters=guess, continuation=guess)[1]["tasks"][0] == "letters"
    states, parts = judged("C1", **both(accuracy=0.25))
    assert states == ("open", "open") and "is not shown to be above chance (" in parts["sentence"][0]


def depth(**of_task):
    """What the comparisons of depth take: sweeps by their field, and all of them in nats."""
    return {**{field: viewed(FEW, field) for field in of_task}, "tokens": tokens(of_task)}


SHALLOW = {"continuation": EARLY, "retrieval": EARLY, "text": EVEN, "long_text": EVEN}
DEEP = {"reasoning": LATE, "copying": EARLY, "reasoning_choice": LATE, "continuation": EARLY}


@pytest.mark.parametrize(("claim", "losses", "state"), [
    ("C3", SHALLOW, "shown"), ("C3", SHALLOW | {"text": EARLY}, "smaller"),
    ("C3", SHALLOW | {"retrieval": LATE}, "reversed"),
    ("C4", DEEP, "shown"), ("C4", DEEP | {"copying": LATE}, "smaller"),
    ("C4", DEEP | {"continuation": LATE, "reasoning_choice": EARLY}, "reversed"),
])  # fmt: skip
def test_depth_is_compared_on_documents_that_are_equally_easy(claim, losses, state):
    states, parts = judged(claim, **depth(**losses))
    assert states[1] == state, list(parts["sentence"])
    controlled = of_row(parts, CONTROLLED)
    assert controlled["n"].eq(150).all(), "every document counts"
    assert controlled["notes"].str.contains("by the prompts whose losses are judged").all()
    again = of_row(judged(claim, **depth(**losses), margins=tokens(losses))[1], CONTROLLED)
    assert not again["notes"].str.contains("by the prompts").any()


@pytest.mark.parametrize(("loss", "state"), [(EARLY, "shown"), (EVEN, "smaller"), (LATE, "reversed")])
def test_the_study_calls_shallow_what_holds_more_than_its_share(loss, state):
    found = judged("C3", continuation=viewed(loss, "facts"), retrieval=viewed(EARLY, "kv"))[1]
    assert found["state"][0] == state, list(found["sentence"])
    by_layer = viewed(loss, "facts").losses("facts").select([f"L{i}" for i in range(12)]).loss.mean(0)
    assert found["effect"][0] == pytest.approx(by_layer[:4].sum() / by_layer.sum() * 3 - 1)


def test_weights_make_both_sides_equally_easy():
    rng = np.random.default_rng(0)
    base = {"a": rng.normal(0, 1, 200), "b": rng.normal(0.7, 1.5, 300)}
    named = {name: {"documents": tuple(f"{name}{i}" for i in range(len(x)))} for name, x in base.items()}
    own, other = (made_results.profile(x, np.zeros((len(x), 12)), None, **named[name]) for name, x in base.items())
    easy = [dict(zip(side.documents, side.base, strict=True)) for side in (own, other)]
    a, b = balanced(own, other, easy)
    weights = [side.base / x for side, x in zip((a, b), base.values(), strict=True)]
    for power in (1, 2):
        means = [np.average(x**power, weights=w) for x, w in zip(base.values(), weights, strict=True)]
        assert means[0] == pytest.approx(means[1], abs=1e-6), "overlap weights balance what the regression has"
    assert all(w.mean() == pytest.approx(1) for w in weights)
    far = [easy[0], {name: x + 9 for name, x in easy[1].items()}]
    refused("are not equally easy: .* take at least 20, or easier or harder tasks", balanced, own, other, far)


def test_documents_that_are_too_sure_are_left_out():
    """W2: float32 does not tell 15 log-odds from 20."""
    likely = np.repeat([1.0, 5.0, 15.5, 40.0], 20)  # negative logarithms of what is left to certainty
    found = log_odds(made_results.profile(np.log1p(-np.exp(-likely)), np.tile(np.log(0.5), (80, 12)), None))
    assert len(found.base) == 40 and found.loss == pytest.approx(np.repeat(found.base[:, None], 12, 1))
    assert excess(found).value == pytest.approx(0.0)


def distilled(moved=LATE, gain=0.5, **other):
    reasoning = result_of(nested({"baseline": 0.9, "L0": 0.9}, 240), task="sums", model="m", n_layers=12)
    recovers = {"baseline": 0.3, "L0-3@donor": 0.3, "L4-7@donor": 0.3 + gain * 0.6, "L0-11@donor": 0.9}
    control = tokens({"continuation": EARLY, "reasoning_choice": EARLY}, model="control")
    transplants = result_of(nested(recovers, 240), task="sums", model="base", n_layers=12)
    own = {"reasoning": reasoning, "control": control, "transplants": transplants}
    return depth(continuation=EARLY, reasoning_choice=moved) | own | other


def test_distillation_moves_losses_and_transplants_recover_the_gap():
    base = tokens({"continuation": EARLY, "reasoning_choice": EARLY}, model="base")
    states, parts = judged("C6", **distilled(), base=base)
    assert states == ("shown", "shown"), list(parts["sentence"])
    assert list(parts["part"]) == ["a", "b", "c", "d"]
    gained, recovered = parts.iloc[2], parts.iloc[3]
    assert recovered.effect == pytest.approx(0.5, abs=0.02) and recovered.n == 240, "either half chooses and tests"
    assert gained.effect == pytest.approx(0.3, abs=0.02)
    assert recovered.notes == "the best is L4-7@donor", "all layers are the distilled model itself"
    assert list(of_row(judged("C6", **distilled(moved=EARLY))[1], CONTROLLED)["state"]) == ["smaller", "shown"]
    assert list(of_row(judged("C6", **distilled(gain=0.1))[1], CONTROLLED)["state"]) == ["shown", "smaller"]
    alike = tokens({"continuation": EARLY, "reasoning_choice": LATE}, model="control")
    assert of_row(judged("C6", **distilled(control=alike))[1], CONTROLLED)["state"][0] == "smaller", "A16"
    whole = result_of(nested({"baseline": 0.3, "L0-11@donor": 0.9}, 240), task="sums", model="base", n_layers=12)
    assert "takes all layers" in judged("C6", **distilled(transplants=whole))[1]["sentence"][2]
    other = result_of(nested({"baseline": 0.3, "L0-3@donor": 0.9}, 260), task="sums", model="base", n_layers=12)
    refused("alone has it; run both alike", judged, "C6", **distilled(transplants=other))


def test_the_trend_has_its_tasks_beside():
    early = {"letters": viewed(EARLY, "letters"), "continuation": viewed(EARLY, "facts")}
    found = judge(Evidence(**early, retrieval=viewed(EVEN, "kv"), tokens=tokens({"facts": EARLY})), claims="C7")
    assert [*found.states["C7"].values()] == ["shown", "shown"], found.describe()
    beside = found.parts[found.parts["part"] == "a"].set_index("view")["effect"]
    assert {"letters", "facts", "kv"} <= set(beside.index)
    assert beside[DECIDES] == pytest.approx(beside[["letters", "facts", "kv"]].mean())
    assert judged("C7", letters=viewed(LATE, "letters"))[0][0] == "reversed"
    late = {"continuation": viewed(LATE, "facts"), "tokens": tokens({"facts": LATE})}
    assert judged("C7", **late)[0] == ("reversed", "reversed")


def test_depth_usage_varies_where_tasks_and_protocols_differ():
    kinds = {"early": EARLY, "late": LATE}
    letters, generation = same_documents(viewed(EARLY, "letters")), written(LATE)
    tasks = {"continuation": viewed(EARLY, "early"), "retrieval": viewed(LATE, "late"), "tokens": tokens(kinds)}
    states, parts = judged("C8", letters=letters, generation=generation, **tasks)
    assert states == ("shown", "shown"), list(parts["sentence"])
    alike = {"continuation": viewed(EVEN, "early"), "retrieval": viewed(EVEN, "late")}
    alike |= {"tokens": tokens({"early": EVEN, "late": EVEN})}
    letters, generation = same_documents(viewed(EVEN, "letters")), written(EVEN)
    states, parts = judged("C8", letters=letters, generation=generation, **alike)
    assert states == ("smaller", "smaller"), list(parts["sentence"])
    # a task of letters and one of texts differ in protocol, too
    _, parts = judged("C8", letters=viewed(EARLY, "letters"), continuation=viewed(LATE, "facts"))
    assert "there are no two" in parts["sentence"].iloc[0]


def test_missing_evidence_says_what_to_give():
    found = judge(Evidence())
    assert all({*rows.values()} == {"open"} for rows in found.states.values()) and len(found.states) == len(CLAIMS)
    assert found.headline == "8 claims, 0 decided: as the study says it, 8 open; controlled, 8 open."
    for claim, row in zip(CLAIMS, found.table.itertuples(), strict=False):
        assert row.n == 0 and np.isnan(row.effect) and "not measured" in row.sentence, claim
    some = judge(Evidence(**both()), claims=["C7", "C1"])
    assert list(some.states) == ["C1", "C7"]
    assert some.describe()[1].startswith("C1a (as the study says it) shown: Scored by letters, ")
    assert some.decided == ["C1"]


def test_a_short_task_is_left_out_and_opens_nothing_else():
    short = dl.concat([viewed(FEW, "letters"), viewed(FEW, "short", n=19)])
    states, parts = judged("C1", letters=short, continuation=viewed(FEW, "facts"))
    assert states == ("shown", "shown") and parts["tasks"][0] == "letters"
    assert "short is left out: 19 questions are too few; take at least 20" in parts["notes"][0]
    thrice = {name: same_documents(sweep, times=10) for name, sweep in both().items()}
    assert "15 questions are too few" in judged("C1", **thrice)[1]["sentence"][0]


def test_evidence_that_does_not_fit_is_refused():
    refused("models m, other", Evidence, letters=viewed(FLAT), generation=viewed(FLAT, model="other"))
    blocks = made_results.sweep({f"L{i}-{i + 1}": 0.0 for i in range(8)}, chance=0.25)
    refused("sweep of layers", judge, Evidence(letters=blocks, continuation=blocks), claims="C1")
