"""Ray itself: started on this machine, or joined by its address; every failure is one line, and none waits for ever."""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from depthlens.cluster.options import LOCAL
from depthlens.errors import UserError, first_line

REACH_SECONDS = 5.0  # for an address to answer
# what starts a connection of HTTP/2, with an empty frame of settings (RFC 9113, sections 3.4 and 6.5)
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
STARTS = 3  # tries: on a busy machine Ray gives its own processes too little time
FIX = f"give HOST:PORT as 'ray start --head' prints it, or {LOCAL!r} for a Ray on this machine"


def library() -> ModuleType:
    """Ray.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers unless this says 0
    os.environ.setdefault("RAY_worker_niceness", "0")  # its 15 is for machines where somebody else works, too
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # its future default; else it warns
    try:
        import ray
    except ImportError as e:
        fix = "pip install 'depthlens[ray]', or leave workers and ray out"
        raise UserError(f"workers need Ray, which is not installed here ({first_line(e)}); {fix}") from e
    logging.getLogger("ray").setLevel(logging.ERROR)  # also before it is started
    return ray


def connect(address: str) -> None:
    """Start a Ray here (`LOCAL`), or join the one at an address, unless this process is connected already.

    Raises:
        UserError: there is none at the address, it is of another version, or this process is connected to another.
    """
    ray = library()
    if ray.is_initialized():
        here = ray.get_runtime_context().gcs_address
        if address not in (LOCAL, "auto", here):
            fault = f"ray {address!r}: this process is connected to the Ray at {here}"
            raise UserError(f"{fault}; give that address, or call ray.shutdown() first")
        return
    with _own_signals():
        if address == LOCAL:
            _start(ray)
        else:
            _join(ray, address)


def _start(ray: ModuleType) -> None:
    with quick_imports():
        for tried in range(1, STARTS + 1):
            try:
                ray.init(address=LOCAL, include_dashboard=False, **_quiet())
                return
            except Exception as e:  # noqa: BLE001 - Ray raises plain Exceptions; the last one is reported
                ray.shutdown()
                if tried == STARTS:
                    fix = "its logs are in /tmp/ray/session_latest/logs; leave workers out to compute in this process"
                    raise UserError(f"Ray did not start on this machine ({first_line(e)}); {fix}") from e


def _join(ray: ModuleType, address: str) -> None:
    _reach(address)
    try:
        ray.init(address=address, **_quiet())
    except Exception as e:  # noqa: BLE001 - Ray raises plain Exceptions
        ray.shutdown()
        why = first_line(e)
        if "ersion mismatch" in str(e):
            why = " ".join(str(e).split())
            raise UserError(f"ray {address!r} is of another version: {why}; install the cluster's versions here") from e
        raise UserError(f"ray {address!r} cannot be joined ({type(e).__name__}: {why}); {FIX}") from e


def _reach(address: str) -> None:
    """Refuse an address where nothing listens, or nothing that speaks as Ray does: Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise UserError(f"ray {address!r} is no address; {FIX}")
    try:
        with socket.create_connection((host, int(port)), timeout=REACH_SECONDS) as connection:
            connection.sendall(_HELLO)
            frame = b"" if os.environ.get("RAY_USE_TLS") else connection.recv(9)
    except (OSError, OverflowError) as e:
        raise UserError(f"ray {address!r}: nothing answers there ({e}); {FIX}") from e
    if frame and frame[3:4] != b"\x04":  # the server's own settings come first
        raise UserError(f"ray {address!r}: what answers there is no Ray; {FIX}")


def _quiet() -> dict[str, Any]:
    return {"log_to_driver": False, "logging_level": logging.ERROR}


@contextmanager
def _own_signals() -> Iterator[None]:
    """Within the context Ray may set what SIGTERM does; afterwards it does what it did (it keeps what is stored)."""
    before = signal.getsignal(signal.SIGTERM)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray, on its own future
        yield
    try:
        signal.signal(signal.SIGTERM, before)
    except ValueError:
        pass  # not the main thread, where Ray sets nothing either


@contextmanager
def quick_imports() -> Iterator[None]:
    """Within the context the processes of Ray start in about two thirds of the time.

    The raylet ends itself where its helpers take longer than 15 seconds. All of them import `jsonschema`, which, where
    Jupyter has installed `rfc3987_syntax`, compiles a grammar of web addresses (1.5 s of one core). It does without,
    and Ray has no such addresses, so its processes find in its place a module that cannot be imported.
    """
    folder = tempfile.mkdtemp(prefix="depthlens-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    Path(folder, "rfc3987_syntax.py").write_text('raise ImportError("left out, see depthlens.cluster.session")\n')
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, before)))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
