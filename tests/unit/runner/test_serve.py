"""A folder of pages over HTTP, made anew where notebooks have changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request

import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import code, write

from depthlens.errors import UserError
from depthlens.paths import LOCK, is_locked, locked
from depthlens.runner.pages import RELOADS
from depthlens.runner.serve import renew, server


@pytest.fixture
def folder(tmp_path):
    """One notebook."""
    write(tmp_path, "00_a", new_markdown_cell("# First?"), code("1"))
    return tmp_path


def test_a_folder_that_grows_is_shown_as_it_is(folder):
    with server(folder, 0) as pages:
        threading.Thread(target=pages.serve_forever, daemon=True).start()

        def get(name):
            return (
                urllib.request.urlopen(f"http://127.0.0.1:{pages.server_address[1]}/{name}", timeout=10).read().decode()
            )

        assert "First?" in get("") and "First?" in get("00_a.html")
        write(folder, "01_b", new_markdown_cell("# Second?"), code("1"))
        later = (folder / "index.html").stat().st_mtime + 5
        os.utime(folder / "01_b.ipynb", (later, later))
        assert "Second?" in get("index.html") and "Second?" in get("01_b.html")
        pages.shutdown()
        with pytest.raises(UserError, match="--port"):
            server(folder, pages.server_address[1])
    with pytest.raises(UserError, match="no folder"):
        server(folder / "none", 0)


def test_what_a_run_is_writing_is_left_to_it_until_it_ends_or_is_killed(folder):
    index = folder / "index.html"

    def old(text):
        index.write_text(text)
        os.utime(index, (1, 1))

    old(f"<meta {RELOADS} content=5>")
    with locked(folder):
        assert is_locked(folder) and not renew(folder) and "First?" not in index.read_text()
    old("an old index")
    assert renew(folder) and not renew(folder)
    old(f"<meta {RELOADS} content=5>")
    killed = "import os, sys; from depthlens.paths import locked\nwith locked(sys.argv[1]): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed, str(folder)], check=False).returncode == -9
    assert (folder / LOCK).exists() and not is_locked(folder)
    assert renew(folder) and "First?" in index.read_text() and RELOADS not in index.read_text()
    (folder / "00_a.ipynb").unlink()  # killed before its first notebook had ended
    old(f"<meta {RELOADS} content=5>")
    assert not renew(folder)
