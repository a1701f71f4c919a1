"""Attention of one head on one prompt, as a map and as shaded text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from matplotlib import colormaps
from matplotlib.collections import QuadMesh

from depthlens import plots
from depthlens.errors import UserError
from depthlens.look import GREY
from depthlens.plots import theme

PROMPT = ["<s>", "The", " key", " of", " 7f", "$x$", " is", " 巴", ".", "\n", "\t", "Key", ":"]


def causal(n, seed=0):
    logits = np.where(np.tri(n) > 0, np.random.default_rng(seed).normal(size=(n, n)) * 2, -np.inf)
    weights = np.exp(logits)
    return weights / weights.sum(1, keepdims=True)


def test_attention_map():
    n, weights = len(PROMPT), causal(len(PROMPT))
    fig = plots.attention(PROMPT, weights, "L9.H6")
    ax = fig.axes[0]
    (mesh,) = (c for c in ax.collections if isinstance(c, QuadMesh))
    grid = mesh.get_array()
    assert grid.shape == (n, n) and (grid.mask == (np.tri(n) == 0)).all(), "the half above the diagonal is empty"
    np.testing.assert_allclose(grid[np.tri(n) > 0].data, weights[np.tri(n) > 0])
    rows, columns = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    assert rows == columns and rows[:6] == ["<s>", "The", "·key", "·of", "·7f", "$x$"]
    assert rows[7:11] == ["·\\u5df4", ".", "⏎", "⇥"]
    assert ax.get_ylim() == (n - 0.5, -0.5) and mesh.get_clim() == (0, 1.0)
    assert "L9.H6" in fig.get_suptitle() and "query" in ax.get_ylabel() and "key" in ax.get_xlabel()
    check(fig)


def test_attention_of_one_query_shades_the_prompt():
    weights = causal(len(PROMPT))
    fig = plots.attention(PROMPT, weights, "L9.H6", query=6)
    tokens = by_gid(fig, "token")
    written = "".join(PROMPT).replace("巴", "\\u5df4").replace("\n", "⏎").replace("\t", "⇥")
    assert "".join(t.get_text() for t in tokens) == written
    (boxes,) = by_gid(fig, "weights")
    assert len(boxes.get_paths()) == 7, "later tokens are out of sight"
    shades = colormaps["mako_r"](weights[6, :7] / theme.round_up(weights[6].max()))
    np.testing.assert_allclose(boxes.get_facecolor(), shades)
    inks = [t.get_color() for t in tokens]
    assert set(inks[7:]) == {GREY} and set(inks[:7]) <= {"black", "white"}
    assert len({t.get_position()[1] for t in tokens}) == 2, "a line break in the prompt breaks the line"
    best, said = int(weights[6].argmax()), texts(fig)
    assert f"(token {best}) {weights[6, best]:.2f}" in said and "L9.H6: what token 6 (␣is) attends to" in said
    check(fig)
    last, chosen = plots.attention(PROMPT, weights[-1], "L9.H6"), plots.attention(PROMPT, weights, "L9.H6", query=-1)
    assert "what token 12 (:) attends to" in last.get_suptitle() == chosen.get_suptitle()


def test_a_long_prompt_wraps_within_the_page():
    fig = plots.attention([" word", "ing", ".", " retrieval"] * 100, np.full(400, 1 / 400), "L17.H24", title="Long")
    check(fig)
    assert len(by_gid(fig, "token")) == 400 and fig.get_suptitle() == "Long" and fig.get_size_inches()[1] < 8
    places = [t.get_window_extent() for t in by_gid(fig, "token")]
    for _, line in itertools.groupby(places, key=lambda p: round((p.y0 + p.y1) / 2 / 10)):
        assert all(a.x1 <= b.x1 and a.x0 < b.x0 for a, b in itertools.pairwise(line)), "tokens run into each other"


def test_a_very_long_prompt_is_shown_in_excerpts():
    weights = np.zeros(4096)
    weights[[0, 1500, 1501, 4000]] = 0.2, 0.5, 0.1, 0.1
    weights[2000:2100] = 0.001
    fig = plots.attention([f" {i}" for i in range(4096)], weights, "L17.H24", query=4000)
    shown = [int(t.get_text()) for t in by_gid(fig, "token")]
    assert {0, 1500, 1501, 4000, 1495, 1505} <= {*shown} and len(shown) < 120
    assert "[2474 tokens: 0.10]" in texts(fig), "the figure says what is left out, with its weight"
    assert "[83 tokens]" in texts(fig)
    check(fig)


@pytest.mark.parametrize(
    ("tokens", "weights", "options", "message"),
    [
        (["a"] * 3, causal(4), {}, r"3 tokens and weights of shape \(4, 4\); give \[query, key\]"),
        (["a"] * 4, causal(4) * 3, {}, "the largest row sums to 3; give attention weights after the softmax"),
        (["a"] * 61, causal(61), {}, "61 tokens do not fit a map of up to 60; choose an attending token with query="),
    ],
)
def test_attention_refusals(tokens, weights, options, message):
    with pytest.raises(UserError, match=message):
        plots.attention(tokens, weights, "L0.H0", **options)


def test_prediction():
    tokens = [" Paris", "\n", " $x$", " 巴", ""]
    fig = plots.prediction(tokens, [0.6, 0.2, 0.1, 0.05, 0], [0.1, 0.3, 0.2, 0.05, 0], condition="L3", title="T")
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ['"␣Paris"', '"␣\\u5df4"', "(empty)", '"⏎"', '"␣$x$"']
    points = {line.get_label(): line.get_xdata().tolist() for line in ax.get_lines()}
    assert points == {"nothing removed": [0.6, 0.05, 0, 0.2, 0.1], "L3 removed": [0.1, 0.05, 0, 0.3, 0.2]}
    assert ax.get_ylim()[1] < ax.get_ylim()[0], "tokens that lose on top, the likeliest first"
    check(fig)
