"""The next token under conditions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.plots import panels
from depthlens.plots.theme import EMPTY, PALE, PALETTE, WIDTH, figure, legend, theme, visible


def prediction(
    tokens: Iterable[str],
    before: ArrayLike,
    after: ArrayLike,
    *,
    condition: str = "the ablation",
    title: str | None = None,
) -> Figure:
    """Probability of each next token before and after an ablation, first token on top.

    Args:
        tokens: Their text; spaces and line breaks are made visible.
        before: Probability of each without ablation. Shape [token].
        after: Probability of each under the condition. Shape [token].
        condition: Its text form, for the legend.
        title: Above the figure.

    Raises:
        UserError: no tokens, different lengths, or numbers that are not probabilities.
    """
    names = [visible(token) for token in tokens]
    before, after = np.asarray(before, dtype=float), np.asarray(after, dtype=float)
    if not names or before.shape != (len(names),) or after.shape != before.shape:
        shapes = f"probabilities of shape {before.shape} before and {after.shape} after"
        raise UserError(f"{len(names)} tokens, {shapes}; give one of each per token")
    pairs = np.stack([before, after])
    if not ((pairs >= 0) & (pairs <= 1 + 1e-6)).all():
        raise UserError(f"probabilities run from {pairs.min():.3g} to {pairs.max():.3g}; allowed: 0 to 1")
    y, top = np.arange(len(names)), max(float(pairs.max()), 0.01)
    with theme():
        fig = figure(title, "", height=0.27 * len(names) + 1.2, width=0.7 * WIDTH)
        ax = fig.subplots()
        ax.hlines(y, before, after, color=PALE, lw=2, zorder=1)
        ax.plot(after, y, "s", color=PALETTE[1], ms=6, label=f"after {condition}")
        ax.plot(before, y, "o", mfc="none", mec=PALETTE[0], mew=1.5, ms=8.5, label="before")
        panels.name_rows(ax, names)
        ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.025 * top, 1.04 * top))
        ax.set_xlabel("probability of the next token")
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color=EMPTY, lw=0.6, zorder=0)
        ax.spines["left"].set_visible(False)
        legend(fig, ax.get_lines()[::-1])
    return fig
