"""What a figure leaves in a notebook beside its picture: its numbers, and what to say of each point."""

from __future__ import annotations

import io
from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pandas as pd
from made_results import EARLY, sweep

from depthlens import plots
from depthlens.analysis.head_scores import HeadScores
from depthlens.plots.figure_data import COLUMNS, MIME

mpl.use("agg")


def bundle(fig):
    about = fig._repr_mimebundle_()[MIME]
    return about, pd.read_csv(io.StringIO(about["csv"]))


def test_a_profile_tells_layer_score_interval_and_p():
    result = sweep(EARLY)
    about, table = bundle(plots.depth_profile(result))
    rows = result.summary.iloc[1:]
    assert len(about["points"]) == len(rows) and about["title"].startswith("base, sums")
    for (left, top, text), row in zip(about["points"], rows.itertuples(), strict=True):
        assert 0 < left < 1 and 0 < top < 1
        assert text.startswith(f"L{row.layer}: accuracy {row.value:.3g}, change {row.delta:+.3g} [")
        assert text.endswith(f"adjusted p = {row.p_adjusted:.2g}") and (np.isnan(row.ci_low)) == ("too few" in text)
    assert about["points"][0][1] > about["points"][-1][1], "the first layer loses most, so it lies lowest"
    drawn = table[table["series"] == "series"]
    np.testing.assert_allclose(drawn["y"], rows["value"], atol=1e-6)
    assert list(table.columns) == COLUMNS and list(drawn["x"]) == list(range(len(rows)))


def test_a_map_of_heads_tells_each_head_and_has_its_cells_as_numbers():
    cases = np.random.default_rng(0).uniform(0.1, 0.9, (20, 3, 4))
    scores = HeadScores.of_cases("retrieval score", "", cases, {}, tested=False, bounded=True)
    about, table = bundle(plots.head_map(scores))
    assert [text.split(":")[0] for *_, text in about["points"]] == [f"L{a}.H{b}" for a in range(3) for b in range(4)]
    assert f"{scores.values[0, 0]:.3g} [{scores.low[0, 0]:.3g}, {scores.high[0, 0]:.3g}]" in about["points"][0][2]
    without = bundle(plots.head_map(replace(scores, low=None, high=None)))[0]["points"]
    assert without[0][2] == f"L0.H0: retrieval score {scores.values[0, 0]:.3g}", (
        "no interval was made, so none is missed"
    )
    cells = table[table["kind"] == "cell"].pivot(index="x", columns="y", values="value").to_numpy()
    np.testing.assert_allclose(cells, scores.values, atol=1e-6)


def test_other_figures_have_their_numbers_and_no_points():
    about, table = bundle(plots.loss_shares(sweep(EARLY)))
    assert about["points"] == [] and len(table)
