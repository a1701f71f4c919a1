"""Executed notebooks in, web pages out that need no network.

Each page is one file with its styles, figures and their numbers inside. It has no script, and a content security policy
forbids the browser every request, so that a page looks the same offline, in a mail and in ten years. LaTeX is shown as
it is written, because rendering it would need a script. The pages' templates and styles are in ``templates``.

Limits: interactive outputs (widgets, plotly) need scripts and show their text form instead.
"""

from __future__ import annotations

import copy
import html
import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

from depthlens import look
from depthlens.claims.scorecard_html import CLASS as SCORECARD
from depthlens.runner.notebook_files import run_state
from depthlens.runner.page_figures import dress
from depthlens.runner.run_facts import RunFacts, run_facts

_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:\">"
)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_SCRIPT = re.compile(r"<script\b.*?(</script\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# Best form first. Widgets and javascript are left out because neither works without a script.
_SHOWN = ["text/html", "text/markdown", "image/png", "image/svg+xml", "image/jpeg", "text/plain"]
_NO_NUMBER = re.compile(r"<td>(?:NaN|None|&lt;NA&gt;)</td>")
_ITEM = re.compile(r"^[-*] ", re.MULTILINE)
# a table that is wider than the window scrolls in a frame that the keyboard reaches
_FRAME = '<div class="frame" tabindex="0" role="group" aria-label="table"><table'
RUNNING, TO_COME = "running", "to come"
UNFINISHED = (RUNNING, TO_COME)
RELOAD_SECONDS = 5  # after which a browser loads the index of a run again
_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("depthlens.runner"), autoescape=True)


@dataclass(frozen=True)
class Card:
    """What the index shows of one notebook.

    Attributes:
        name: File name without ending.
        question: The notebook's title, or a model.
        status: ``ok``, ``failed``, ``interrupted`` or ``not run``; in a run also ``running`` or ``to come``.
        opens: It comes before the others.
        has_page: ``NAME.html`` exists.
        finding: The first sentence of what it found, as HTML.
        details: The rest of it, folded.
        figure: Its first figure, a PNG as base64.
        scorecard: Its table of verdicts, as HTML.
        facts: What it was run with.
        error: One line where it did not finish.
        seconds: How long it ran.
        detail: What it is doing now.
        profile: Profile of its parameters.
        finished: Date and time.
    """

    name: str
    question: str
    status: str
    opens: bool = False
    has_page: bool = False
    finding: str = ""
    details: str = ""
    figure: str | None = None
    scorecard: str = ""
    facts: RunFacts | None = None
    error: str | None = None
    seconds: float | None = None
    detail: str = ""
    profile: str | None = None
    finished: str | None = None

    @property
    def took(self) -> str:
        """How long it ran, for people."""
        if self.seconds is None:
            return ""
        minutes, seconds = divmod(self.seconds, 60)
        return f"{minutes:.0f} min {int(seconds)} s" if minutes else f"{seconds:.1f} s"

    @property
    def about(self) -> list[str]:
        """Models, documents, time and name, as far as they are known."""
        known = [", ".join(self.facts.models), self.facts.setting] if self.facts else []
        return [fact for fact in (*known, self.detail, self.took, self.name) if fact]


def question(nb: NotebookNode, name: str) -> str:
    """The first markdown heading, which by convention is the notebook's question."""
    return next((heading for cell in nb.cells for heading in _headings(cell)), name)


def _headings(cell: NotebookNode) -> list[str]:
    """The headings of a markdown cell without marks; none of another cell."""
    found = _HEADING.findall(cell.source) if cell.cell_type == "markdown" else []
    return [re.sub(r"[*`]", "", heading) for heading in found]


def headline(nb: NotebookNode) -> tuple[str, bool]:
    """Text of the cells tagged ``headline``, and whether it is markdown (else plain text)."""
    texts, is_markdown = [], False
    for cell in nb.cells:
        if cell.cell_type != "code" or "headline" not in cell.metadata.get("tags", []):
            continue
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                texts.append(output.text)
            elif markdown := output.get("data", {}).get("text/markdown"):
                texts.append(markdown)
                is_markdown = True
            elif (plain := output.get("data", {}).get("text/plain")) and "image/png" not in output.data:
                texts.append(plain)
    return "\n\n".join(text.strip() for text in texts), is_markdown


