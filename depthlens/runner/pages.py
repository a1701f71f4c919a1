"""Executed notebooks in, web pages out that ask nothing of the network.

Each page is one file: styles and figures are inside it, there is no script, and a content security policy
forbids the browser every outside request, so that a page looks the same on a plane, in a mail and in ten
years. LaTeX is shown as it is written, since rendering it would need a script.

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

from nbconvert.exporters import HTMLExporter
from nbconvert.filters import markdown2html
from nbformat import NotebookNode
from pygments.formatters import HtmlFormatter
from traitlets.config import Config

_POLICY = (
    '<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; font-src data:\">"
)
_HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
_SCRIPT = re.compile(r"<script\b.*?(</script\s*>|\Z)", re.DOTALL | re.IGNORECASE)
# Best form first. No widgets and no javascript: neither works without a script.
_SHOWN = ["text/html", "text/markdown", "image/png", "image/svg+xml", "image/jpeg", "text/plain"]
_LONG_CODE = 30  # lines; longer code starts folded, because the findings are what the page is read for
RUNNING, TO_COME = "running", "to come"
UNFINISHED = (RUNNING, TO_COME)
RELOAD_SECONDS = 5  # between two looks of a browser at the index of a run


@dataclass(frozen=True)
class Card:
    """What the index shows of one notebook.

    Attributes:
        name: File name without ending.
        question: The notebook's title.
        status: ``ok``, ``failed``, ``interrupted`` or ``not run``; in a run also ``running`` or ``to come``.
        opens: It comes before the others.
        has_page: ``NAME.html`` exists.
        headline: Its finding, as HTML.
        figure: Its first figure, a PNG as base64.
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
    headline: str = ""
    figure: str | None = None
    error: str | None = None
    seconds: float | None = None
    detail: str = ""
    profile: str | None = None
    finished: str | None = None


def question(nb: NotebookNode, name: str) -> str:
    """The first markdown heading, which by convention is the notebook's question."""
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (heading := _HEADING.search(cell.source)):
            return re.sub(r"[*`]", "", heading[1])
    return name


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


def headline_html(nb: NotebookNode) -> str:
    """The headline as HTML without scripts, empty if the notebook has none."""
    text, is_markdown = headline(nb)
    if is_markdown:
        return _SCRIPT.sub("", markdown2html(text))
    return f'<p class="plain">{html.escape(text)}</p>' if text else ""


def first_figure(nb: NotebookNode) -> str | None:
    """The first PNG among the outputs, of a cell tagged ``opening`` if there is one; base64 as notebooks store it."""
    for cell in sorted(nb.cells, key=lambda cell: not opens(cell)):
        for output in cell.get("outputs", []):
            if png := output.get("data", {}).get("image/png"):
                return re.sub(r"\s", "", png)
    return None


def opens(cell: NotebookNode) -> bool:
    """Whether a cell is tagged as what a reader wants who reads one thing only."""
    return "opening" in cell.metadata.get("tags", [])


def notebook_page(nb: NotebookNode, name: str, *, error: str | None = None, footer: str = "") -> str:
    """Render one executed notebook.

    Args:
        nb: The executed notebook; it is not changed.
        name: Its file name without ending, for links and as a title of last resort.
        error: One line to show on top when the notebook did not finish.
        footer: One line about the run.
    """
    nb = copy.deepcopy(nb)
    _prepare(nb)
    nb.metadata["title"] = question(nb, name)
    exporter = HTMLExporter(
        template_name="classic",
        raw_template=_NOTEBOOK_TEMPLATE,
        embed_images=True,
        config=Config(NbConvertBase={"display_data_priority": _SHOWN}),
    )
    exporter.log.addFilter(_no_alt_text_nagging)
    banner = f'<p class="banner failed"><strong>Not finished:</strong> {html.escape(error)}</p>' if error else ""
    resources = {
        "depthlens": {
            "policy": _POLICY,
            "css": _CSS + _NOTEBOOK_CSS + _code_css(),
            "banner": banner,
            "footer": html.escape(footer),
            "long_code": _LONG_CODE,
        }
    }
    body, _ = exporter.from_notebook_node(nb, resources=resources)
    return _SCRIPT.sub("", body)


def index_page(cards: Sequence[Card], *, title: str, subtitle: str = "") -> str:
    """Render the list of notebooks: question, headline result, first figure, status.

    As long as one of them is running or to come, browsers load the page again every few seconds.
    """
    counts = Counter(card.status for card in cards)
    unfinished = [card for card in cards if card.status in UNFINISHED]
    if unfinished:
        done = f"{len(cards) - len(unfinished)} of {len(cards)} notebooks done"
        count = ", ".join([done, *(f"{counts[status]} {status}" for status in UNFINISHED if counts[status])])
    else:
        count = f"{len(cards)} notebook" if len(cards) == 1 else f"{len(cards)} notebooks"
        if n_bad := len(cards) - counts["ok"]:
            count += f", {n_bad} not finished"
    about = " · ".join(filter(None, (count, subtitle)))
    reload = f'<meta http-equiv="refresh" content="{RELOAD_SECONDS}">\n' if unfinished else ""
    banner = (
        f'<p class="banner">A run is writing this page, which reloads itself every {RELOAD_SECONDS} seconds. '
        "Finished notebooks can be read now.</p>\n"
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n{_POLICY}\n{reload}'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_CSS}{_INDEX_CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<header><h1>{html.escape(title)}</h1>\n"
        f'<p class="quiet">{html.escape(about)}</p></header>\n'
        + (banner if unfinished else "")
        + "\n".join(_card(card) for card in cards)
        + "\n</main>\n</body>\n</html>\n"
    )


