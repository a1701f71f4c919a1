"""Use the views in a real browser: what breaks (click, keys, text filter, address), where heads look,
and pages on a phone.

    python tests/browser/views.py

Made-up findings, with texts that attack, are opened in headless Chromium. Prints one line a step; the exit code is 1
where one fails.
"""

import base64
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import made_results  # noqa: E402
import nbformat  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from lab import PROGRAM, Browser, script, until  # noqa: E402
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output  # noqa: E402

from depthlens.ablations import Head  # noqa: E402
from depthlens.analysis.result.results import Result  # noqa: E402
from depthlens.experiments.one_prompt import Attention  # noqa: E402
from depthlens.runner.pages import gallery  # noqa: E402

HOSTILE = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script> \u202eright to left\u202c 😀'
SAY, ROWS = "document.querySelector('.say').textContent", "document.querySelectorAll('tbody tr').length"
PART = "document.querySelector('.elsewhere [aria-pressed=true]').textContent.split(' ')[0]"
# what is done, and an expression that is true after it
STEPS = (
    ("opens on the costliest later layer", "", f"{SAY}.startsWith('Without L8, 50 of 120')"),
    ("sixty rows are drawn", "", f"{ROWS} <= 60"),
    ("white space is shown where it is all that differs", "", "document.body.textContent.includes('right⏎')"),
    ("a click chooses a part", "document.querySelectorAll('.cell')[1].click()", f"{SAY}.startsWith('Without L1,')"),
    ("the address is the state", "", "location.hash === '#task=sums&without=L1&show=broken'"),
    ("an arrow walks through depth", "KEY('ArrowRight')", f"{SAY}.startsWith('Without L2,')"),
    ("what broken answers share is said", "", "/^Nothing that/.test(document.querySelector('.say + *').textContent)"),
    ("the chosen part has the focus", "", "document.activeElement.getAttribute('aria-pressed') === 'true'"),
    ("a button goes to the next part", "document.querySelectorAll('.bar > .chip')[1].click()",
     f"{SAY}.startsWith('Without L3,')"),
    ("and one back", "document.querySelectorAll('.bar > .chip')[0].click()", f"{SAY}.startsWith('Without L2,')"),
    ("the map has the focus again", "document.querySelector('.cell[aria-pressed=true]').focus()", "true"),
    ("End goes to the last part", "KEY('End')", f"{SAY}.startsWith('Without L8,')"),
    ("and Home to the first", "KEY('Home')", f"{SAY}.startsWith('Without L0,')"),
    ("an arrow goes to another task", "KEY('ArrowDown')", f"{SAY}.includes('answers to words')"),
    ("a chip shows all answers", "document.querySelectorAll('.chips .chip')[3].click()", f"{ROWS} === 60"),
    ("text is found", "FIND('number 17?')", f"{ROWS} === 1"),
    ("and looked for in the changed answers of all parts",
     "FIND('onerror'); document.querySelector('.elsewhere .chip').click()", f"{ROWS} > 1 && {SAY}.includes({PART})"),
    ("a fragment is read", "location.hash = '#task=sums&without=L0&show=all&find=number+3?'", f"{ROWS} === 1"),
    ("a mark jumps to its part", "FIND(''); MARK(0.99)", f"{SAY}.startsWith('Without L8,')"),
    ("scrolling draws the rest", "scrollTo(0, 1e6)", f"{ROWS} === 120"),
)  # fmt: skip
# of a page of a notebook and of the index, on a phone
TOP = "document.querySelector('.depthlens-explorer').getBoundingClientRect().top"
FITS = "x.scrollHeight <= x.clientHeight + 1 && x.scrollWidth <= x.clientWidth"
WHOLE = f"[...document.querySelectorAll('{{}}')].every(x => {FITS})"
FOUND = (
    ("the finding of the address is chosen", "", f"{SAY}.startsWith('Without L4,')"),
    ("and scrolled to", "", f"scrollY > 2000 && Math.abs({TOP}) < 1"),
    ("a figure is whole", "", f"{WHOLE.format('.plot')} && document.querySelector('.plot img').clientWidth > 300"),
    (
        "a link on the page scrolls, too",
        "scrollTo(0, 0); location.hash = '#task=sums&without=L3'",
        f"scrollY > 2000 && {SAY}.startsWith('Without L3,')",
    ),
    ("what the reader chooses does not", "scrollTo(0, 0); FIND('7')",
     "scrollY === 0 && location.hash.endsWith('find=7')"),
)  # fmt: skip
INDEX = (
    ("the view on the index is whole", "", WHOLE.format(".depthlens-explorer, .figure")),
    ("and short", "", "document.documentElement.scrollHeight < 4000"),
)
SHADES = "[...document.querySelectorAll('.heads .token')].map(token => token.style.getPropertyValue('--share')).join()"
LOOKS = (
    ("opens on the chosen token", "", f"{SAY}.startsWith('Token x (3) looks')"),
    ("each head shades what it looks at", "", f"{SHADES} === '0%,0%,100%,25%,100%,0%,0%,0%'"),
    ("a click chooses a token", "document.querySelectorAll('button.token')[1].click()", f"{SAY}.includes('(1) looks')"),
    ("the other tokens come later", "", f"{SHADES} === '0%,100%,0%,0%,100%,100%,0%,0%'"),
    ("an arrow goes to the next token", "document.activeElement && KEY('ArrowRight')", f"{SAY}.includes('(2) looks')"),
)
ALWAYS = (
    ("texts stay texts", "",
     "window.hit === undefined && !document.querySelector('.depthlens-explorer img, tbody script')"),
    ("nothing is loaded", "", "performance.getEntriesByType('resource').length === 0"),
    ("the console is silent", "", "window.seen.length === 0"),
)  # fmt: skip


