"""The claim on distillation, C6, as estimates. What they mean: `depthlens.claims.registry`."""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy

from depthlens.ablations import parse_condition
from depthlens.analysis.depth import centre
from depthlens.analysis.layer_profiles import Profile
from depthlens.analysis.stats import ALPHA
from depthlens.claims import estimates
from depthlens.claims.decision import ABOVE, DIFFERENT, Estimate, Part, Spec
from depthlens.claims.estimates import Sweeps, Term

SHIFT = Spec("the shift of reasoning in depth, beyond that of knowledge and of the control", "of depth", 0.0, DIFFERENT,
             0.05, margin=0.05, power=0.95)  # fmt: skip
RECOVERED = Spec("the most that a transplant recovers", "of the gap", 0.0, ABOVE, 0.25, main=None, power=0.7)


def shifted(
    reasoning: Sweeps, knowledge: Sweeps, control_reasoning: Sweeps, control_knowledge: Sweeps,
    *, seed: int, n_boot: int,
) -> Part:  # fmt: skip
    """The shift of the centre of mass on reasoning minus that on knowledge, minus the same of the control.

    A shift is the distilled model's centre minus the base's. The base is the same for the distilled model and the
    control, so its centres cancel and are not needed.
    """

    def place(profile: Profile, loss: np.ndarray, base: np.ndarray) -> np.ndarray:
        return centre(profile, loss)

    signs = zip((1, -1, -1, 1), (reasoning, knowledge, control_reasoning, control_knowledge), strict=True)
    terms = [Term(sign, sweeps, place, placed=True) for sign, sweeps in signs]
    # the base's centres cancel only where the distilled model and the control are judged on the same tasks
    return estimates.part(SHIFT, terms, seed=seed, n_boot=n_boot, pairs=((0, 2), (1, 3)))


def recovered(table: pd.DataFrame, n_layers: int) -> Part:
    """Some transplant recovers more than nothing of the gap.

    The largest of m true shares is between the largest lower and the largest upper bound of m simultaneous intervals.
    These are the intervals of the table, widened on both sides by the ratio of the normal quantiles of the corrected
    level (``1 - 0.05 / m``) and of 95%. A transplant of every layer is left out: it *is* the donor.

    Args:
        table: Of `depthlens.analysis.transplant_recovery`.
        n_layers: Of the base model.
    """
    rows = table[[not _everything(c, n_layers) for c in table["condition"]]]
    if not len(rows):
        return Part(RECOVERED, Estimate(why="every transplant takes all layers; transplant some of them"))
    left = tuple(f"{r.task}: {r.no_gap}" for r in rows.drop_duplicates("task").itertuples() if r.no_gap)
    rows = rows[rows["no_gap"] == ""]
    if not len(rows):
        return Part(RECOVERED, Estimate(n=int(table["n"].min()), seeds=1, left=left, why="; ".join(left)))
    critical = float(scipy.stats.norm.ppf(1 - ALPHA / 2 / len(rows)))
    wider = critical / float(scipy.stats.norm.ppf(1 - ALPHA / 2))
    low = rows["recovered"] - wider * (rows["recovered"] - rows["ci_low"])
    high = rows["recovered"] + wider * (rows["ci_high"] - rows["recovered"])
    best = rows["recovered"].idxmax()
    se = float(high[best] - low[best]) / 2 / critical
    tasks = tuple(f"{r.task} {r.metric}" for r in rows.drop_duplicates("task").itertuples())
    effect, n = float(rows["recovered"].max()), int(rows["n"].min())
    estimate = Estimate(
        "", effect, float(low.max()), float(high.max()), n, 1, se, critical=critical, tasks=tasks, left=left
    )
    return Part(RECOVERED, estimate)


def _everything(condition: str, n_layers: int) -> bool:
    return {a.layer for a in parse_condition(condition).ablations if a.site == "layer"} >= set(range(n_layers))
