"""The figure of next tokens."""

from __future__ import annotations

import pytest
from drawn import check, nothing_leaks  # noqa: F401 (a fixture for all of them)

from depthlens import plots
from depthlens.errors import UserError


def test_prediction():
    tokens = [" Paris", "\n", " $x$", " 巴", ""]
    fig = plots.prediction(tokens, [0.6, 0.2, 0.1, 0.05, 0], [0.1, 0.3, 0.2, 0.05, 0], condition="L3", title="T")
    (ax,) = fig.axes
    assert [t.get_text() for t in ax.get_yticklabels()] == ['"␣Paris"', '"␣\\u5df4"', "(empty)", '"⏎"', '"␣$x$"']
    points = {line.get_label(): line.get_xdata().tolist() for line in ax.get_lines()}
    assert points == {"nothing removed": [0.6, 0.05, 0, 0.2, 0.1], "L3 removed": [0.1, 0.05, 0, 0.3, 0.2]}
    top, bottom = ax.get_ylim()[1], ax.get_ylim()[0]
    assert top < bottom  # tokens that lose on top, the likeliest first
    check(fig)


@pytest.mark.parametrize(
    ("tokens", "before", "after", "message"),
    [
        ([], [], [], "0 tokens"),
        (["a", "b"], [0.1], [0.1], r"2 tokens, probabilities of shape \(1,\)"),
        (["a"], [0.1], [1.7], "probabilities run from 0.1 to 1.7; allowed: 0 to 1"),
        (["a"], [float("nan")], [0.5], "allowed: 0 to 1"),
    ],
)
def test_prediction_refusals(tokens, before, after, message):
    with pytest.raises(UserError, match=message):
        plots.prediction(tokens, before, after)
