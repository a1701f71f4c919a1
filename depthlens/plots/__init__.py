"""Figures of results: a `Result` goes in, a `Figure` comes out that was neither shown nor saved.

Labels, units, chance levels and the number of layers are read from the result. A layer is marked as critical
only where its loss is significant after Holm's correction; a task at chance is drawn in grey and says so.

Made for print and for colour-blind readers (`depthlens.plots.theme`): colours that differ in lightness, too, a marker
of its own for every series, no text below 8 pt at the width of a page.

Figures do not belong to pyplot, so none is left open, and ``%matplotlib`` does not matter: the last
expression of a notebook cell displays its figure exactly once, in Jupyter and under papermill alike. Anywhere
else in a cell write ``display(figure)``.
"""

from depthlens.plots.attention import attention
from depthlens.plots.blocks import block_map, greedy_curve
from depthlens.plots.claims import scorecard
from depthlens.plots.comparison import loss_difference, profile_comparison, recovery_curve
from depthlens.plots.deltas import activation_deltas, weight_deltas
from depthlens.plots.geometry import angular_map, effect_map, influence_profile, logit_lens, predictor_scatter
from depthlens.plots.head_lists import head_overlap, removal_curve
from depthlens.plots.heads import head_map
from depthlens.plots.layers import depth_profile, protocol_comparison
from depthlens.plots.next_token import prediction
from depthlens.plots.open_book import beyond
from depthlens.plots.reasoning import first_mistakes, loss_shares
from depthlens.plots.theme import Plot

__all__ = [
    "Plot",
    "activation_deltas",
    "angular_map",
    "attention",
    "beyond",
    "block_map",
    "depth_profile",
    "effect_map",
    "first_mistakes",
    "greedy_curve",
    "head_map",
    "head_overlap",
    "influence_profile",
    "logit_lens",
    "loss_difference",
    "loss_shares",
    "prediction",
    "predictor_scatter",
    "profile_comparison",
    "protocol_comparison",
    "recovery_curve",
    "removal_curve",
    "scorecard",
    "weight_deltas",
]