def _card(card: Card) -> str:
    href = html.escape(f"{card.name}.html", quote=True)
    question = html.escape(card.question)
    heading = f'<a href="{href}">{question}</a>' if card.has_page else question
    if card.figure:
        image = (
            f'<a class="figure" href="{href}" tabindex="-1"><img alt="First figure of {html.escape(card.name)}" '
            f'src="data:image/png;base64,{card.figure}"></a>'
        )
    else:
        image = f'<div class="figure none">{card.status if card.status in UNFINISHED else "no figure"}</div>'
    symbol = {"ok": "✓", "failed": "✗", RUNNING: "▶"}.get(card.status, "–")
    took = "" if card.seconds is None else _duration(card.seconds)
    facts = " · ".join(filter(None, [card.detail, took, html.escape(card.name)]))
    error = f'<p class="banner failed">{html.escape(card.error)}</p>' if card.error else ""
    no_result = '<p class="quiet">No headline result.</p>' if card.has_page and not card.error else ""
    return (
        f'<article class="card">\n{image}\n<div class="text">\n<h2>{heading}</h2>\n'
        f'{error}<div class="headline">{card.headline or no_result}</div>\n'
        f'<p class="quiet"><span class="status {card.status.replace(" ", "-")}">{symbol} {card.status}</span> · '
        f"{facts}</p>\n</div>\n</article>"
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 60 else f"{int(seconds // 60)} min {int(seconds % 60)} s"


def _no_alt_text_nagging(record: logging.LogRecord) -> bool:
    """Drop nbconvert's complaint about images without description: no matter for the reader's terminal."""
    return "lternative text is missing" not in record.getMessage()


def _prepare(nb: NotebookNode) -> None:
    """Drop what a reader has no use for, and describe figures by the section they stand in."""
    section = "notebook"
    kept = []
    for cell in nb.cells:
        if cell.cell_type == "markdown" and (heading := _HEADING.search(cell.source)):
            section = heading[1]
        if not cell.source.strip() and not cell.get("outputs"):
            continue
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                output.metadata.setdefault("image/png", {}).setdefault("alt", f"Figure: {section}")
                output.data.pop("text/html", None)  # a figure's HTML form would hide the figure
        kept.append(cell)
    nb.cells = kept
    nb.metadata.pop("widgets", None)


def _code_css() -> str:
    light = HtmlFormatter(style="friendly").get_style_defs(".highlight")
    dark = HtmlFormatter(style="github-dark").get_style_defs(".highlight")
    return f"{light}\n@media screen and (prefers-color-scheme: dark) {{\n{dark}\n}}"


_NOTEBOOK_TEMPLATE = """\
{%- extends 'classic/base.html.j2' -%}
{%- block header -%}
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{ resources.depthlens.policy }}
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ nb.metadata.title | escape_html }}</title>
<style>{{ resources.depthlens.css }}</style>
</head>
<body>
<main>
<nav class="quiet"><a href="index.html">← all notebooks</a></nav>
{{ resources.depthlens.banner }}
{%- endblock header -%}
{%- block codecell -%}
<section class="cell code-cell">{{ super() }}</section>
{%- endblock codecell -%}
{%- block markdowncell -%}
<section class="cell markdown-cell">
{{- cell.source | markdown2html | strip_files_prefix -}}
</section>
{%- endblock markdowncell -%}
{%- block in_prompt -%}{%- endblock in_prompt -%}
{%- block input_group -%}
{%- set n_lines = cell.source.strip().split('\\n') | length -%}
{%- set tags = cell.metadata.get('tags', []) -%}
<details class="code"{{ ' open' if n_lines <= resources.depthlens.long_code }}>
<summary>{{ 'Parameters of this run' if 'injected-parameters' in tags else 'Parameters: defaults' if
'parameters' in tags else 'Code' }}</summary>
{{ cell.source | highlight_code(metadata=cell.metadata) }}
</details>
{%- endblock input_group -%}
{%- block output_group -%}
<div class="outputs{{ ' result' if 'headline' in cell.metadata.get('tags', []) }}">{{ self.outputs() }}</div>
{%- endblock output_group -%}
{%- block output -%}
{%- if output.output_type == 'execute_result' -%}{{ self.execute_result() }}
{%- elif output.output_type == 'stream' -%}{{ self.stream() }}
{%- elif output.output_type == 'display_data' -%}{{ self.display_data() }}
{%- elif output.output_type == 'error' -%}{{ self.error() }}{%- endif -%}
{%- endblock output -%}
{%- block stream_stderr -%}
<details class="log"><summary>Log</summary><pre>{{ output.text | ansi2html }}</pre></details>
{%- endblock stream_stderr -%}
{%- block footer -%}
<footer class="quiet">{{ resources.depthlens.footer }}</footer>
</main>
</body>
</html>
{%- endblock footer -%}
"""

# Blue and vermilion of the Okabe-Ito palette: every reader can tell them apart, and words say the same.
_CSS = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #5b6570; --paper: #ffffff; --panel: #f5f6f8;
  --line: #dfe3e8; --blue: #00619e; --bad: #a63f00; --bad-panel: #fdf1ea; }
@media screen and (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa5b1; --paper: #15181c; --panel: #1d2126; --line: #333a42;
    --blue: #6cb8ea; --bad: #f09a66; --bad-panel: #2c1e16; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.6; overflow-wrap: break-word;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif }
main { max-width: 52rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1, h2, h3 { line-height: 1.25; text-wrap: balance }
h1 { font-size: 1.9rem; margin: 1rem 0 .5rem }
h2 { font-size: 1.35rem; margin: 2.2rem 0 .5rem }
a { color: var(--blue) }
img, svg { max-width: 100%; height: auto }
img { background: #fff; border-radius: 4px }
code, pre { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace }
code, pre { font-size: .86em }
pre code { font-size: 1em }
p code, li code, td code { background: var(--panel); padding: .1em .3em; border-radius: 3px }
pre { margin: 0; overflow-x: auto }
.quiet { color: var(--soft); font-size: .9rem }
.banner { border-left: 4px solid var(--blue); background: var(--panel);
  padding: .6rem .9rem; border-radius: 0 4px 4px 0; overflow-wrap: anywhere }
.banner.failed { border-left-color: var(--bad); background: var(--bad-panel); color: var(--bad) }
table { border: 0; border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; text-align: right; border: 0; border-bottom: 1px solid var(--line) }
thead th { border-bottom: 2px solid var(--soft) }
@media print { body { font-size: 10.5pt } main { max-width: none; padding: 0 } a { color: inherit } }
"""
_NOTEBOOK_CSS = """
.anchor-link { visibility: hidden; text-decoration: none; margin-left: .3em; font-weight: normal }
h1:hover .anchor-link, h2:hover .anchor-link, h3:hover .anchor-link { visibility: visible }
.highlight { background: var(--panel) !important }
.code-cell { margin: .9rem 0 }
details > summary { cursor: pointer; color: var(--soft); font-size: .78rem; width: max-content }
details.code > .highlight { border: 1px solid var(--line); border-radius: 5px;
  padding: .6rem .8rem; margin-top: .2rem }
.outputs { overflow-x: auto; margin: .7rem 0 }
.outputs.result { border-left: 4px solid var(--blue); background: var(--panel); padding: .3rem 1rem;
  font-size: 1.05rem }
.outputs.result pre { font: inherit; white-space: pre-wrap }
.output_text pre, details.log pre { padding: .2rem 0; white-space: pre-wrap; overflow-wrap: anywhere }
details.log pre { color: var(--soft) }
.output_error pre { border-left: 4px solid var(--bad); padding-left: .9rem; white-space: pre }
.markdown-cell th, .markdown-cell td { text-align: left }
.markdown-cell table { display: block; overflow-x: auto }
blockquote { margin: 1rem 0; padding: 0 1rem; border-left: 3px solid var(--line); color: var(--soft) }
.ansi-red-fg, .ansi-red-intense-fg { color: var(--bad) } .ansi-green-fg, .ansi-cyan-fg { color: var(--blue) }
.ansi-bold { font-weight: bold }
footer { margin-top: 3rem; padding-top: .7rem; border-top: 1px solid var(--line) }
@media print { pre { white-space: pre-wrap }
  nav, details.log, .anchor-link, details > summary { display: none }
  .output_png, table, details.code { break-inside: avoid } }
"""
_INDEX_CSS = """
main { max-width: 64rem }
.card { display: grid; grid-template-columns: minmax(0, 20rem) minmax(0, 1fr); gap: 1.5rem; padding: 1.5rem 0;
  border-top: 1px solid var(--line); break-inside: avoid }
.card h2 { margin: 0 0 .4rem } .card h2 a { text-decoration: none }
.card h2 a:hover { text-decoration: underline }
.figure { display: block } .figure img { width: 100%; border: 1px solid var(--line) }
.figure.none { border: 1px dashed var(--line); color: var(--soft); display: grid; place-items: center;
  min-height: 8rem; border-radius: 4px; font-size: .85rem }
.headline p { margin: .4rem 0 } .plain { white-space: pre-line }
.status { font-weight: 600 } .status.ok { color: var(--blue) } .status.failed { color: var(--bad) }
@media (max-width: 44rem) { .card { grid-template-columns: minmax(0, 1fr); gap: .8rem } .figure.none { display: none } }
"""
