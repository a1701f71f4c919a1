"""Look at pages with a real browser: no sideways scrolling, no console message, nothing that axe-core finds serious.

    python tests/browser/pages.py PAGE.html [PAGE.html ...] [--axe PATH/TO/axe.min.js]

Every page is opened from disk in headless Chromium at 375, 768 and 1280 pixels, light and dark. The script that looks
at it is put into a copy of the page, whose content security policy is taken out for that. axe-core comes from npm
(``npm install axe-core``). Prints one line a page and finding; the exit code is 1 where there is any.
"""

from __future__ import annotations

import argparse
import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

WIDTHS = (375, 768, 1280)
SERIOUS = ("serious", "critical")
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')
LOOK = """
<script>
window.seen = [];
addEventListener("error", e => window.seen.push(e.message));
["error", "warn"].forEach(of => {
  const old = console[of];
  console[of] = (...said) => { window.seen.push(said.join(" ")); old(...said); };
});
addEventListener("load", async () => {
  const root = document.documentElement;
  document.querySelectorAll("details").forEach(folded => { folded.open = true; });
  const found = {wide: root.scrollWidth - root.clientWidth, console: window.seen, axe: []};
  await new Promise(resolve => setTimeout(resolve, 1000));  // scripts of the page make what scrolls focusable
  if (window.axe) found.axe = (await axe.run({preload: false})).violations.map(
    v => [v.id, v.impact, v.nodes.length, [...new Set(v.nodes.map(n => n.html.slice(0, 60)))].slice(0, 4).join(" ")]);
  document.body.innerHTML = ""; document.body.id = "found"; document.body.textContent = JSON.stringify(found);
});
</script>
"""


def look(page: Path, width: int, dark: bool, axe: str, browser: str) -> dict:
    """What a browser finds on a page."""
    text = POLICY.sub("", page.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        copy = page.with_name(f".looked-at-{page.name}")
        copy.write_text(text.replace("<head>", f"<head><script>{axe}</script>{LOOK}", 1), encoding="utf-8")
        try:
            command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}"]
            command += [f"--window-size={width},900", "--virtual-time-budget=20000", "--dump-dom"]
            command += ["--blink-settings=preferredColorScheme=0"] if dark else []
            dom = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, timeout=180, check=True)
        finally:
            copy.unlink()
    body = re.search(r'<body[^>]*id="found"[^>]*>(.*?)</body>', dom.stdout, re.DOTALL)
    if body is None:
        raise RuntimeError(f"{page}: the browser did not finish")
    return json.loads(html.unescape(body[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--axe", type=Path, help="axe.min.js; without it only widths and messages are looked at")
    args = parser.parse_args()
    browser = next((found for name in ("chromium", "google-chrome", "chrome") if (found := shutil.which(name))), None)
    if browser is None:
        parser.error("no chromium; install it (Debian: apt-get install chromium)")
    axe = args.axe.read_text(encoding="utf-8") if args.axe else ""
    n_bad = 0
    for page in args.pages:
        for width in WIDTHS:
            for dark in (False, True):
                found = look(page.resolve(), width, dark, axe, browser)
                bad = [
                    f"{id_} ({impact}, {n} places): {of}" for id_, impact, n, of in found["axe"] if impact in SERIOUS
                ]
                bad += [f"scrolls sideways by {found['wide']} pixels"] if found["wide"] > 0 else []
                bad += [f"console: {message}" for message in found["console"]]
                less = [id_ for id_, impact, *_ in found["axe"] if impact not in SERIOUS]
                n_bad += len(bad)
                state = "; ".join(bad) or "nothing" + (f" serious ({', '.join(less)})" if less else "")
                print(f"{page.name} at {width}, {'dark' if dark else 'light'}: {state}", flush=True)
    return int(n_bad > 0)


if __name__ == "__main__":
    sys.exit(main())
