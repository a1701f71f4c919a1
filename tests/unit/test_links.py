"""Links of the pages lead somewhere: files exist, and anchors are headings; what is on other sites is not asked."""

import re
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest

from depthlens import paths

ROOT = paths.data_dir().parent
PAGES = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "benchmarks/README", "data/README")]
PAGES += [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "howto").glob("*.md"))]
LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+(?:\([^()]*\)[^()\s]*)?)(?: \"[^\"]*\")?\)")
FENCE = re.compile(r"^( *)(```|:::).*?^\1\2 *$", re.MULTILINE | re.DOTALL)
CONF = (ROOT / "docs" / "conf.py").read_text(encoding="utf-8")
SITE = "docs/made/"  # pages that the site makes


def links(text: str) -> list[str]:
    """Where the links of a page lead, code left out."""
    return LINK.findall(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text)))


def slugs(text: str) -> set[str]:
    """Anchors of a page by GitHub's rule: small letters, hyphens for spaces, no other signs, repeated ones numbered."""
    found, seen = set(), Counter()
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def fault(page: Path, link: str) -> str | None:
    """What is wrong with a link of a page; None where it leads somewhere."""
    place, _, anchor = unquote(link).partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.is_relative_to(ROOT):
        return "leaves the repository"
    if target.relative_to(ROOT).as_posix().startswith(SITE):
        return None
    if not target.exists():
        return "no such file"
    if anchor and (target.suffix != ".md" or anchor not in slugs(target.read_text(encoding="utf-8"))):
        return "no such heading"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    inside = [link for link in links(page.read_text(encoding="utf-8")) if not re.match(r"[a-z]+:", link)]
    assert {link: fault(page, link) for link in inside if fault(page, link)} == {}


def test_the_page_for_language_models_links_to_pages_of_the_site():
    """In the form of llmstxt.org: a title, a summary, and lists of links with a line each; Sphinx copies sources."""
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# depthlens\n\n> ", text) and 'html_extra_path = ["llms.txt"]' in CONF
    listed = [line for line in text.splitlines() if line.startswith("- ")]
    assert len(listed) == len(links(text)) > 10 and all(re.match(r"- \[[^]]+\]\(\S+\): \w", line) for line in listed)
    outside = set(re.findall(r'": "(\w+)"', re.search("^OUTSIDE = .*$", CONF, re.MULTILINE)[0])) | {"command_line"}
    for link in links(text):
        page = re.fullmatch(r"_sources/(.+)\.md\.txt", link)[1]
        assert page.removeprefix("made/") in outside or (ROOT / "docs" / f"{page}.md").is_file(), link
