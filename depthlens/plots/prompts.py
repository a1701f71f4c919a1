"""One prompt: which token comes next, and what was found for each of its tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from depthlens.plots import theme
from depthlens.plots.panels import maps
from depthlens.plots.theme import themed

_CHARS = 12  # characters of one token that are drawn


def _short(token: str, most: int = _CHARS) -> str:
    text = theme.visible(token, space="·")
    return text if len(text) <= most else text[: most - 1] + "…"


@themed
def token_grid(found: Any) -> None:
    """What `depthlens.patch` or `depthlens.logit_lens` found, a row a part or depth and a column a token.

    Patching has the effect as colour, and the logit lens the probability, with the likeliest next token in each cell.

    Args:
        found: What they returned.

    Example:
        >>> figure = dl.logit_lens(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo").plot()
        >>> figure.table.columns.tolist()
        ['panel', 'series', 'x', 'value']
    """
    table, says = found.table, "says" in found.table
    row, value = ("depth", "probability") if says else ("part", "effect")
    rows = [str(name) for name in table[row].unique()]
    places = range(len(found.tokens)) if says else found.places
    table = table.assign(x=np.tile(range(len(places)), len(rows)))
    first = 0 if says else int(table.loc[table[value] != 0, "x"].min())  # patches do nothing before
    most = float(table[value].abs().max()) or 1.0
    # under a patch each token stands with the one that the patch comes from, where they differ
    pairs = zip(found.tokens, found.tokens if says else found.sources, strict=True)
    texts = [_short(a) if a == b else f"{_short(a, 7)}←{_short(b, 7)}" for a, b in pairs]
    columns = [f"{place} {text}" for place, text in zip(places, texts, strict=True)][first:]
    drawn = table[table["x"] >= first]
    drawn = drawn.assign(x=drawn["x"] - first, y=drawn[row].astype(str).map(rows.index), value=drawn[value])
    height = 0.19 * max(len(rows), 9) + 1.2 + 0.07 * max(map(len, columns))
    look: dict[str, Any] = {"rows": rows, "columns": columns, "height": height, "xlabel": "token"}
    look["width"] = max(4.5, min(theme.WIDTH, 1.2 + (0.75 if says else 0.45) * len(columns)))
    if says:
        drawn = drawn.assign(text=[_short(said, 9) for said in drawn["says"]])
        look["ylabel"], default = "after this many layers", "What each layer would say after each token"
        maps(default, drawn, (0, 1), "probability of the likeliest next token", **look)
        return
    default = f"What a patch of one part moves ({found.direction}) of the {theme.visible(found.compared, space=' ')}"
    maps(default, drawn, (-most, most), "share of this difference that moves", cmap="vlag", **look)
