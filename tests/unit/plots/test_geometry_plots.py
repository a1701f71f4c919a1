"""Figures of depth geometry against the tables that they draw."""

from __future__ import annotations

import geometries
import numpy as np
import pytest
import tiny
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from geometries import COSTLY, N_DOCS, N_LAYERS, TEXTS, sweep

from depthlens.analysis.geometry import geometry_agreement
from depthlens.errors import UserError
from depthlens.experiments import geometry as geo
from depthlens.plots import geometry as plots


@pytest.fixture(scope="module")
def found():
    return geometries.measured()


def test_angular_map_marks_the_best_block_of_each_size(found):
    g = found[0]
    fig = plots.angular_map(g)
    check(fig)
    (mesh,), (best,) = by_gid(fig, "distances"), by_gid(fig, "best")
    grid = np.ma.filled(mesh.get_array().reshape(g.n_layers, g.n_layers).astype(float), np.nan)
    for row in g.distances.itertuples():
        assert grid[row.size - 1, row.layer] == row.distance
    assert np.isnan(grid).sum() == g.n_layers * (g.n_layers - 1) / 2
    assert best.get_ydata().tolist() == list(range(1, g.n_layers + 1))
    assert best.get_xdata().tolist() == np.nanargmin(grid, axis=1).tolist()
    ax = fig.axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("first layer of the block", "layers in the block")
    assert "n = 3 texts" in texts(fig) and "tiny-llama-gqa" in texts(fig)


def test_influence_profile_draws_both_measures_with_bands(found):
    fig = plots.influence_profile(found[0])
    check(fig)
    (influence,), (distance,) = by_gid(fig, "influence"), by_gid(fig, "distance")
    assert influence.get_ydata().tolist() == found[0].influences["influence"].tolist()
    assert distance.get_ydata().tolist() == found[0].distances.query("size == 1")["distance"].tolist()
    assert len(by_gid(fig, "influence band")) == len(by_gid(fig, "distance band")) == 1
    assert [ax.get_xlabel() for ax in fig.axes] == ["layer", "layer"]
    assert all(ax.get_ylim()[0] == 0 for ax in fig.axes) and "block influence" in texts(fig)


def test_logit_lens_draws_probability_and_entropy_by_depth(found):
    fig = plots.logit_lens(found[0], title="My lens")
    check(fig)
    for name in ("probability", "entropy"):
        (line,) = by_gid(fig, name)
        assert line.get_xdata().tolist() == list(range(found[0].n_layers + 1))
        assert line.get_ydata().tolist() == found[0].logit_lens[name].tolist()
        assert len(by_gid(fig, f"{name} band")) == 1
    assert "My lens" in texts(fig) and "entropy (nats)" in texts(fig) and "final top-1 token" in texts(fig)


def test_effect_map_has_a_panel_for_all_and_for_future_positions(found):
    table = found[1]
    fig = plots.effect_map(table)
    check(fig)
    scales = set()
    for where in geo.WHERE:
        (mesh,) = by_gid(fig, where)
        scales.add(mesh.get_clim())
        grid = mesh.get_array().reshape(N_LAYERS, N_LAYERS)
        for row in table[table["where"] == where].itertuples():
            assert grid[row.layer, row.later] == row.effect
    assert len(scales) == 1, "both panels share one scale"
    assert fig.axes[0].get_ylabel() == "skipped layer" and fig.axes[1].get_xlabel() == "later layer"
    with pytest.raises(UserError, match="lacks column effect"):
        plots.effect_map(table.drop(columns="effect"))
    with pytest.raises(UserError, match="no rows"):
        plots.effect_map(table.iloc[:0])


def test_predictor_scatter_has_a_row_a_task_and_says_what_cannot_be_judged(found):
    result, cheap = sweep(), found[2]
    fig = plots.predictor_scatter(cheap, result)
    check(fig)
    dots = by_gid(fig, "layers")
    assert len(dots) == len(fig.axes) == 2 * 3
    loss = [COSTLY[0] - a for a in COSTLY[1]]
    for dot, name in zip(dots[:3], cheap.columns[1:], strict=True):
        assert dot.get_xdata().tolist() == cheap[name].tolist()
        np.testing.assert_allclose(dot.get_ydata(), loss, atol=1 / N_DOCS)
    row = geometry_agreement(cheap, result).table.iloc[0]
    told = f"ρ = {row['spearman']:.2f}, p = {row['p_value']:.2g}\nwithout noise ["
    assert f"{told}{row['ci_low']:.2f}, {row['ci_high']:.2f}]" in texts(fig)
    assert texts(fig).count("at chance: cannot judge") == 3 and "loss (accuracy)" in texts(fig)
    assert {t.get_text() for t in by_gid(fig, "name")} == {"L0", "L1"}, "the layers that cost most are named"
    with pytest.raises(UserError, match="no predictors beside column layer"):
        plots.predictor_scatter(cheap[["layer"]], result)


def test_figures_of_one_text_have_no_bands_but_are_drawn():
    lens = tiny.lens("llama-gqa")
    g = geo.depth_geometry(lens, TEXTS[:1], progress=False)
    for draw in (plots.angular_map, plots.influence_profile, plots.logit_lens):
        check(draw(g))
    check(plots.effect_map(geo.layer_effects(lens, TEXTS[:1], progress=False)))
