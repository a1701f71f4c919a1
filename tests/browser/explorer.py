"""Use the view of what breaks in a real browser: click, keys, text filter, address, and texts that attack.

    python tests/browser/explorer.py

A made-up result is opened in headless Chromium. Prints one line a step; the exit code is 1 where one fails.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

import made_results  # noqa: E402
import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from lab import BROWSERS, Browser, until  # noqa: E402

from depthlens.analysis.results import Result  # noqa: E402

HOSTILE = '<img src=x onerror="window.hit=1"></script><script>window.hit=1</script> \u202eright to left\u202c 😀'
SAY, ROWS = "document.querySelector('.say').textContent", "document.querySelectorAll('tbody tr').length"
# what is done, and an expression that is true after it
STEPS = (
    ("opens on the costliest later layer", "", f"{SAY}.startsWith('Without L8, 50 of 120')"),
    ("sixty rows are drawn", "", f"{ROWS} <= 60"),
    ("a click chooses a part", "document.querySelectorAll('.cell')[1].click()", f"{SAY}.startsWith('Without L1,')"),
    ("the address is the state", "", "location.hash === '#task=sums&without=L1&show=broken'"),
    ("an arrow walks through depth", "KEY('ArrowRight')", f"{SAY}.startsWith('Without L2,')"),
    ("the chosen part has the focus", "", "document.activeElement.getAttribute('aria-pressed') === 'true'"),
    ("an arrow goes to another task", "KEY('ArrowDown')", f"{SAY}.includes('answers to words')"),
    ("a chip shows all answers", "document.querySelectorAll('.chip')[3].click()", f"{ROWS} === 60"),
    ("text is found", "FIND('number 17?')", f"{ROWS} === 1"),
    ("a fragment is read", "location.hash = '#task=sums&without=L0&show=all&find=number+3?'", f"{ROWS} === 1"),
    ("a mark jumps to its part", "FIND(''); MARK(0.99)", f"{SAY}.startsWith('Without L8,')"),
    ("scrolling draws the rest", "scrollTo(0, 1e6)", f"{ROWS} === 120"),
    ("texts stay texts", "", "window.hit === undefined && !document.querySelector('tbody img, tbody script')"),
    ("nothing is loaded", "", "performance.getEntriesByType('resource').length === 0"),
    ("the console is silent", "", "window.seen.length === 0"),
)
TOOLS = """
window.KEY = key => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
window.FIND = text => {
  const box = document.querySelector("input");
  box.value = text;
  box.dispatchEvent(new Event("input"));
};
window.MARK = share => {
  const strip = document.querySelector(".strip"), box = strip.getBoundingClientRect();
  const clientX = box.x + share * box.width, clientY = box.y + 5;
  strip.dispatchEvent(new MouseEvent("click", {clientX, clientY, bubbles: true}));
};
window.seen = [];
["error", "warn"].forEach(of => { console[of] = (...said) => window.seen.push(said.join(" ")); });
addEventListener("error", e => window.seen.push(e.message));
"""


def made() -> Result:
    """Two tasks of nine layers, whose questions and answers attack the page."""
    losses = np.linspace(0.0, 0.5, made_results.N_LAYERS)
    tasks = [made_results.sweep(losses[::step], task=task) for task, step in (("sums", 1), ("words", -1))]
    docs = pd.concat([task.docs for task in tasks], ignore_index=True)
    texts = np.where(docs["value"] > 0, "right", HOSTILE)
    asked = docs[["task", "doc_id"]].drop_duplicates()
    questions = [f"number {i}? {HOSTILE}" for i in asked["doc_id"]]
    record = tasks[0].record
    record["tasks"] |= tasks[1].record["tasks"]
    asked = asked.assign(question=questions, reference="right", choices=None)
    return Result(docs.assign(response=texts), record, asked)


def main() -> None:
    program = next(filter(None, map(shutil.which, BROWSERS)), None) or sys.exit("no Chromium or Chrome")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "page.html"
        made().explore().save(page)
        profile = Path(folder) / "profile"
        profile.mkdir()
        browser = Browser(program, profile)
        browser.send("Page.enable")
        browser.send("Page.addScriptToEvaluateOnNewDocument", source=TOOLS)
        browser.send("Page.navigate", url=page.as_uri())
        until(lambda: browser.value("document.querySelectorAll('.cell').length"), "the view")
        for name, action, wanted in STEPS:
            browser.value(f"void (() => {{ {action} }})()")
            ends = time.monotonic() + 3
            while not (held := browser.value(wanted)) and time.monotonic() < ends:
                time.sleep(0.05)
            print(f"{'ok    ' if held else 'FAILED'} {name}" + ("" if held else f": {browser.value(SAY)}"))
            failed += not held
        browser.close()
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
