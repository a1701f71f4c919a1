"""Figures of runs side by side: they draw the tables of the comparison, and say what cannot be judged."""

from __future__ import annotations

import numpy as np
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from made_runs import steps, two_scorecards
from made_sweeps import EARLY, LATE, N_LAYERS, nats, sweep

import depthlens as dl
from depthlens import plots
from depthlens.analysis.run_differences import CENTRE, SCORE
from depthlens.errors import UserError
from depthlens.plots import theme

QUICK = {"n_boot": 200}


@pytest.fixture(scope="module")
def two():
    return dl.compare(sweep(EARLY, n=80, model="base"), sweep(LATE, n=80, model="late", seed=1), **QUICK)


@pytest.fixture(scope="module")
def stages():
    return dl.compare(*steps(5), stages=True, **QUICK)


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    return dl.compare(*two_scorecards(tmp_path_factory.mktemp("cards")), **QUICK)


def test_profiles_over_relative_depth(two):
    fig = plots.run_profiles(two)
    lines, critical, centres = (by_gid(fig, gid) for gid in ("series", "critical", "centre"))
    for line, dots, centre, run in zip(lines, critical, centres, ("base", "late"), strict=True):
        rows = two.profiles[two.profiles["run"] == run]
        np.testing.assert_allclose(line.get_xdata(), np.arange(N_LAYERS) / (N_LAYERS - 1))
        np.testing.assert_allclose(line.get_ydata(), rows["share"])
        np.testing.assert_allclose(dots.get_xdata(), rows.loc[rows["critical"], "depth"])
        row = two.centres[(two.centres["run"] == run) & (two.centres["measure"] == CENTRE)]
        assert centre.get_xdata()[0] == pytest.approx(row["value"].item())
    assert "share of score\nabove floor" in texts(fig) and "base, late: loss by removed part, layers" in texts(fig)
    check(fig)


def test_a_loss_in_nats_is_drawn_in_its_unit_and_one_far_beyond_is_written():
    far = EARLY * [20, *[1] * (N_LAYERS - 1)]
    found = dl.compare(nats(far, model="a"), nats(LATE, model="b", seed=1), **QUICK)
    fig = plots.run_profiles(found)
    assert "loss of\nanswer_logprob (nats)" in texts(fig) and "beyond the axis:\nL0 1" in texts(fig)
    check(fig)


def test_a_run_at_chance_is_hatched_and_called_so(stages):
    fig = plots.run_map(stages)
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1 and len(by_gid(fig, "hatch")) == 1
    placed = stages.centres[stages.centres["measure"] == CENTRE]["value"].notna().sum()
    assert len(by_gid(fig, "centre")) == placed == 9
    shares = [np.ma.filled(mesh.get_array(), np.nan).sum() for mesh in by_gid(fig, "shares")]
    np.testing.assert_allclose([s for s in shares if np.isfinite(s)], 1)
    check(fig)
    overlaid = plots.run_profiles(dl.compare(*steps(2), **QUICK))
    assert "step1 at chance: cannot judge" in texts(overlaid)
    check(overlaid)


def test_a_run_of_other_settings_is_neither_drawn_nor_in_the_legend():
    other = sweep(LATE, model="other", record={"seed": 9})
    fig = plots.run_profiles(dl.compare(sweep(EARLY, model="a"), other, sweep(LATE, model="c", seed=1), **QUICK))
    assert len(by_gid(fig, "series")) == 2 and "other" not in texts(fig) and "sums (a, c)" in texts(fig)
    check(fig)


def test_differences_are_filled_where_they_are_shown(two):
    fig = plots.run_differences(two)
    table = two.differences[two.differences["scale"] == SCORE]
    (line,), (shown,) = by_gid(fig, "difference"), by_gid(fig, "shown")
    np.testing.assert_allclose(line.get_ydata(), table["difference"])
    np.testing.assert_allclose(shown.get_ydata(), table.loc[table["shown"], "difference"])
    assert "late minus base" in texts(fig)
    check(fig)
    check(plots.run_differences(two, scale="above floor"))


def test_stages_are_drawn_in_their_order(stages):
    fig = plots.run_stages(stages)
    drawn = by_gid(fig, "stages")
    centres = stages.centres[(stages.centres["measure"] == CENTRE) & (stages.centres["task"] == "words")]
    np.testing.assert_allclose(drawn[3].get_ydata(), centres["value"])
    assert [t.get_text() for t in fig.axes[-1].get_xticklabels()] == stages.runs
    check(fig)


def test_scorecards_show_every_runs_verdict_and_mark_differences(cards):
    fig = plots.scorecards(cards)
    assert len(by_gid(fig, "supported few")) and len(by_gid(fig, "contradicted flat"))
    assert len(by_gid(fig, "shown")) == cards.verdicts["shown"].sum() == 2
    assert len(by_gid(fig, "effect")) == np.isfinite(cards.verdicts["effect"]).sum()
    check(fig)


def test_more_runs_than_colours_are_drawn_as_a_map_alone(stages):
    for draw in (plots.run_profiles, plots.run_differences):
        with pytest.raises(UserError, match="5 runs"):
            draw(stages)


@pytest.mark.parametrize(
    ("draw", "options", "said"),
    [
        (plots.run_profiles, {"parts": "attn"}, "no two runs with equal settings have 'attn' in folder ''; .*layers"),
        (plots.run_map, {"place": "x"}, "no two runs with equal settings have 'layers' in folder 'x'"),
        (plots.run_stages, {}, "not compared as stages; compare them with stages=True"),
        (plots.run_differences, {"scale": "x"}, "scale 'x' is not known; allowed: 'score', 'above floor'"),
        (plots.scorecards, {}, "0 runs have verdicts in folder ''"),
    ],
)
def test_what_cannot_be_drawn_is_refused(two, draw, options, said):
    with pytest.raises(UserError, match=said):
        draw(two, **options)
