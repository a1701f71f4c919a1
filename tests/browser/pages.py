"""Look at pages with a real browser: no sideways scrolling, no console message, nothing that axe-core finds serious.

    python tests/browser/pages.py PAGE.html [PAGE.html ...] [--axe PATH/TO/axe.min.js]

Every page is opened from disk in headless Chromium at 400, 800 and 1280 pixels, light and dark. The sizes are emulated
by the DevTools protocol, because no window of Chromium is narrower than 500 pixels, and the width that the page sees
is compared with the one that was asked for. The content security policy of pages is bypassed for axe-core, which comes
from npm (``npm install axe-core``). Prints one line a page and finding; the exit code is 1 where there is any.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lab import BROWSERS, PROGRAM, Browser, script, until

WIDTHS, HEIGHT = (400, 800, 1280), 900
SERIOUS = ("serious", "critical")
LOAD_SECONDS = 120  # after which a page has hung
LOADED = "!window.left && document.readyState === 'complete'"


def look(browser: Browser, page: Path, width: int, dark: bool, axe: str) -> dict:
    """What a browser finds on a page."""
    size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
    browser.send("Emulation.setDeviceMetricsOverride", **size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.send("Emulation.setEmulatedMedia", features=[scheme])
    browser.value("void (window.left = true)")  # so that the page before is not taken for the next one
    browser.send("Page.navigate", url=page.as_uri())

    def loaded() -> bool:
        with contextlib.suppress(RuntimeError):  # between two pages there is nothing to ask
            return browser.value(LOADED)
        return False

    until(loaded, f"{page} to load", LOAD_SECONDS)
    browser.send("Runtime.evaluate", expression=axe)
    found = browser.value(script("find"))
    if found["inner"] != width:
        raise RuntimeError(f"{page}: the window is {found['inner']} pixels wide and not {width}")
    return found


@contextlib.contextmanager
def opened(program: str) -> Iterator[Browser]:
    """A browser that listens to the pages that it opens."""
    with tempfile.TemporaryDirectory(prefix="depthlens-pages-", ignore_cleanup_errors=True) as folder:
        with contextlib.closing(Browser(program, Path(folder))) as browser:
            browser.send("Page.enable")
            browser.send("Page.setBypassCSP", enabled=True)
            browser.send("Page.addScriptToEvaluateOnNewDocument", source=script("listen"))
            yield browser


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--axe", type=Path, help="axe.min.js; without it only widths and messages are looked at")
    args = parser.parse_args()
    if PROGRAM is None:
        parser.error(f"no browser was found; install one of {', '.join(BROWSERS)}")
    axe = args.axe.read_text(encoding="utf-8") if args.axe else ""
    n_bad = 0
    with opened(PROGRAM) as browser:
        for page in args.pages:
            for width, dark in ((width, dark) for width in WIDTHS for dark in (False, True)):
                found = look(browser, page.resolve(), width, dark, axe)
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