def made() -> Result:
    """Two tasks of nine layers, whose questions and answers attack the page."""
    losses = np.linspace(0.0, 0.5, made_results.N_LAYERS)
    tasks = [made_results.sweep(losses[::step], task=task) for task, step in (("sums", 1), ("words", -1))]
    docs = pd.concat([task.docs for task in tasks], ignore_index=True)
    texts = np.where(docs["value"] > 0, "right", np.where(docs["doc_id"] % 2, HOSTILE, "right\n"))
    asked = docs[["task", "doc_id"]].drop_duplicates()
    questions = [f"number {i}? {HOSTILE}" for i in asked["doc_id"]]
    record = tasks[0].record
    record["tasks"] |= tasks[1].record["tasks"]
    asked = asked.assign(question=questions, reference="right", choices=None)
    return Result(docs.assign(response=texts), record, asked)


def looks() -> Attention:
    """Two heads over four tokens: the first looks back, the second at the first token."""
    first = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0.8, 0.2]]
    second = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]]
    return Attention(("a", HOSTILE, "\n", "x"), (Head(0, 0), Head(1, 2)), np.array([first, second]), 3)


def notebook_pages(folder: Path) -> None:
    """The page of a notebook, whose view of answers stands far below, and the index over it."""
    png, about = made().plot("depth_profile")._repr_png_()
    shown = [
        new_output("display_data", {"image/png": base64.b64encode(png).decode()}, metadata={"image/png": about}),
        new_output("display_data", {"text/html": made().explore().html()}),
    ]
    cells = [new_markdown_cell("# Q?\n\n" + "Words.\n\n" * 80), *(new_code_cell("1", outputs=[x]) for x in shown)]
    cells[-1].metadata["tags"] = ["opening"]
    cells.append(new_markdown_cell("Words.\n\n" * 80))
    nbformat.write(new_notebook(cells=cells), folder / "a.ipynb")
    gallery(folder)


def check(browser: Browser, page: str, first: str, steps: Sequence[tuple[str, str, str]]) -> int:
    """Open a page and take steps; returns how many failed."""
    failed = 0
    browser.send("Page.navigate", url=page)
    until(lambda: browser.value(f"document.querySelectorAll('{first}').length"), "the view")
    for name, action, wanted in (*steps, *ALWAYS):
        browser.value(f"void (() => {{ {action} }})()")
        ends = time.monotonic() + 3
        while not (held := browser.value(wanted)) and time.monotonic() < ends:
            time.sleep(0.05)
        print(f"{'ok    ' if held else 'FAILED'} {name}" + ("" if held else f": {browser.value(SAY)}"))
        failed += not held
    return failed


def main() -> None:
    program = PROGRAM or sys.exit("no Chromium or Chrome")
    with tempfile.TemporaryDirectory() as folder:
        answers, attention, profile = (Path(folder) / name for name in ("answers.html", "attention.html", "profile"))
        made().explore().save(answers)
        looks().save(attention)
        profile.mkdir()
        browser = Browser(program, profile)
        browser.send("Page.enable")
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=script("listen") + script("act"))
        failed = check(browser, answers.as_uri(), ".cell", STEPS)
        failed += check(browser, attention.as_uri(), "button.token", LOOKS)
        notebook_pages(Path(folder))
        size = {"width": 400, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.send("Emulation.setDeviceMetricsOverride", **size)
        found, index = ((Path(folder) / name).as_uri() for name in ("a.html", "index.html"))
        failed += check(browser, f"{found}#task=sums&without=L4", ".cell", FOUND)
        failed += check(browser, index, ".cell", INDEX)
        browser.close()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