def finding(nb: NotebookNode) -> tuple[str, str]:
    """The first sentence of the headline and its rest, folded, as HTML without scripts; empty if there is none."""
    text, is_markdown = headline(nb)
    if not is_markdown:
        parts = text.partition("\n")[::2]
        first, rest = (f'<p class="plain">{html.escape(part)}</p>' if part else "" for part in parts)
        return first, _folded(rest)
    if text.startswith(("- ", "* ")):
        first, *others = _ITEM.split(text)[1:]
        rest = "".join(f"- {item}" for item in others)
    else:
        first, _, rest = text.partition("\n\n")
    return _without_scripts(markdown2html(first)), _folded(_without_scripts(markdown2html(rest)) if rest else "")


def _folded(rest: str) -> str:
    """In a fold, unless it is one already."""
    if not rest or rest.lstrip().startswith("<details"):
        return rest
    return f"<details><summary>More of what it found</summary>{rest}</details>"


def finding_in_words(nb: NotebookNode) -> str:
    """The first sentence of the headline without marks, for descriptions of figures."""
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", finding(nb)[0])).replace("¶", "").split())


def scorecard(nb: NotebookNode) -> str:
    """The table of verdicts among the outputs, as HTML; "" where there is none."""
    for cell in nb.cells:
        for output in cell.get("outputs", []):
            if f'class="{SCORECARD}"' in (found := output.get("data", {}).get("text/html", "")):
                return _without_scripts(found[: found.index("</table>") + len("</table>")])
    return ""


def first_figure(nb: NotebookNode) -> str | None:
    """The first PNG among the outputs, of a cell tagged ``opening`` if there is one; base64 as notebooks store it."""
    for cell in sorted(nb.cells, key=lambda cell: not opens(cell)):
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                return re.sub(r"\s", "", png)
    return None


def opens(cell: NotebookNode) -> bool:
    """Whether a cell is tagged as the most important one of a run."""
    return "opening" in cell.metadata.get("tags", [])


def notebook_page(
    nb: NotebookNode,
    name: str,
    *,
    error: str | None = None,
    footer: str = "",
    files: Sequence[str] = (),
    beside: tuple[str | None, str | None] = (None, None),
) -> str:
    """Render one executed notebook.

    Args:
        nb: The executed notebook; it is not changed.
        name: Its file name without ending, for links and as a title of last resort.
        error: One line to show on top when the notebook did not finish.
        footer: One line about the run.
        files: Paths of files to link to, relative to the page.
        beside: Names of the notebooks before and after it.
    """
    nb = copy.deepcopy(nb)
    nb.metadata["title"] = question(nb, name)
    top = {"finding": finding(nb), "facts": run_facts(nb, name), "files": files, "beside": beside}
    _prepare(nb, name)
    exporter = HTMLExporter(
        template_name="classic",
        raw_template=_text("notebook.html.j2"),
        embed_images=True,
        config=Config(NbConvertBase={"display_data_priority": _SHOWN}),
    )
    exporter.log.addFilter(_no_alt_text_nagging)
    css = _styles("base.css", "notebook.css") + _code_css()
    page = {"policy": _POLICY, "css": css, "error": error, "footer": footer, **top}
    body, _ = exporter.from_notebook_node(nb, resources={"depthlens": page})
    body = _without_scripts(body).replace("<th></th>", "<td></td>")
    body = _NO_NUMBER.sub("<td></td>", body)
    return body.replace("<table", _FRAME).replace("</table>", "</table></div>")


