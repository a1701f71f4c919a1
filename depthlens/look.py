"""Colours, type and spacing of figures, pages and the site, stated once.

Colours of data are those of Okabe and Ito (2008, jfly.uni-koeln.de/color) that differ in lightness, too. Text keeps a
contrast of 4.5 to 1 with what is behind it (WCAG 2.1, AA). Figures are always on white paper; pages and the site
follow the reader's choice of light or dark.
"""

from __future__ import annotations

PALETTE = ("#0072B2", "#E69F00", "#000000", "#009E73")  # lightness 46, 71, 0, 58 of 100
INK, GREY = "#262626", "#767676"  # the grey keeps 4.5:1 on white, the least that small text needs
PALE = "#B0B0B0"  # what must not draw attention: hatching, dots of other heads
EMPTY = "#E8E8E8"  # a cell without a number
CLAIMED, CLAIMED_OPACITY = "#56A0D3", 0.28  # the side of a threshold that a claim is about; seen in light and dark

LIGHT = {
    "ink": "#1c2127", "soft": "#5b6570", "paper": "#ffffff", "panel": "#f5f6f8", "line": "#dfe3e8",
    "blue": "#00619e", "bad": "#a63f00", "bad-panel": "#fdf1ea",
}  # fmt: skip
DARK = {
    "ink": "#e4e7eb", "soft": "#9aa5b1", "paper": "#15181c", "panel": "#1d2126", "line": "#333a42",
    "blue": "#6cb8ea", "bad": "#f09a66", "bad-panel": "#2c1e16",
}  # fmt: skip
TYPE = {
    "text": 'system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif',
    "mono": 'ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace',
    "small": ".88rem",
    "space": "1rem",
}


def page_css() -> str:
    """The variables that the style sheets of pages use, for light and for dark screens; print is light."""
    dark = f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {variables(DARK)} }} }}"
    return f":root {{ color-scheme: light dark; {variables(LIGHT | TYPE)} }}\n{dark}\n"


def variables(values: dict[str, str]) -> str:
    """Variables of CSS by name."""
    return " ".join(f"--{name}: {value};" for name, value in values.items())
