"""Attention of one head on one prompt, as a map and as shaded text."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drawn import by_gid, check, nothing_leaks, texts  # noqa: F401 (a fixture for all of them)
from made_up_heads import mesh
from matplotlib import colormaps

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
    grid = mesh(ax).get_array()
    assert grid.shape == (n, n) and (grid.mask == (np.tri(n) == 0)).all(), "the half above the diagonal is empty"
    np.testing.assert_allclose(grid[np.tri(n) > 0].data, weights[np.tri(n) > 0])
    rows, columns = ([t.get_text() for t in axis.get_ticklabels()] for axis in (ax.yaxis, ax.xaxis))
    assert rows == columns and rows[:6] == ["<s>", "The", "·key", "·of", "·7f", "$x$"]
    assert rows[7:11] == ["·\\u5df4", ".", "⏎", "⇥"]
    assert ax.get_ylim() == (n - 0.5, -0.5) and mesh(ax).get_clim() == (0, 1.0)
    assert "L9.H6" in fig.get_suptitle() and "query" in ax.get_ylabel() and "key" in ax.get_xlabel()
    check(fig)


def test_attention_map_of_sixty_tokens_is_readable():
    tokens = [f" tok{i}" for i in range(59)] + ["antidisestablishmentarianism"]
    fig = plots.attention(tokens, causal(60), "L9.H6")
    check(fig)
    labels = fig.axes[0].get_yticklabels()
    assert labels[-1].get_text() == "antidisesta…"
    middles = [t.get_window_extent().y0 + t.get_window_extent().height / 2 for t in labels]
    pitch = np.abs(np.diff(middles)).min() * 72 / fig.dpi
    assert pitch > 6.5, "lower-case letters of 8 pt are 4.4 pt high"


def strip(fig):
    return [t for t in by_gid(fig, "token")]


def test_attention_of_one_query_shades_the_prompt():
    weights = causal(len(PROMPT))
    fig = plots.attention(PROMPT, weights, "L9.H6", query=6)
    assert "".join(t.get_text() for t in strip(fig)) == "".join(PROMPT).replace("巴", "\\u5df4").replace(
        "\n", "⏎"
    ).replace("\t", "⇥")
    (boxes,) = by_gid(fig, "weights")
    assert len(boxes.get_paths()) == 7, "later tokens are out of sight"
    cmap = colormaps["mako_r"]
    np.testing.assert_allclose(boxes.get_facecolor(), cmap(weights[6, :7] / theme.round_up(weights[6].max())))
    inks = [t.get_color() for t in strip(fig)]
    assert set(inks[7:]) == {GREY} and set(inks[:7]) <= {"black", "white"}
    lines = {t.get_position()[1] for t in strip(fig)}
    assert len(lines) == 2, "a line break in the prompt breaks the line"
    best = int(weights[6].argmax())
    assert f"(token {best}) {weights[6, best]:.2f}" in texts(fig) and "L9.H6: what token 6 (␣is) attends to" in texts(
        fig
    )
    check(fig)
    last = plots.attention(PROMPT, weights[-1], "L9.H6")  # [key]: of the last token
    assert "what token 12 (:) attends to" in last.get_suptitle()
    chosen = plots.attention(PROMPT, weights, "L9.H6", query=-1)
    np.testing.assert_array_equal(
        by_gid(last, "weights")[0].get_facecolor(), by_gid(chosen, "weights")[0].get_facecolor()
    )


def test_a_long_prompt_wraps_within_the_page():
    tokens = [" word", "ing", ".", " retrieval"] * 100
    weights = np.full(400, 1 / 400)
    fig = plots.attention(tokens, weights, "L17.H24", title="Long")
    check(fig)
    drawn = strip(fig)
    assert len(drawn) == 400 and fig.get_suptitle() == "Long"
    places = [t.get_window_extent() for t in drawn]
    assert max(p.x1 for p in places) <= fig.bbox.x1
    by_line = itertools.groupby(places, key=lambda p: round((p.y0 + p.y1) / 2 / 10))
    for _, line in by_line:
        assert all(a.x1 <= b.x1 and a.x0 < b.x0 for a, b in itertools.pairwise(line)), "tokens run into each other"
    assert fig.get_size_inches()[1] < 8


def test_a_very_long_prompt_is_shown_in_excerpts():
    weights = np.zeros(4096)
    weights[[0, 1500, 1501, 4000]] = 0.2, 0.5, 0.1, 0.1
    weights[2000:2100] = 0.001
    fig = plots.attention([f" {i}" for i in range(4096)], weights, "L17.H24", query=4000)
    shown = [int(t.get_text()) for t in strip(fig)]
    assert {0, 1500, 1501, 4000, 1495, 1505} <= {*shown} and len(shown) < 120
    assert "[2474 tokens: 0.10]" in texts(fig), "the figure says what is left out, with its weight"
    assert "[83 tokens]" in texts(fig)
    check(fig)


@pytest.mark.parametrize(
    ("tokens", "weights", "options", "message"),
    [
        ([], np.zeros((0, 0)), {}, r"0 tokens and weights of shape \(0, 0\)"),
        (["a"] * 3, causal(4), {}, r"3 tokens and weights of shape \(4, 4\); give \[query, key\]"),
        (["a"] * 4, causal(4), {"query": 4}, r"query 4 does not exist; the prompt has tokens 0..3"),
        (["a"] * 4, causal(4).T, {}, "which sum to 1 at most|attends to the later token"),
        (["a"] * 4, np.full((4, 4), 0.25), {}, "query 0 attends to the later token 1; give causal weights"),
        (["a"] * 4, causal(4)[2], {"query": 1}, "query 1 attends to the later token 2"),
        (["a"] * 4, causal(4) * 3, {}, "the largest row sums to 3; give attention weights after the softmax"),
        (["a"] * 4, causal(4) - 0.5, {}, "weights run from -0.5"),
        (["a"] * 61, causal(61), {}, "61 tokens do not fit a map of up to 60; choose an attending token with query="),
    ],
)
def test_attention_refusals(tokens, weights, options, message):
    with pytest.raises(UserError, match=message):
        plots.attention(tokens, weights, "L0.H0", **options)