def index_page(cards: Sequence[Card], *, title: str, subtitle: str = "", of: str = "notebook") -> str:
    """Render the verdicts and the list of notebooks, or of models: question or name, finding, first figure, status.

    As long as one of them is running or to come, browsers load the page again every few seconds.
    """
    models = dict.fromkeys(card.facts.models[0] for card in cards if card.facts and card.facts.models)
    counts = Counter(card.status for card in cards)
    n_unfinished = sum(counts[status] for status in UNFINISHED)
    if n_unfinished:
        done = f"{len(cards) - n_unfinished} of {len(cards)} {of}s done"
        count = ", ".join([done, *(f"{counts[status]} {status}" for status in UNFINISHED if counts[status])])
    else:
        count = f"{len(cards)} {of}" if len(cards) == 1 else f"{len(cards)} {of}s"
        if n_bad := len(cards) - counts["ok"]:
            count += f", {n_bad} not finished"
    return render(
        "index.html.j2",
        ("base.css", "index.css"),
        cards=cards,
        scorecards=[card for card in cards if card.scorecard],
        models=list(models),
        of=of,
        title=title,
        about=" · ".join(filter(None, (count, subtitle))),
        reload_seconds=RELOAD_SECONDS if n_unfinished else None,
        symbols={"ok": "✓", "failed": "✗", RUNNING: "▶"},
    )


def render(template: str, styles: Sequence[str], **values: Any) -> str:
    """A page from one of the templates, with its styles inside and the policy that forbids every request."""
    return _TEMPLATES.get_template(template).render(policy=_POLICY, css=_styles(*styles), **values)


def dress_figures(nb: NotebookNode, name: str) -> None:
    """Turn the pictures of a notebook into figures of HTML, with words, tooltips and numbers; the notebook is changed.

    Args:
        nb: An executed notebook.
        name: Its file name without ending, for the names of the files to download.
    """
    section, found, n_figures = question(nb, name), finding_in_words(nb), 0
    first = first_figure(nb)
    for cell in nb.cells:
        section = [section, *_headings(cell)][-1]
        for output in cell.get("outputs", []):
            png = re.sub(r"\s", "", output.get("data", {}).get("image/png", ""))
            n_figures += bool(png)
            # the finding is what the figure shows that stands for the notebook, and not the others
            shows_it = found and png and png == first
            words = section + (" " if section.endswith("?") else ": ") + found if shows_it else f"Figure: {section}"
            dress(output, f"{name}-{n_figures}", words)


def _styles(*names: str) -> str:
    return look.page_css() + "".join(map(_text, names))


def _without_scripts(text: str) -> str:
    return _SCRIPT.sub("", text)


def _no_alt_text_nagging(record: logging.LogRecord) -> bool:
    """Drop nbconvert's warning about images without description, which means nothing to a user of the terminal."""
    return "lternative text is missing" not in record.getMessage()


def _prepare(nb: NotebookNode, name: str) -> None:
    """Drop cells and outputs that are of no use to a reader, and dress figures."""
    dress_figures(nb, name)  # before its heading goes, which describes the figures below it
    out = Path(str(run_state(nb).get("parameters", {}).get("out", "")))
    # as `depthlens run` names it; anything shorter could stand in the text for something else
    folder = f"{out.parent}/" if out.is_absolute() and out.name == name and len(out.parts) > 2 else ""
    for cell in nb.cells:  # the page has the title already
        if cell.cell_type == "markdown" and (heading := _HEADING.search(cell.source)):
            cell.source = cell.source.replace(heading[0], "", 1)
            break
    cells = []
    for cell in nb.cells:
        if not cell.source.strip() and not cell.get("outputs"):
            continue
        if folder:  # a page is read on other machines, beside the files of its run
            for output in cell.get("outputs", []):
                _in_place(output, folder)
            cell.source = cell.source.replace(folder, "")
        cells.append(cell)
    nb.cells = cells
    nb.metadata.pop("widgets", None)


def _in_place(output: NotebookNode, folder: str) -> None:
    """Name files relative to the page and not by where they were on the machine of the run."""
    if "text" in output:
        output.text = output.text.replace(folder, "")
    for kind, text in output.get("data", {}).items():
        if kind.startswith("text/") and isinstance(text, str):
            output.data[kind] = text.replace(folder, "")


def _code_css() -> str:
    """Two of Pygments' styles that keep a contrast of 4.5 to 1 on the ground of the pages."""
    light = HtmlFormatter(style="xcode").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


def _text(name: str) -> str:
    """The text of a file among the templates."""
    return (Path(__file__).parent / "templates" / name).read_text(encoding="utf-8")
