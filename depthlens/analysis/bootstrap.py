"""The bootstrap over documents: how often each document is drawn, and the intervals of what was drawn.

A mean over documents is redrawn with its documents (Efron & Tibshirani 1993, chapter 13). Two things make the
percentile interval honest where documents are few or hardly anything changes:

* its levels are moved outwards as far as Student's t is from the normal distribution (the *expanded* percentile
  interval of Hesterberg 2015, The American Statistician 69:371-386);
* with right and wrong answers, two imaginary documents are drawn along, one that is lost at a layer taken at random and
  one that is won at one. This is the idea of Agresti & Coull (1998, The American Statistician 52:119-126), made for
  pairs by Bonett & Price (2012, J. Educ. Behav. Stat. 37:479-488). That nothing changed on n documents does not prove
  that nothing ever changes, so no interval has zero width.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats as sps

from depthlens.analysis.stats import ALPHA

N_BOOT = 1000


@lru_cache(maxsize=16)  # all parts of a claim, and all its views, draw the same documents
def draws(n: int, n_boot: int, seed: int) -> np.ndarray:
    """How often each document is drawn: the sample itself, then bootstrap draws. Shape [1 + n_boot, document]."""
    counts = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
    counts = np.vstack([np.ones(n), counts])  # counts and not shares: sums of 0/1 values stay exact, so ties stay ties
    counts.setflags(write=False)
    return counts


def imaginary(shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """What two imaginary documents, each lost or won at one layer, add to summed losses. Shape [draw, layer]."""
    n_draws, n_layers = shape
    added = np.zeros(shape)
    for loss in (1, -1):
        times = rng.poisson(1, n_draws)  # how often a document is drawn
        at = np.repeat(np.arange(n_draws), times), np.repeat(rng.integers(0, n_layers, n_draws), times)
        np.add.at(added, at, loss)
    return added


def interval(values: np.ndarray, n: int, alpha: float = ALPHA) -> np.ndarray:
    """Expanded percentile interval of bootstrap draws over n documents, of level ``1 - alpha``.

    Draws without a value, such as a share of something that is not above 0, are left out.

    Args:
        values: The sample's own value first, then the draws. Shape [1 + n_boot, ...].
        n: Number of documents.
        alpha: Share of intervals that may miss the true value.

    Returns:
        Lower and upper bounds. Shape [2, ...]; NaN for one document.
    """
    if n < 2 or np.isnan(values[1:]).all():
        return np.full((2, *values.shape[1:]), np.nan)
    tail = sps.norm.cdf(np.sqrt(n / (n - 1)) * sps.t.ppf(alpha / 2, n - 1))
    return np.nanquantile(values[1:], [tail, 1 - tail], axis=0)


def percentile_interval(values: np.ndarray) -> np.ndarray:
    """Plain 95% percentile interval of draws, for ranks and rank correlations.

    Args:
        values: The sample's own value first, then the draws. Shape [1 + n_boot, ...].

    Returns:
        Lower and upper bounds. Shape [2, ...].
    """
    return np.nanquantile(values[1:], [ALPHA / 2, 1 - ALPHA / 2], axis=0)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """``numerator / denominator``, NaN where the denominator is not above 0."""
    shape = np.broadcast(numerator, denominator).shape
    return np.divide(numerator, denominator, out=np.full(shape, np.nan), where=denominator > 0)
