"""A folder of pages over HTTP on this machine, made anew where notebooks have changed since."""

from __future__ import annotations

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from depthlens.errors import UserError
from depthlens.paths import is_locked
from depthlens.runner.index import gallery
from depthlens.runner.pages import RELOADS

HOST = "127.0.0.1"  # results may be private: nobody else on the network sees them


class _Pages(SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.split("?")[0] in ("/", "/index.html"):
            renew(Path(self.directory))
        super().do_GET()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a page that reloads itself would fill the terminal."""


def renew(folder: Path) -> bool:
    """Make the pages anew where notebooks have changed since or a run was killed; returns whether it did.

    As long as a run is going on, it writes the index itself. The index of a run that was killed would reload for ever.
    """
    index = folder / "index.html"
    written = index.stat().st_mtime if index.is_file() else 0.0
    times = [path.stat().st_mtime for path in folder.glob("*.ipynb")]
    of_a_run = bool(written) and RELOADS in index.read_text(encoding="utf-8")
    if not times or (is_locked(folder) if of_a_run else max(times) <= written):
        return False
    gallery(folder)
    return True


def server(folder: Path | str, port: int) -> ThreadingHTTPServer:
    """A server of the folder's pages on ``http://127.0.0.1:PORT``, not yet running.

    Args:
        folder: Of executed notebooks; a run may still be writing it.
        port: From 1 to 65535, or 0 for any that is free.

    Raises:
        UserError: the folder does not exist, has nothing to show, or the port cannot be had.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; give one that `depthlens run ... --out` wrote")
    if not (folder / "index.html").is_file():
        gallery(folder)
    try:
        return ThreadingHTTPServer((HOST, port), partial(_Pages, directory=str(folder)))
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"port {port}: {why}; give another with --port, or 0 for any that is free") from None
