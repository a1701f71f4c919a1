"""A folder of pages over HTTP, made anew where notebooks have changed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import urllib.request
from contextlib import contextmanager

import pytest
from nbformat.v4 import new_markdown_cell
from notebook_suite import code, write

from depthlens.errors import UserError
from depthlens.paths import LOCK, is_locked, locked
from depthlens.runner.pages import RELOADS
from depthlens.runner.serve import renew, server


@contextmanager
def served(folder):
    with server(folder, 0) as pages:
        thread = threading.Thread(target=pages.serve_forever, daemon=True)
        thread.start()
        yield (
            lambda name="": (
                urllib.request.urlopen(f"http://127.0.0.1:{pages.server_address[1]}/{name}", timeout=10).read().decode()
            )
        )
        pages.shutdown()
        thread.join()


def test_a_folder_that_grows_is_shown_as_it_is(tmp_path):
    write(tmp_path, "00_a", new_markdown_cell("# First?"), code("1"))
    with served(tmp_path) as get:
        assert "First?" in get() and "First?" in get("00_a.html")
        write(tmp_path, "01_b", new_markdown_cell("# Second?"), code("1"))
        later = (tmp_path / "index.html").stat().st_mtime + 5
        os.utime(tmp_path / "01_b.ipynb", (later, later))
        assert "Second?" in get("index.html") and "Second?" in get("01_b.html")


def test_what_a_run_is_writing_is_left_to_the_run(tmp_path):
    write(tmp_path, "00_a", new_markdown_cell("# First?"), code("1"))
    (tmp_path / "index.html").write_text(f"<meta {RELOADS} content=5>")
    os.utime(tmp_path / "index.html", (1, 1))
    with locked(tmp_path):
        assert not renew(tmp_path) and "First?" not in (tmp_path / "index.html").read_text()
    (tmp_path / "index.html").write_text("an old index")
    os.utime(tmp_path / "index.html", (1, 1))
    assert renew(tmp_path) and not renew(tmp_path)


def test_the_index_of_a_run_that_was_killed_reloads_no_more(tmp_path):
    write(tmp_path, "00_a", new_markdown_cell("# First?"), code("1"))
    (tmp_path / "index.html").write_text(f"<meta {RELOADS} content=5>")
    killed = "import os, sys; from depthlens.paths import locked\nwith locked(sys.argv[1]): os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False).returncode == -9
    assert (tmp_path / LOCK).exists() and not is_locked(tmp_path)
    with served(tmp_path) as get:
        assert "First?" in get() and RELOADS not in get()
    assert not renew(tmp_path)
    with locked(tmp_path):
        assert is_locked(tmp_path)
    (tmp_path / "00_a.ipynb").unlink()  # killed before its first notebook had ended
    (tmp_path / "index.html").write_text(f"<meta {RELOADS} content=5>")
    assert not renew(tmp_path)


def test_what_cannot_be_served_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no folder"):
        server(tmp_path / "none", 0)
    write(tmp_path, "00_a", new_markdown_cell("# First?"), code("1"))
    with server(tmp_path, 0) as pages, pytest.raises(UserError, match="--port"):
        server(tmp_path, pages.server_address[1])
