"""Agreement of detectors of heads, as a map of pairs.

See `depthlens.plots` for what all figures have in common, `depthlens.analysis.agreement` for the numbers.
"""

from __future__ import annotations

import numpy as np

from depthlens import arguments
from depthlens.analysis.findings import DescribedTable
from depthlens.analysis.stats import ALPHA
from depthlens.errors import UserError
from depthlens.plots import panels, theme
from depthlens.plots.effects import PROVEN
from depthlens.plots.theme import Plot, figure, themed, with_legend

COLUMNS = ("a", "b", "spearman", "n_shared", "p_spearman_adjusted", "p_shared_adjusted")
AGREES = f"agreement within layers ({PROVEN})"


@themed
def detector_agreement(agreement: DescribedTable, *, title: str | None = None) -> Plot:
    """Spearman's correlation of every two detectors (below the diagonal) and the heads their top k share (above it).

    A dot is agreement within layers, significant after Bonferroni's correction: a number without one may come from
    layers that both detectors prefer.

    Args:
        agreement: From `depthlens.detector_agreement`.
        title: Above the figure; by default the model and the number of heads.

    Raises:
        UserError: another table.
    """
    arguments.made_by(agreement, "sentences", "what depthlens.detector_agreement returned", "agreement")
    table, record = agreement.table, agreement.record
    if record.get("made_by") != "detector_agreement":
        raise UserError("agreement is a table of something else; give what depthlens.detector_agreement returned")
    names = list(dict.fromkeys([*table["a"], *table["b"]]))
    place = {name: i for i, name in enumerate(names)}
    rho, texts, dots = np.full((len(names), len(names)), np.nan), [], []
    for row in table[list(COLUMNS)].itertuples(index=False):
        high, low = sorted((place[row.a], place[row.b]))
        rho[low, high] = row.spearman
        rho[high, low] = row.n_shared / record["k"]
        texts += [(high, low, f"{row.spearman:.2f}".replace("-", "−")), (low, high, f"{row.n_shared}")]
        dots += [(high, low)] if row.p_spearman_adjusted < ALPHA else []
        dots += [(low, high)] if row.p_shared_adjusted < ALPHA else []
    what = f"agreement of {len(names)} detectors over {theme.counts(table['n_heads'])} heads"
    default = f"{record['model'].get('name', '')}: {what}".removeprefix(": ")
    fig = figure(title, default, height=1.9 + 0.45 * len(names))
    ax = fig.subplots()
    mesh = panels.cells(ax, rho, (-1, 1), cmap="vlag_r")
    for x, y, text in texts:
        ink = theme.ink_on(mesh.to_rgba(rho[y, x]))
        ax.text(x, y, text, ha="center", va="center", color=ink, gid="number")
    for x, y in dots:
        ax.plot(x + 0.36, y - 0.3, "o", ms=4, mew=0, color=theme.ink_on(mesh.to_rgba(rho[y, x])), gid="agrees")
    panels.name_rows(ax, names)
    ax.set_xticks(range(len(names)), names, rotation=30, ha="right", rotation_mode="anchor")
    label = f"Spearman's correlation (below the diagonal), share of the first {record['k']} heads (above it)"
    panels.colour_bar(mesh, ax, label)
    return with_legend(fig, [panels.mark_key(AGREES, ms=4)], 1)
