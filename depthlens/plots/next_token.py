"""The next token under conditions."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from depthlens.errors import UserError
from depthlens.plots.theme import (
    PALETTE,
    WIDTH,
    figure,
    legend,
    theme,
    visible,
)


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
        before: Probability of each without ablation.
        after: Probability of each under the condition.
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
    both = np.stack([before, after])
    if not ((both >= 0) & (both <= 1 + 1e-6)).all():
        raise UserError(f"probabilities run from {both.min():.3g} to {both.max():.3g}; allowed: 0 to 1")
    y, top = np.arange(len(names)), max(float(both.max()), 0.01)
    with theme():
        fig = figure(title or "", height=0.27 * len(names) + 1.2, width=0.7 * WIDTH)
        ax = fig.subplots()
        ax.hlines(y, before, after, color="#B0B0B0", lw=2, zorder=1)
        ax.plot(after, y, "s", color=PALETTE[1], ms=6, label=f"after {condition}")
        ax.plot(before, y, "o", mfc="none", mec=PALETTE[0], mew=1.5, ms=8.5, label="before")
        ax.set_yticks(y, names)
        for text in ax.get_yticklabels():
            text.set_parse_math(False)  # a token may hold dollar signs
        ax.set(ylim=(len(names) - 0.5, -0.5), xlim=(-0.025 * top, 1.04 * top))
        ax.set_xlabel("probability of the next token")
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color="#E8E8E8", lw=0.6, zorder=0)
        legend(fig, ax.get_lines()[::-1])
        sns.despine(fig, left=True)
    return fig
