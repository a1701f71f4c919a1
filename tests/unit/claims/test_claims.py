"""The study's claims on synthetic sweeps where each is true, false, at its threshold, unanswerable or unasked."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from made_claims import EARLY, FEW, FIRST, FLAT, HALF, LATE, N_LAYERS, OWN, THIRD, heads, result, sweep, transplants

from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result
from depthlens.claims import verdicts
from depthlens.claims.verdicts import CLAIMS, Evidence, heterogeneity, judge
from depthlens.errors import UserError
from depthlens.plots.claims import CHIPS, scorecard

N_BOOT = 200


def verdict(claim, **evidence):
    return {v.claim.id: v for v in judge(Evidence(**evidence), n_boot=400)}[claim]


def distilled(base, donor, share, n=200):
    """Evidence for C6: profiles of both models, and what the best transplant recovers."""
    own, _ = transplants(share, n=n)
    hardness = np.random.default_rng([0, 9]).standard_normal(n)
    options = {"n": n, "hardness": hardness, "chance": None}
    pair = (sweep(base, "reason", base=0.3, **options), sweep(donor, "reason", 1, model="d", base=0.7, **options))
    return {"pairs": pair, "transplants": own}


SHALLOW, DEEP = np.where(THIRD == 0, 0.2, 0.01), np.where(THIRD == 2, 0.25, 0.0)
HARM = result(
    {"reason": [0.25] * 6},
    n=200,
    base=0.3,
    chance=None,
    names=[f"L{i}@donor" for i in range(6)],
    hardness=np.random.default_rng([0, 9]).standard_normal(200),
)
CASES = [
    ("C1", "supported", {"likelihood": sweep(FEW, n=200)}),
    ("C1", "contradicted", {"likelihood": sweep(FLAT)}),
    ("C1", "undecided", {"likelihood": sweep(np.where(FIRST, 0.55, 0.065), n=400)}),
    ("C1", "cannot judge", {"likelihood": sweep(FEW, base=0.25, n=20)}),
    ("C2", "supported", {"likelihood": sweep(FEW), "generation": sweep(LATE, "gen", 1, chance=None)}),
    ("C2", "contradicted", {"likelihood": sweep(LATE), "generation": sweep(FEW, "gen", 1, chance=None)}),
    ("C2", "undecided", {"likelihood": sweep(HALF, n=400), "generation": sweep(HALF, "gen", 1, n=400)}),
    ("C2", "cannot judge", {"likelihood": sweep(FEW), "generation": sweep(FEW, base=0.25)}),
    ("C3", "supported", {"knowledge": sweep(EARLY), "retrieval": sweep(EARLY, "kv", 1)}),
    ("C3", "contradicted", {"knowledge": sweep(EARLY), "retrieval": sweep(LATE, "kv", 1)}),
    ("C3", "undecided", {"knowledge": sweep(HALF, n=400), "retrieval": sweep(EARLY, "kv", 1)}),
    ("C3", "cannot judge", {"knowledge": sweep(EARLY), "retrieval": sweep(np.zeros(N_LAYERS), "kv", 1)}),
    ("C4", "supported", {"knowledge": sweep(EARLY), "reasoning": sweep(LATE, "gsm", 1)}),
    ("C4", "contradicted", {"knowledge": sweep(LATE), "reasoning": sweep(EARLY, "gsm", 1)}),
    ("C4", "undecided", {"knowledge": sweep(HALF, n=400), "reasoning": sweep(HALF, "gsm", 1, n=400)}),
    ("C4", "cannot judge", {"knowledge": sweep(EARLY), "reasoning": sweep(LATE, "gsm", base=0.25)}),
    ("C5", "supported", {"heads": heads({"retrieval": 0.5, "reasoning": 0.5}), "head_tasks": OWN}),
    ("C5", "contradicted", {"heads": heads({"retrieval": 0.5, "reasoning": -0.19}), "head_tasks": OWN}),
    ("C5", "undecided", {"heads": heads({"retrieval": 0.5, "reasoning": 0.0}, n=400), "head_tasks": OWN}),
    ("C5", "cannot judge", {"heads": heads({"retrieval": 0.5, "reasoning": 0.5}, n_draws=20), "head_tasks": OWN}),
    ("C6", "supported", distilled(SHALLOW, DEEP, 0.9)),
    ("C6", "contradicted", distilled(SHALLOW, DEEP, 0.9) | {"transplants": HARM}),
    ("C6", "cannot judge", distilled(np.zeros(N_LAYERS), DEEP, 0.9)),
    ("C7", "supported", {"knowledge": sweep(EARLY)}),
    ("C7", "contradicted", {"knowledge": sweep(LATE), "reasoning": sweep(LATE, "gsm", 1)}),
    ("C7", "undecided", {"knowledge": sweep(FLAT, n=400)}),
    ("C7", "cannot judge", {"knowledge": sweep(EARLY, base=0.25)}),
]


@pytest.mark.parametrize(("claim", "wanted", "evidence"), CASES, ids=[f"{c}-{w}" for c, w, _ in CASES])
def test_a_claim_gets_the_verdict_that_the_truth_asks_for(claim, wanted, evidence):
    found = verdict(claim, **evidence)
    assert found.verdict == wanted, found.sentence
    assert "\n" not in found.sentence and found.sentence.startswith(f"{claim} {wanted}: ")


def test_missing_evidence_says_what_to_run():
    found = judge(Evidence(), n_boot=200)
    assert [v.claim.id for v in found] == [f"C{i}" for i in range(1, 8)] == [c.id for c in CLAIMS]
    assert {v.verdict for v in found} == {"cannot judge"}
    for v in found:
        assert v.effect is v.ci_low is v.ci_high is v.needed is None and v.n == 0
        assert all(f"({field}=)" in v.sentence for field in v.claim.needs)
    one = verdict("C4", knowledge=sweep(EARLY))
    assert "(reasoning=)" in one.sentence and "(knowledge=)" not in one.sentence
    assert verdict("C5", heads=heads({"retrieval": 0.5}), head_tasks={"retrieval": "retrieval_task"}).effect is None
    assert verdicts.headline(found) == "0 of 7 claims supported, 0 contradicted, 0 undecided, 7 cannot be judged."


def test_some_claims_are_judged_alone():
    evidence = Evidence(knowledge=sweep(EARLY), reasoning=sweep(LATE, "gsm", 1))
    every = judge(evidence, n_boot=200)
    (c4,) = judge(evidence, claims="C4", n_boot=200)
    assert c4.sentence == every[3].sentence
    two = judge(evidence, claims=["C4", "C2"], n_boot=200)
    assert [v.claim.id for v in two] == ["C2", "C4"] and two.describe()[0].startswith("1 of 2 claims supported")
    with pytest.raises(UserError, match="unknown claim 'C8'"):
        judge(evidence, claims=["C8"])


def test_tasks_at_chance_are_left_out_by_name():
    both = result({"good": EARLY, "guess": EARLY}, seed=4)
    docs = both.docs.copy()
    docs.loc[docs["task"] == "guess", "value"] = (docs.loc[docs["task"] == "guess", "doc_id"] % 4 == 0).astype(float)
    found = verdict("C7", knowledge=Result(docs, both.record))
    assert found.verdict == "supported" and found.tasks == ("good acc",)
    assert "left out: guess: at chance" in found.sentence
    assert (
        "guess: at chance (n = 40)"
        in verdict("C1", likelihood=Result(docs, both.record).select(tasks="guess")).sentence
    )


def test_several_tasks_count_alike_and_differences_are_told():
    evidence = Evidence(knowledge=result({"a": EARLY, "b": LATE}))
    c7 = judge(evidence, n_boot=400)[6]
    alone = [judge(Evidence(knowledge=evidence.knowledge.select(tasks=t)), n_boot=400)[6].effect for t in "ab"]
    assert c7.effect == pytest.approx(np.mean(alone)) and c7.tasks == ("a acc", "b acc")
    said = heterogeneity(evidence, n_boot=400)
    assert "provably differs between a acc and b acc" in said and f"{alone[0]:+.2f} (a acc)" in said
    same = heterogeneity(Evidence(knowledge=result({"a": FLAT, "b": FLAT})), n_boot=400)
    assert "does not provably differ" in same
    assert heterogeneity(Evidence(knowledge=sweep(FLAT))).startswith("Only 1 task can be judged")


def test_numbers_are_seeded_and_make_a_table():
    evidence = Evidence(likelihood=sweep(FLAT), knowledge=sweep(HALF))
    first, again, other = (judge(evidence, seed=s, n_boot=400) for s in (1, 1, 2))
    a, b, c = (x.table for x in (first, again, other))
    pd.testing.assert_frame_equal(a, b)
    assert not a["ci_low"].equals(c["ci_low"])
    assert list(a["claim"]) == [f"C{i}" for i in range(1, 8)]
    assert np.isnan(a["effect"][1]) and a["effect"].dtype == float and str(a["needed"].dtype) == "Int64"
    assert first[0].ci_low <= first[0].effect <= first[0].ci_high


def test_the_tables_of_a_real_removal_curve_are_understood():
    rng = np.random.default_rng(0)
    n, n_draws, n_heads = 60, 40, 41
    names = ["baseline", *(f"L0.H{h}" for h in range(n_heads))]
    values = rng.random((n, len(names))) < 0.8
    values[:, 1] = rng.random(n) < 0.2  # L0.H0 is what the list holds
    task, other = (f"{name}_task" for name in ("retrieval", "reasoning"))
    docs = pd.concat(
        pd.DataFrame({"condition": c, "doc_id": range(n), "value": v.astype(float), "task": t})
        for t in (task, other)
        for c, v in zip(names, values.T, strict=True)
    ).assign(model="m", metric="acc", layer=0, head=None, response="")
    metrics = {"metrics": {"acc": {"higher_is_better": True, "chance": None}}}
    record = {
        "tasks": {task: metrics, other: metrics},
        "k": [1],
        "n_draws": n_draws,
        "lists": {name: [(0, 0)] for name in OWN},
        "draws": {name: [[(0, h)] for h in range(1, n_heads)] for name in OWN},
    }
    tests = heads({"retrieval": 0.6, "reasoning": 0.6}).tests
    curve = RemovalCurve(pd.DataFrame(), pd.DataFrame(), tests, Result(docs, record), record)
    found = verdict("C5", heads=curve, head_tasks=OWN)
    assert found.verdict == "supported" and found.n == n
    assert found.effect == pytest.approx(values[:, 2:].mean() - values[:, 1].mean())
    row = curve.excess.iloc[0]
    assert found.ci_low < row.ci_low and row.ci_high < found.ci_high, "two lists share the error rate"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"likelihood": sweep(FLAT), "generation": sweep(FLAT, model="other")}, "models m, other"),
        ({"heads": heads({"retrieval": 0.0})}, "'retrieval'"),
        ({"heads": heads({"retrieval": 0.0}), "head_tasks": {"retrieval": "kv"}}, "retrieval: kv"),
    ],
)
def test_evidence_that_does_not_fit_is_refused(options, said):
    with pytest.raises(UserError, match=said):
        Evidence(**options)


def test_too_few_draws_and_sweeps_of_other_things_are_refused():
    with pytest.raises(UserError, match="n_boot 50"):
        judge(Evidence(), n_boot=50)
    own, _ = transplants(0.5)
    with pytest.raises(UserError, match="layer sweep"):
        judge(Evidence(likelihood=own), n_boot=200)


def test_the_scorecard_reads_without_colour():
    found = judge(Evidence(likelihood=sweep(FLAT), knowledge=sweep(EARLY), retrieval=sweep(LATE, "kv", 1)), n_boot=200)
    figure = scorecard(found)
    figure.draw_without_rendering()
    texts = [t.get_text() for ax in figure.axes for t in ax.texts]
    for v in found:
        assert v.claim.id in texts
        assert f"{CHIPS[v.verdict][0]} {v.verdict}" in texts
    judged = [v for v in found if v.effect is not None]
    lines = [line for ax in figure.axes for line in ax.get_lines()]
    thresholds = [line.get_xdata()[0] for line in lines if line.get_gid() == "threshold"]
    assert thresholds == [v.threshold for v in judged]
    intervals = [tuple(line.get_xdata()) for line in lines if line.get_gid() == "interval"]
    assert intervals == [(v.ci_low, v.ci_high) for v in judged]
    assert len({symbol for symbol, _ in CHIPS.values()}) == len(CHIPS) == len(verdicts.VERDICTS)
    assert figure.get_suptitle() == verdicts.headline(found)
    with pytest.raises(UserError, match="no verdicts"):
        scorecard([])


def test_no_torch_is_needed():
    code = "import sys; import depthlens.claims, depthlens.plots.claims; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_verdicts_print_as_a_table_and_one_as_its_sentence():
    found = judge(Evidence(likelihood=result({"know": 0.5 * FIRST})), n_boot=N_BOOT)
    text, page = repr(found), found._repr_html_()
    assert text.startswith(verdicts.headline(found)) and len(text.splitlines()) == 2 + len(CLAIMS) and len(text) < 2500
    assert all(claim.id in text for claim in CLAIMS) and "<table" in page and "function" not in text + page
    assert repr(found[0]) == found[0].sentence and repr(CLAIMS[0]) == f"C1: {CLAIMS[0].statement}"
    assert len(repr(found[:2])) < 1500
