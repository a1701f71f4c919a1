"""Knowledge against retrieval: paired comparisons of a closed and an open book, and of attention and MLPs."""

from __future__ import annotations

import made_results
import numpy as np
import pytest
from scipy import stats as sps

from depthlens.analysis import depth, open_book
from depthlens.analysis.results import Result, concat
from depthlens.analysis.stats import mean_interval
from depthlens.errors import UserError

CLOSED, OPENED, N, LAYERS = "closed", "open", 30, 6
ANSWER_LOGPROB = "answer_logprob"


def result(losses: dict[str, np.ndarray], *, site: str = "", base: dict[str, float] | None = None) -> Result:
    """Log-likelihoods under every condition: baseline minus a loss by layer, with noise."""
    random, scores = np.random.default_rng(3), {}
    for task, loss in losses.items():
        whole = -1 + 0.3 * random.standard_normal(N) + (base or {}).get(task, 0)
        noisy = {f"L{layer}{site}": whole - x - 0.2 * random.standard_normal(N) for layer, x in enumerate(loss)}
        scores[task] = {"baseline": whole} | noisy
    info = {"chance": None, "min_effect": 0.05}
    return made_results.same_documents(made_results.result(scores, metric=ANSWER_LOGPROB, n_layers=LAYERS, info=info))


@pytest.fixture(scope="module")
def both() -> Result:
    closed = np.array([3.0, 0.1, 0.1, 2.0, 0.1, 0.0])  # layer 3 knows
    opened = np.array([3.0, 1.5, 0.1, 0.1, 0.1, 0.0])  # layer 1 finds
    return result({CLOSED: closed, OPENED: opened}, base={OPENED: 0.6})


def test_what_the_book_is_worth(both):
    (row,) = open_book.open_book_gain(both, CLOSED, OPENED).table.itertuples()
    docs = both.docs[both.docs["condition"] == "baseline"].pivot(index="doc_id", columns="task", values="value")
    test = sps.ttest_rel(docs[OPENED], docs[CLOSED])
    assert (row.metric, row.n) == (ANSWER_LOGPROB, N) and row.difference == pytest.approx(
        (docs[OPENED] - docs[CLOSED]).mean()
    )
    assert row.p_value == pytest.approx(test.pvalue)
    low, high = mean_interval(docs[OPENED] - docs[CLOSED])
    assert (row.ci_low, row.ci_high) == pytest.approx((low, high)) and 0.3 < row.difference < 0.9


def test_what_serves_the_finding_and_what_the_knowing(both):
    losses = open_book.open_book_losses(both, CLOSED, OPENED)
    table = losses.table
    assert list(table["condition"]) == [f"L{i}" for i in range(LAYERS)]
    values = {t: g.pivot(index="doc_id", columns="condition", values="value") for t, g in both.docs.groupby("task")}
    for row in table.itertuples():
        one, other = (values[t]["baseline"] - values[t][row.condition] for t in (CLOSED, OPENED))
        test = sps.ttest_rel(other, one)
        assert row.difference == pytest.approx((other - one).mean()) and row.p_value == pytest.approx(test.pvalue)
        assert (row.closed, row.opened) == pytest.approx((one.mean(), other.mean()))
    proven = table[table["p_adjusted"] < 0.05]
    assert dict(zip(proven["condition"], proven["difference"] > 0, strict=True)) == {"L1": True, "L3": False}
    finding, knowing = losses.describe()
    assert finding.startswith("Layers that cost more open-book: L1. The open book has more to lose")
    assert knowing == "Layers that cost more closed-book: L3."
    (gain,) = open_book.open_book_gain(both, CLOSED, OPENED).describe()
    assert (
        gain.startswith("The facts in the prompt change the whole model's score by **+0.")
        and "nats of the right answer" in gain
    )


def test_where_the_losses_lie(both):
    first, second = depth.describe_first_third(both)
    # 3.1 of 5.3 nats, and 4.5 of 4.8
    assert first.startswith("closed: the first third of the layers holds **5") and first.endswith("more than half.")
    assert second.startswith("open: ") and "more than half" in second


def test_attentions_share():
    attn = result({CLOSED: np.full(LAYERS, 0.3), OPENED: np.full(LAYERS, 0.9)}, site=".attn")
    mlp = result({CLOSED: np.full(LAYERS, 0.9), OPENED: np.full(LAYERS, 0.3)}, site=".mlp")
    shares = open_book.site_losses(concat([attn, mlp]))
    table = shares.table
    assert list(table["third"].unique()) == ["first third", "middle third", "last third", "all"]
    whole = table[table["third"] == "all"].set_index("task")
    assert whole["share"][CLOSED] == pytest.approx(0.25, abs=0.05)
    assert whole["share"][OPENED] == pytest.approx(0.75, abs=0.05)
    assert (whole["ci_low"] < whole["share"]).all() and (whole["share"] < whole["ci_high"]).all()
    parts = table[(table["third"] != "all") & (table["task"] == CLOSED)]
    assert parts["attn"].sum() == pytest.approx(whole["attn"][CLOSED])
    assert shares.describe()[0].startswith("closed: attention holds **2")


def test_mistakes(both):
    with pytest.raises(UserError, match="have no metric 'acc' in common; sweep with measure='both'"):
        open_book.open_book_losses(both, CLOSED, OPENED, metric="acc")
    fewer = Result(both.docs[(both.docs["task"] == CLOSED) | (both.docs["doc_id"] < 9)], both.record, both.asked)
    with pytest.raises(UserError, match=r"were asked other documents \(21 are of one only\); pair tasks of the same"):
        open_book.open_book_losses(fewer, CLOSED, OPENED)
    with pytest.raises(UserError, match="sweep both again, because this result does not say which documents they are"):
        open_book.open_book_losses(Result(both.docs, both.record), CLOSED, OPENED)
