"""One visual language: text can be read on every ground, and style sheets take colours from one place."""

from __future__ import annotations

import re
from pathlib import Path

from depthlens import look

ROOT = Path(__file__).parents[2]
TEXTS = [(ink, ground) for ink in ("ink", "soft", "blue") for ground in ("paper", "panel")]
TEXTS += [("bad", "paper"), ("bad", "bad-panel")]
AA = 4.5


def luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.1."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def variables(css: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): ([^;]+);", css))


def test_text_keeps_its_contrast_and_the_site_has_the_colours_of_the_pages():
    light, dark = map(variables, look.page_css().split("@media"))
    for values, site in zip((light, light | dark), map(variables, look.site_css().splitlines()), strict=True):
        assert not {pair for pair in TEXTS if contrast(values[pair[0]], values[pair[1]]) < AA}
        for name, of_pages in (("link", "blue"), ("background", "paper"), ("text-base", "ink"), ("surface", "panel")):
            assert site[f"pst-color-{name}"] == values[of_pages]
    assert min(contrast(colour, "#ffffff") for colour in (look.INK, look.GREY)) >= AA


def test_no_style_sheet_has_colours_of_its_own():
    sheets = [*(ROOT / "depthlens" / "runner" / "templates").glob("*.css"), *(ROOT / "docs" / "_static").glob("*.css")]
    used = {sheet.name: re.findall(r"#[0-9a-fA-F]{6}\b", sheet.read_text()) for sheet in sheets}
    assert len(used) >= 5 and not any(used.values())
    known = variables(look.page_css()) | variables(look.site_css())
    wanted = {name for sheet in sheets for name in re.findall(r"var\(--([\w-]+)\)", sheet.read_text())}
    assert wanted <= {*known}
