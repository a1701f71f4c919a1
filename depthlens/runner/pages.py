"""Executed notebooks in, web pages out that need no network, and an index over those of a folder.

Each page is one file with its styles, figures and their numbers inside. A content security policy forbids the browser
every request and every script but that of the view of answers (`depthlens.analysis.show.views`), so that a page looks
the same offline, in a mail and in ten years. LaTeX is shown as it is written, because rendering it would need a script.
The pages' templates and styles are in ``templates``.

The index needs nothing but the notebooks, because each carries the record of its run in its metadata. Notebooks that
papermill or a person ran are listed too.

Limits: interactive outputs (widgets, plotly) need scripts and show their text form instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from nbconvert.exporters import HTMLExporter
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from depthlens import arguments
from depthlens.analysis.show import views
from depthlens.errors import UserError
from depthlens.look import MIME
from depthlens.paths import PAGE, refuse_foreign_page, writable_folder
from depthlens.runner.notebook_files import Executed, read_notebook, write_whole

_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    f'img-src data:; font-src data:; script-src {views.script_hash()}">'
)
# Best form first. Widgets and javascript are left out because neither works without a script.
_SHOWN = ["text/html", "text/markdown", "image/png", "image/svg+xml", "image/jpeg", "text/plain"]
_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("depthlens.runner"), autoescape=True)


def gallery(folder: Path | str) -> Path:
    """Make the page of every executed notebook of a folder, and the index over them; returns the path of the index.

    Raises:
        UserError: the folder has no notebooks, a broken one or a page of something else, or cannot be written.
    """
    folder = Path(arguments.PATH("folder", folder))
    if not (notebooks := executed(folder)):
        raise UserError(f"no notebooks in {str(folder)!r}; give a folder that `depthlens run ... --out` wrote")
    writable_folder(folder)
    for notebook in notebooks:
        write_page(folder, notebook)
    return write_index(folder)


def executed(folder: Path) -> list[Executed]:
    """The notebooks of a folder, and of folders in it those that have a page: one that opens the index, then by name.

    Raises:
        UserError: one of them is broken, or the folder's ``index.html`` is not of depthlens.
    """
    refuse_foreign_page(folder)
    paths = [*folder.glob("*.ipynb"), *(p for p in folder.glob("*/*.ipynb") if p.with_suffix(".html").exists())]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in paths]
    found = [Executed(name, read_notebook(path)) for name, path in zip(names, paths, strict=True) if name[0] != "."]
    return sorted(found, key=lambda notebook: (not notebook.opens, notebook.name))


def write_index(folder: Path) -> Path:
    """Write the index over the notebooks of a folder, and pages that lack; returns its path."""
    notebooks = executed(folder)
    for notebook in notebooks:
        if not (folder / f"{notebook.name}.html").exists():
            write_page(folder, notebook)
    title = f"depthlens: {folder.resolve().name}"
    text = render("index.html.j2", ("base.css", "index.css"), notebooks=notebooks, title=title)
    write_whole(folder / PAGE, text)
    return folder / PAGE


def write_page(folder: Path, notebook: Executed) -> None:
    """Write the page of a notebook beside it."""
    path = folder / f"{notebook.name}.html"
    # what a reader may want beside a page: the notebook itself, and the results that it wrote
    results = sorted(p for p in path.with_suffix("").rglob("*") if p.is_file())
    files = [file.relative_to(path.parent).as_posix() for file in (path.with_suffix(".ipynb"), *results)]
    write_whole(path, notebook_page(notebook, files))


def notebook_page(notebook: Executed, files: Sequence[str] = ()) -> str:
    """The page of a notebook, with links to files beside it."""
    exporter = HTMLExporter(
        template_name="classic",
        raw_template=_text("notebook.html.j2"),
        embed_images=True,
        # the bar of a cell that was interrupted is many outputs
        config=Config(NbConvertBase={"display_data_priority": _SHOWN}, CoalesceStreamsPreprocessor={"enabled": True}),
    )
    css = _styles("base.css", "notebook.css") + _code_css()
    resources = {"policy": _POLICY, "css": css, "notebook": notebook, "files": files, "figure_type": MIME}
    return exporter.from_notebook_node(notebook.nb, resources=resources)[0]


def render(template: str, styles: Sequence[str], **values: Any) -> str:
    """A page from one of the templates, with its styles inside and the policy that forbids every request."""
    return _TEMPLATES.get_template(template).render(policy=_POLICY, css=_styles(*styles), **values)


def _styles(*names: str) -> str:
    return "".join(map(_text, ("look.css", *names)))


def _code_css() -> str:
    """Two of Pygments' styles that keep a contrast of 4.5 to 1 on the ground of the pages."""
    light = HtmlFormatter(style="xcode").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _text(name: str) -> str:
    """The text of a file among the templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
