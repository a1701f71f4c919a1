"""A real JupyterLab in a real browser: run a notebook, change a parameter, run again, interrupt, go on.

``make labtest`` runs it; pytest does not collect it, because it takes minutes and needs Chromium or Chrome, which is
driven by its DevTools protocol. JupyterLab serves a copy of ``notebooks`` with a store of its own.

Usage: ``python tests/browser/lab.py [--out FOLDER] [--browser PATH]``; the folder receives a screenshot of every step.
"""

import argparse
import base64
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websocket

from depthlens import paths

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
PROGRAM = next(filter(None, map(shutil.which, BROWSERS)), None)
SMALL = {"limit": 3}
STEP_SECONDS = 900  # after which a step has hung; a loaded machine may need minutes for one
WIDTH, HEIGHT = 1280, 1500


def script(name: str) -> str:
    """A script of this folder."""
    return Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")


class Browser:
    """A page of a headless browser."""

    def __init__(self, program: str, profile: Path) -> None:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--remote-debugging-port=0", f"--user-data-dir={profile}", f"--window-size={WIDTH},{HEIGHT}"]
        with open(profile / "browser.log", "wb") as log:
            self.process = subprocess.Popen([program, *flags, "about:blank"], stdout=log, stderr=log)
        port_file = profile / "DevToolsActivePort"
        until(lambda: port_file.exists() and port_file.read_text().split(), "the browser to start", 120)
        port = port_file.read_text().split()[0]
        pages = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{port}/json").read())
        url = next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")
        self.socket = websocket.create_connection(url, suppress_origin=True, timeout=STEP_SECONDS)
        self.sent = 0

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and return its result."""
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass  # an event
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def value(self, script: str) -> Any:
        """Value of a JavaScript expression; a promise is waited for."""
        found = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails'].get('exception', {}).get('description')}")
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self.socket.close()
        self.process.terminate()
        self.process.wait(30)


def until(condition: Any, what: str, seconds: float = STEP_SECONDS) -> Any:
    """Wait until a function returns something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.2)
    return found


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """JupyterLab over a copy of the notebooks, without a token and on a free port; yields its address."""
    shutil.copytree(paths.notebooks_dir(), folder / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name.lower()) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"DEPTHLENS_STORE": str(folder / "store"), "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_NO_CONFIG": "1"}
    environment = {name: text for name, text in os.environ.items() if name != "DEPTHLENS_PROGRESS"} | own
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ServerApp.port_retries=0", "--IdentityProvider.token=", "--LabApp.expose_app_in_browser=True"]
    command += [f"--ServerApp.root_dir={folder / 'notebooks'}"]
    with open(folder / "lab.log", "wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        if server.poll() is not None:
            raise RuntimeError((folder / "lab.log").read_text())
        with contextlib.suppress(OSError):
            return urllib.request.urlopen(f"{address}/api", timeout=5).status == 200
        return False

    try:
        until(answers, "JupyterLab to start", 180)
        yield address
    finally:
        server.terminate()  # it ends its kernels
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            server.kill()


class Session:
    """A notebook that is open in JupyterLab, and the steps of this test on it."""

    def __init__(self, browser: Browser, address: str, out: Path) -> None:
        self.browser, self.out, self.n = browser, out, 0
        browser.send("Page.enable")
        browser.send("Emulation.setFocusEmulationEnabled", enabled=True)  # commands go to the notebook in focus
        browser.send("Page.navigate", url=f"{address}/lab/tree/00_tour.ipynb?reset")
        until(lambda: browser.value("!!window.jupyterapp?.shell"), "JupyterLab to load")
        browser.value(script("lab"))
        until(lambda: browser.value("!!window.panel()"), "the notebook to open")
        browser.value("window.jupyterapp.shell.activateById(window.panel().id)")
        until(lambda: self.kernel == "idle", "the kernel")

    @property
    def kernel(self) -> str:
        return self.browser.value("window.state().kernel")

    def picture(self, name: str) -> None:
        self.n += 1
        self.browser.screenshot(self.out / f"{self.n:02d}_{name}.png")

    def sources(self) -> list[str]:
        return self.browser.value("window.cells().map(c => c.model.type === 'code' ? c.model.sharedModel.source : '')")

    def cell(self, text: str) -> int:
        """Number of the code cell that contains a text."""
        return next(i for i, source in enumerate(self.sources()) if text in source)

    def outputs(self, cell: int) -> list[dict[str, Any]]:
        return self.browser.value(f"window.shown({cell})")

    def text(self, cell: int) -> str:
        """Everything that a cell shows as text, a line each."""
        return "\n".join(map(plain, self.outputs(cell)))

    def set_parameters(self, **values: object) -> None:
        cell = self.cell("limit = ")
        source = self.sources()[cell]
        for name, value in values.items():
            source, n = re.subn(rf"^{name} = [^#\n]*", f"{name} = {value!r}  ", source, flags=re.MULTILINE)
            assert n == 1, f"{n} parameters {name}"
        self.browser.value(f"window.cells()[{cell}].model.sharedModel.setSource({json.dumps(source)})")

    def run_all(self) -> list[int]:
        """Run all cells; returns their execution counts."""
        before = max(n or 0 for n in self.browser.value("window.state().counts"))
        self.browser.value("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
        counts: list[int] = []

        def ended() -> bool:
            state = self.browser.value("window.state()")
            counts[:] = [n for n in state["counts"] if n != -1]
            return state["kernel"] == "idle" and all(n is not None and n > before for n in counts)

        until(ended, "all cells to run")
        assert counts == sorted(counts), f"cells ran in the order {counts}"
        return counts

    def add_and_run(self, source: str, wait: bool = True) -> int:
        """Run a new last cell; returns its number."""
        cell = self.browser.value(f"window.add({json.dumps(source)})")
        self.browser.value(f"void window.run({cell})")
        if wait:
            self.wait(cell)
        return cell

    def wait(self, cell: int) -> None:
        def ended() -> bool:
            return self.browser.value(f"window.state().counts[{cell}]") is not None and self.kernel == "idle"

        until(ended, f"cell {cell}")

    def looks_at(self, cell: int, name: str) -> None:
        self.browser.value(f"window.show({cell})")
        time.sleep(1)  # the page scrolls and draws
        self.picture(name)


def plain(output: dict[str, Any]) -> str:
    """An output as text."""
    found = output.get("text") or output.get("data", {}).get("text/plain") or output.get("traceback", "")
    return "".join(found) if isinstance(found, str) else "".join(map(str, found))


def check_outputs(lab: Session) -> None:
    """No cell failed, the model is described, and bars are no part of standard error."""
    for cell, source in enumerate(lab.sources()):
        for output in lab.outputs(cell):
            assert output["output_type"] != "error", f"cell {cell} failed: {plain(output)}\n{source}"
            if output.get("name") == "stderr":
                assert "%|" not in plain(output), f"cell {cell} has a bar on standard error"
    about = lab.cell("lens  # its parts")
    page = "".join(str(output.get("data", {}).get("text/html", "")) for output in lab.outputs(about))
    assert "n_layers" in page and "dl.layer_sweep(lens" in page, "the model is not described"
    assert re.search(r"\d+/\d+", lab.text(lab.cell("result = dl.layer_sweep"))), "no bar"


def check_run(lab: Session) -> None:
    """Run all with small parameters, change one, run all again."""
    lab.set_parameters(**SMALL)
    lab.run_all()
    check_outputs(lab)
    lab.looks_at(lab.cell("lens  # its parts"), "model")
    lab.looks_at(lab.cell("result = dl.layer_sweep"), "sweep_and_figure")
    sampled = lab.cell("sample = dl.condition_sweep")
    assert re.search(rf"\b{SMALL['limit']}\b", lab.text(sampled))
    lab.set_parameters(limit=SMALL["limit"] + 1)
    counts = lab.run_all()
    check_outputs(lab)
    assert re.search(rf"\b{SMALL['limit'] + 1}\b", lab.text(sampled)), "the new limit has no effect"
    assert len(counts) == len(set(counts))
    lab.run_all()
    check_outputs(lab)
    lab.looks_at(lab.cell("result = dl.layer_sweep"), "from_the_store")


def check_explorer(lab: Session) -> None:
    """Choose a part in the view of what breaks; the next cell reads which."""
    shown = lab.add_and_run("view = result.explore()\nview")
    lab.browser.value(f"window.show({shown})")
    cells = f"window.cells()[{shown}].node.querySelectorAll('.depthlens-explorer .cell')"
    until(lambda: lab.browser.value(f"{cells}.length") > 2, "the view")
    lab.browser.value(f"{cells}[2].click()")
    name = lab.browser.value(f"window.cells()[{shown}].node.querySelector('.say b').textContent")
    lab.looks_at(shown, "explorer")
    read = lab.text(lab.add_and_run("print(view.condition, set(view.documents['change']) <= {'broken'})"))
    assert read.split() == [name, "True"], f"{name} is chosen, and the cell reads {read}"


def check_interrupt(lab: Session) -> None:
    """Interrupt a sweep while its bar moves; kernel and model go on."""
    long = lab.add_and_run("long = dl.layer_sweep(lens, tasks, limit=40)", wait=False)

    seen: set[str] = set()
    kept = [0]

    def moves() -> bool:
        seen.update(re.findall(r"(\d+)/\d+ \[", lab.text(long)))
        kept.extend(map(int, re.findall(r"(\d+) kept", lab.text(long))))
        return len(seen) > 2

    until(moves, "a bar that moves")
    lab.picture("bar_while_running")
    assert not any(output.get("name") == "stderr" for output in lab.outputs(long)), lab.text(long)
    lab.browser.value("void window.jupyterapp.commands.execute('notebook:interrupt-kernel')")
    lab.wait(long)
    (error,) = (output for output in lab.outputs(long) if output["output_type"] == "error")
    assert error["ename"] == "Interrupted" and len(error["traceback"]) == 1, plain(error)
    assert int(re.search(r"(\d+) of \d+ rows", plain(error))[1]) >= max(kept), plain(error)
    lab.looks_at(long, "interrupted")
    after = lab.add_and_run("dl.next_token(lens, prompt, k=3).round(3)")
    again = lab.add_and_run("dl.layer_sweep(lens, tasks, limit=limit)")
    for cell in (after, again):
        assert all(output["output_type"] != "error" for output in lab.outputs(cell)), lab.text(cell)
    assert "baseline" in lab.text(after)
    lab.looks_at(again, "after_the_interrupt")


def main() -> None:
    """Run every step; the first that fails ends the program with a screenshot and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/labtest"), help="folder for screenshots")
    parser.add_argument("--browser", default=PROGRAM)
    options = parser.parse_args()
    if options.browser is None:
        parser.error(f"no browser was found; install one of {', '.join(BROWSERS)}, or give --browser")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by way of every `finally`
    start = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="depthlens-lab-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "profile").mkdir()
        with served(folder) as address, contextlib.closing(Browser(options.browser, folder / "profile")) as browser:
            lab = Session(browser, address, options.out)
            for step in (check_run, check_explorer, check_interrupt):
                before = time.monotonic()
                try:
                    step(lab)
                except BaseException:
                    lab.picture("failed")
                    raise
                print(f"{step.__name__}: {time.monotonic() - before:.0f} s", flush=True)
    print(f"passed in {time.monotonic() - start:.0f} s; screenshots in {options.out}")


if __name__ == "__main__":
    main()
