"""Synthetic layer sweeps as results, whose true losses are known."""

from __future__ import annotations

import made_results
import numpy as np
from scipy.stats import norm

N_LAYERS, N_DOCS = 12, 40
BASE, CHANCE, GAIN = 0.9, 0.25, 0.1
FIRST = np.arange(N_LAYERS) < 2
THIRD = np.arange(N_LAYERS) * 3 // N_LAYERS


def answers(loss, rng, n=N_DOCS, base=BASE, hardness=None):
    """0/1 answers of the whole model [document] and without each layer [document, layer], of these expected losses.

    A right answer is lost and a wrong one won, both at random; a document easily lost at one layer is so at all.
    """
    hardness = rng.standard_normal(n) if hardness is None else hardness
    whole = norm.cdf(hardness) < base  # a hard document is answered wrongly, and lost easily where it is not
    gain = np.where(np.asarray(loss) >= 0, GAIN, GAIN - np.asarray(loss) / (1 - base))
    lost = (np.asarray(loss) + (1 - base) * gain) / base
    fragile = rng.standard_normal(n)
    noise = np.sqrt(0.3) * fragile[:, None] + np.sqrt(0.7) * rng.standard_normal((n, len(loss)))
    flip = norm.cdf(noise) < np.where(whole[:, None], lost, gain)
    return whole.astype(float), np.where(flip, ~whole[:, None], whole[:, None]).astype(float)


def result(tasks, *, model="m", seed=0, names=None, chance=CHANCE, n=N_DOCS, **options):
    """A sweep; tasks: {name: expected loss of each condition}."""
    made = {}
    for i, (task, loss) in enumerate(tasks.items()):
        whole, without = answers(loss, np.random.default_rng([seed, i]), n=n, **options)
        conditions = names or [f"L{layer}" for layer in range(len(loss))]
        made[task] = {"baseline": whole} | dict(zip(conditions, without.T, strict=True))
    return made_results.result(made, model=model, n_layers=N_LAYERS, info={"chance": chance})


# layer profiles: expected loss of accuracy (0.65 above chance)
EARLY = np.where(THIRD == 0, 0.5, 0.03)
LATE = np.where(THIRD == 0, 0.03, 0.45)
FLAT = np.full(N_LAYERS, 0.2)
FEW = np.where(FIRST, 0.55, 0.0)
VIEWS = ("", "[1:]", "@mean")


def viewed(loss, name="task", *, seeds=3, views=VIEWS, **options):
    """Sweeps of one task under several views, one a few-shot seed."""
    names = [f"L{layer}{suffix}" for suffix in views for layer in range(N_LAYERS)]
    of_view = dict(zip(VIEWS, loss, strict=True)) if isinstance(loss, tuple) else dict.fromkeys(views, loss)
    losses = {name: np.concatenate([of_view[suffix] for suffix in views])}
    return [result(losses, names=names, seed=seed, **options) for seed in range(seeds)]
