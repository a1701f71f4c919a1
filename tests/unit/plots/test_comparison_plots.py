"""Figures that compare depth: they draw the tables they come from, and say what cannot be judged."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)

from depthlens import plots
from depthlens.analysis import depth, model_comparison
from depthlens.analysis.results import DOCS_COLUMNS, Result, concat
from depthlens.errors import UserError
from depthlens.look import GREY
from depthlens.plots import theme

N_LAYERS, N = 12, 40
EARLY = np.array([0.9, 0.8, 0.6, *[0.0] * 9])
LATE = EARLY[::-1]


def result_of(values, *, model="base", task="sums", metric="acc", chance=0.0):
    """values: {condition: (layer, one value a document)}."""
    rows = [
        (model, task, metric, condition, layer, None, doc, float(v), "")
        for condition, (layer, scores) in values.items()
        for doc, v in enumerate(scores)
    ]
    about = {"version": 1, "num_fewshot": 0, "metrics": {metric: {"higher_is_better": True, "chance": chance}}}
    record = {"model": {"name": model, "dims": {"n_layers": N_LAYERS}}, "tasks": {task: about}}
    return Result(pd.DataFrame(rows, columns=DOCS_COLUMNS), record)


def sweep(losses, *, base=0.9, **options):
    """The first documents are right; a share ``losses`` of them is lost without each layer."""
    right = np.arange(N) < round(base * N)
    values = {"baseline": (None, right)}
    for layer, loss in enumerate(losses):
        values[f"L{layer}"] = layer, right & (np.arange(N) >= round(loss * base * N))
    return result_of(values, **options)


def transplants(*, own=0.2, goal=0.9):
    """The last four layers hold what the donor knows more; each condition with its share of the gap."""
    order = np.arange(N) / N
    shares = {f"L{k}@donor": 0 for k in range(N_LAYERS)}
    shares |= {f"L0-{k}@donor": max(0, k - 7) / 4 for k in range(1, N_LAYERS)}
    shares |= {f"L{k}-{N_LAYERS - 1}@donor": min(1, (N_LAYERS - k) / 4) for k in range(1, N_LAYERS - 1)}
    values = {c: (None, order < own + s * (goal - own)) for c, s in ({"baseline": 0} | shares).items()}
    donor = result_of({"baseline": (None, order < goal)}, model="donor")
    return result_of(values), donor


# -- profiles ------------------------------------------------------------------------------------------


def test_profiles_side_by_side_with_their_centres():
    base, distilled = sweep(EARLY), sweep(LATE, model="distilled")
    fig = plots.profile_comparison(base, distilled)
    lines, centres, critical = (by_gid(fig, gid) for gid in ("series", "centre", "critical"))
    for line, centre, dots, result in zip(lines, centres, critical, (base, distilled), strict=True):
        np.testing.assert_allclose(line.get_ydata(), -result.summary["delta"].iloc[1:])
        at = depth.centre_of_mass(result).table["centre"].item() * (N_LAYERS - 1)
        assert centre.get_xdata()[0] == pytest.approx(at)
        assert dots.get_xdata().tolist() == result.critical()["layer"].tolist()
    assert lines[0].get_color() != lines[1].get_color() and lines[0].get_marker() != lines[1].get_marker()
    written = texts(fig)
    assert "base, distilled: loss by removed layer, n = 40 documents" in written
    assert "loss of\naccuracy" in written and "centre of mass, 95% interval" in written
    check(fig)


def test_a_profile_at_chance_has_no_centre():
    fig = plots.profile_comparison(sweep(EARLY, base=0.2, chance=0.25), sweep(LATE, chance=0.25, model="d"))
    assert texts(fig).count(theme.CANNOT_JUDGE) == 1
    assert len(by_gid(fig, "centre")) == 1 and by_gid(fig, "series")[0].get_color() == GREY
    check(fig)
    nothing = plots.profile_comparison(sweep(EARLY * 0))
    assert (
        "losses and gains of all layers may cancel: cannot judge" in texts(nothing) and by_gid(nothing, "centre") == []
    )


def test_tasks_of_one_model_share_the_axis_of_layers():
    rng = np.random.default_rng(0)
    values = {"baseline": (None, -5 + rng.normal(0, 0.3, N))}
    for layer, loss in enumerate([300.0, 9.0, 6.0, *[1.0] * 9]):
        values[f"L{layer}"] = layer, -5 - loss + rng.normal(0, 0.3, N)
    result = concat([sweep(EARLY), result_of(values, task="solutions", metric="answer_logprob", chance=None)])
    fig = plots.profile_comparison(result)
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["sums", "solutions"]
    assert fig.axes[0].get_xlim() == fig.axes[1].get_xlim()
    assert "loss of\nanswer_logprob (nats)" in texts(fig)
    beside = [text.get_text() for text in fig.axes[1].texts if text.get_text().startswith("beyond the axis: L0 3")]
    assert beside and fig.axes[1].get_ylim()[1] < 20
    assert fig.axes[0].get_title(loc="right") == ""
    check(fig)


def test_profile_refusals():
    with pytest.raises(UserError, match="0 results; give one to 4, one a model"):
        plots.profile_comparison()


# -- difference ----------------------------------------------------------------------------------------


def test_the_difference_is_drawn_and_proven_layers_are_marked_by_who_loses():
    base, distilled = sweep(EARLY), sweep(LATE, model="distilled")
    table = model_comparison.layer_differences(base, distilled)
    fig = plots.loss_difference(base, distilled)
    (line,), (more, less) = by_gid(fig, "difference"), by_gid(fig, "proven")
    np.testing.assert_allclose(line.get_ydata(), table["difference"])
    assert (more.get_xdata().tolist(), less.get_xdata().tolist()) == ([0, 1, 2], [9, 10, 11])
    bars = next(c for ax in fig.axes for c in ax.collections if c.get_gid() == "interval")
    given = [s[:, 1] for s in bars.get_segments() if len(s)]  # none where fewer than four documents differ
    np.testing.assert_allclose(given, table[["ci_low", "ci_high"]].dropna())
    assert 6 <= len(given) < len(table)
    assert "base loses more (proven" in texts(fig) and "distilled loses more (proven" in texts(fig)
    check(fig)


def test_a_difference_that_cannot_be_judged_marks_nothing():
    fig = plots.loss_difference(sweep(EARLY, base=0.2, chance=0.25), sweep(LATE, chance=0.25, model="d"))
    assert theme.CANNOT_JUDGE in texts(fig)
    assert by_gid(fig, "proven") == []
    assert by_gid(fig, "difference")[0].get_color() == GREY
    check(fig)


# -- transplants ---------------------------------------------------------------------------------------


def test_recovery_curves_with_base_and_donor():
    result, donor = transplants()
    fig = plots.recovery_curve(result, donor)
    (alone,), (bottom,), (top,) = (
        by_gid(fig, f"{kind}") for kind in ("of one layer", "from the bottom", "from the top")
    )
    assert all(line.get_xdata().tolist() == list(range(N_LAYERS)) for line in (alone, bottom, top))
    assert (alone.get_ydata() == 0.2).all()
    assert bottom.get_ydata()[-1] == top.get_ydata()[0] == 0.9 and bottom.get_ydata()[0] == top.get_ydata()[-1] == 0.2
    assert by_gid(fig, "base")[0].get_ydata()[0] == 0.2 and by_gid(fig, "donor")[0].get_ydata()[0] == 0.9
    assert "share of the gap" in texts(fig) and "base with layers of donor, n = 40 documents" in texts(fig)
    check(fig)
    assert "no gap: cannot judge" in texts(plots.recovery_curve(*transplants(own=0.85, goal=0.875)))
    single = result.select(conditions=["L3@donor"])
    with pytest.raises(UserError, match="no series of transplanted layers"):
        plots.recovery_curve(single, donor)


# -- what training changed -----------------------------------------------------------------------------


def moved():
    rows = [(layer, m, 0.01 * layer + 0.1 * i, 1 - 0.001 * layer) for layer in range(6) for i, m in enumerate("qkv")]
    rows += [(None, "embed.weight", np.inf, np.nan), (None, "unembed.weight", 0.0, 1.0)]
    return pd.DataFrame(rows, columns=["layer", "matrix", "relative", "cosine"]).astype({"layer": "Int64"})


def cells(fig, gid):
    return next(c for ax in fig.axes for c in ax.collections if c.get_gid() == gid).get_array()


def test_weight_deltas_by_matrix_and_layer():
    fig = plots.weight_deltas(moved(), title="T")
    np.testing.assert_allclose(cells(fig, "weights")[1], 0.01 * np.arange(6) + 0.1)
    assert cells(fig, "outside").mask.ravel().tolist() == [True, False], "an infinite change has no colour"
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["q", "k", "v"]
    assert [t.get_text() for t in fig.axes[1].get_yticklabels()] == ["embed", "unembed"]
    check(fig)
    cosine = plots.weight_deltas(moved(), value="cosine")
    np.testing.assert_allclose(cells(cosine, "weights")[0], 0.001 * np.arange(6), atol=1e-12)
    equal = moved().assign(relative=0.0)
    check(plots.weight_deltas(equal[equal["layer"].notna()]))
    with pytest.raises(UserError, match="unknown value 'relativ'; did you mean relative"):
        plots.weight_deltas(moved(), value="relativ")
    with pytest.raises(UserError, match="the table lacks column matrix; it has layer"):
        plots.weight_deltas(moved().drop(columns="matrix"))
    with pytest.raises(UserError, match="no matrix in a layer"):
        plots.weight_deltas(moved().iloc[-2:])


def test_activation_deltas_by_layer():
    rows = [(la, p, 8, 0.1 * la, 0.09 * la, 0.11 * la, 1, 0.99, 1) for p in ("attn_out", "mlp_out") for la in range(5)]
    columns = ["layer", "part", "n", "relative", "relative_low", "relative_high", "cosine", "cosine_low", "cosine_high"]
    table = pd.DataFrame(rows, columns=columns)
    fig = plots.activation_deltas(table)
    assert len(by_gid(fig, "relative")) == len(by_gid(fig, "cosine")) == 2
    np.testing.assert_allclose(by_gid(fig, "relative")[0].get_ydata(), 0.1 * np.arange(5))
    assert "n = 8 shared prompts" in texts(fig)
    check(fig)
    check(plots.activation_deltas(table.assign(relative_low=np.nan, relative_high=np.nan)))  # one prompt
    with pytest.raises(UserError, match="5 parts; a panel shows up to 4"):
        plots.activation_deltas(pd.concat([table.assign(part=f"p{i}") for i in range(5)]))
    with pytest.raises(UserError, match="no rows"):
        plots.activation_deltas(table.iloc[:0])
