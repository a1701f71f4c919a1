"""The documentation site: ``make docs`` builds it into build/docs.

Pages of the reference are made here, before Sphinx reads them: one for each name that api.md lists, and one for the
command line, which Typer writes. Tutorials are the executed notebooks of a run folder (``DEPTHLENS_RUN``).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat

import depthlens
from depthlens.plots.theme import MIME

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import badges  # noqa: E402

ROOT = HERE.parent
MADE = HERE / "made"  # not in git
THEME = {  # variables of pydata-sphinx-theme
    "color-primary": "blue", "color-link": "blue", "color-text-base": "ink", "color-text-muted": "soft",
    "color-background": "paper", "color-on-background": "paper", "color-surface": "panel", "color-border": "line",
    "font-family-base": "text", "font-family-monospace": "mono",
}  # fmt: skip

project = "depthlens"
author = copyright = "the depthlens authors"
version = release = depthlens.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
html_theme = "pydata_sphinx_theme"
html_static_path = ["_static", "made/static"]
html_extra_path = ["llms.txt"]  # what the site has, for language models (llmstxt.org); it links to the pages' sources
html_css_files = ["look.css", "site.css"]
html_title = "depthlens"
html_theme_options = {
    "show_prev_next": True,
    "navigation_with_keys": True,
    "header_links_before_dropdown": 6,
    "collapse_navigation": True,  # what unfolds a section in the side bar has no name for screen readers
    # the wide button is named "Search" and reads "Search Ctrl K", which screen readers cannot match
    "navbar_persistent": ["search-button"],
}
html_sidebars = dict.fromkeys(("results", "made/changelog"), ())  # sections of one page have nothing to navigate
html_context = {"default_mode": "auto"}  # else the theme complains on the console
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
nb_execution_mode = "off"  # the run has executed them
nb_merge_streams = True
nb_output_stderr = "remove"  # bars, and what libraries say while they load
copybutton_prompt_text = r">>> |\.\.\. "
copybutton_prompt_is_regexp = True
smartquotes_action = "qe"  # no dash for the two hyphens of an option
default_role = "literal"  # names in docstrings stand between single backticks
autodoc_typehints = "signature"
autodoc_preserve_defaults = False  # options of experiments stand in a signature that no source has
autodoc_member_order = "bysource"
napoleon_google_docstring = True
napoleon_use_rtype = False

# of `sphinx -b linkcheck`, which CI runs
linkcheck_ignore = [r"https?://(127\.0\.0\.1|localhost)"]
linkcheck_anchors_ignore_for_url = [r"https://github\.com/"]  # a script makes these anchors
linkcheck_timeout, linkcheck_retries = 30, 3

# pages outside of docs/, which the pages in it link to as GitHub does
OUTSIDE = {"CHANGELOG.md": "changelog", "benchmarks/README.md": "speed", "data/README.md": "data"}


def _outside() -> None:
    for source, name in OUTSIDE.items():
        shutil.copyfile(ROOT / source, MADE / f"{name}.md")


def _public_names() -> None:
    """A page for each public name of api.md."""
    page = (HERE / "api.md").read_text()
    for name in re.findall(r"^\| `dl\.([\w.]+)`", page, re.MULTILINE):
        found: Any = depthlens
        for part in name.split("."):
            found = getattr(found, part)
        kind = "class" if isinstance(found, type) else "function" if callable(found) else "data"
        members = "   :members:\n   :inherited-members:\n"
        directive = f".. auto{kind}:: depthlens.{name}\n{members if kind == 'class' else ''}"
        title = f"dl.{name}"
        (MADE / "api" / f"{name}.rst").write_text(f"{title}\n{'=' * len(title)}\n\n{directive}")


def _command_line() -> None:
    command = [sys.executable, "-m", "typer", "depthlens.cli", "utils", "docs", "--name", "depthlens"]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    # Typer cuts the sentences of its lists at 45 characters; those under the headings are whole
    whole = {name.split()[-1]: said for name, said in re.findall(r"^##+ `(depthlens [^`]+)`\n\n(.+)$", text, re.M)}
    text = re.sub(r"^\* `(\w+)`: .*\.\.\.$", lambda cut: f"* `{cut[1]}`: {whole[cut[1]]}", text, flags=re.M)
    (MADE / "command_line.md").write_text(re.sub(r"^# `depthlens`", "# The command line", text))


def _tutorials() -> None:
    """The executed notebooks of a run; those that it lacks, and all of them without a run, as they are."""
    folder = Path(os.environ.get("DEPTHLENS_RUN") or ROOT / "notebooks")
    if not folder.is_dir():
        raise FileNotFoundError(f"DEPTHLENS_RUN={folder}: there is no such folder; give one that depthlens run wrote")
    for notebook in (ROOT / "notebooks").glob("[0-9]*.ipynb"):
        source = folder / notebook.name
        shown = nbformat.read(source if source.is_file() else notebook, as_version=4)
        shown = badges.on_page(shown, badges.address(), notebook.stem)
        for cell in shown.cells:
            for output in cell.get("outputs", []):
                if about := output.get("data", {}).pop(MIME, None):
                    cell.metadata["mystnb"] = {"image": {"alt": about["title"]}}
        nbformat.write(shown, MADE / "tutorials" / notebook.name)


def _links(app: Any, docname: str, source: list[str]) -> None:
    """Links between the pages of the repository, as links of the site."""
    text, up = source[0], "../" * docname.count("/")
    if docname == "index":  # opens as the README does
        text = text.replace("% README", (ROOT / "README.md").read_text().partition("\n## Documentation")[0])
    text = re.sub(r"\]\((?:\.\./)*docs/", f"]({up}", text)
    for path, name in OUTSIDE.items():
        text = re.sub(rf"\]\((?:\.\./)*{re.escape(path)}", f"]({up}made/{name}.md", text)
    text = re.sub(r"\]\((?:\.\./)*notebooks/(\d\w*\.ipynb)", rf"]({up}made/tutorials/\1", text)
    if docname == "api":
        text = re.sub(r"^\| `dl\.([\w.]+)`", r"| [`dl.\1`](made/api/\1.rst)", text, flags=re.MULTILINE)
        text += "\n\n```{toctree}\n:hidden:\n:glob:\nmade/api/*\n```\n"
    # files that are no pages
    text = re.sub(r"\[([^\]]+)\]\((?:\.\./)*(?:benchmarks|data|notebooks|depthlens|tests)[^)]*\)", r"\1", text)
    source[0] = text


def _site_css() -> str:
    """Colours and type of pages for the site, whose readers choose light or dark with a button."""
    sheets = []
    pages = (ROOT / "depthlens" / "runner" / "templates" / "look.css").read_text(encoding="utf-8").split("@media")
    light, dark = (dict(re.findall(r"--([\w-]+): ([^;]+);", block)) for block in pages)
    for name, values in (("light", light), ("dark", light | dark)):
        said = " ".join(f"--pst-{theirs}: {values[ours]};" for theirs, ours in THEME.items())
        sheets.append(f'html[data-theme="{name}"] {{ {said} }}\n')
    return "".join(sheets)


def _foreign(app: Any, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Leave out what a class has of another library's."""
    own = getattr(getattr(member, "fget", member), "__module__", "depthlens") or "depthlens"
    return None if own.startswith("depthlens") else True


def setup(app: Any) -> None:
    """Make pages anew, then change links as pages are read."""
    shutil.rmtree(MADE, ignore_errors=True)
    for folder in ("api", "tutorials", "static"):
        (MADE / folder).mkdir(parents=True)
    (MADE / "static" / "look.css").write_text(_site_css())
    _outside()
    _public_names()
    _command_line()
    _tutorials()
    app.connect("source-read", _links)
    app.connect("autodoc-skip-member", _foreign)
