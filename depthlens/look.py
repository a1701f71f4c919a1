"""Colours of figures, and their type in a notebook; colours and fonts of pages are in `runner/templates/look.css`.

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
MIME = "application/vnd.depthlens.figure+json"  # in a notebook: the title of a figure, and its table as CSV
