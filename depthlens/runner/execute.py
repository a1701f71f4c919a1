"""Run notebooks headlessly: papermill executes, ``pages`` renders, an index lists what was found.

Everything the caller asked for (notebook names, profile, parameters, output folder) is checked before the
first cell runs. The kernel is always the interpreter that runs depthlens, whatever kernels the user has
registered. A notebook that fails keeps what it had computed and does not stop the others; Ctrl-C keeps it.

Under OUT: ``NAME.ipynb`` (executed), ``NAME.html``, ``record.json`` (what this call ran, with which versions)
and ``index.html`` (every notebook in the folder, also from earlier calls).
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec
from nbclient.exceptions import DeadKernelError
from papermill.engines import NBClientEngine
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from traitlets import default

from depthlens import arguments, paths, provenance
from depthlens.errors import UserError, unknown
from depthlens.paths import writable_folder
from depthlens.runner import pages
from depthlens.runner.gallery import failed_cell, gallery, notebooks_in, read_notebook, write_whole
from depthlens.runner.parameters import Profiles, assign, declared, sound
from depthlens.runner.progress import RunProgress

# A dead kernel is told in one line by us; without a handler Python would print papermill's own line as well.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class _OwnInterpreter(AsyncKernelManager):
    """Starts the kernel with the Python that runs depthlens, not with what is registered as ``python3``."""

    @default("transport_encryption")
    def _encrypted_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"  # other users of a cluster node share its ports

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        # As in the parent, but without the SIGINT it sends first, to which kernels answer with a traceback on
        # the terminal. A kernel in the middle of a cell when the user pressed Ctrl-C is not waited for.
        hurry = now or isinstance(sys.exc_info()[1], KeyboardInterrupt)
        await self.request_shutdown(restart=restart)
        await self.finish_shutdown(waittime=0.2 if hurry else None, restart=restart)
        await self.cleanup_resources(restart=restart)

    @property
    def kernel_spec(self) -> KernelSpec:
        own = get_kernel_dict()  # argv starts with sys.executable
        return KernelSpec(
            argv=own["argv"],
            display_name=own["display_name"],
            language=own["language"],
            metadata=own.get("metadata", {}),
            # Figures must reach the notebook even where the user's shell sets MPLBACKEND=Agg.
            env={
                "MPLBACKEND": "module://matplotlib_inline.backend_inline",
                "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            },
        )


@dataclass
class NotebookRun:
    """One notebook of a run."""

    name: str
    parameters: dict[str, object]
    status: str = "not run"  # then "ok", "failed" or "interrupted"
    seconds: float | None = None
    cell: int | None = None  # counted from 1, of the cell that failed
    error: str | None = None
    question: str = ""
    headline: str = ""


@dataclass
class RunReport:
    """What a run did; the same as OUT/record.json."""

    out: Path
    profile: str | None
    started: str
    finished: str = ""
    depthlens: str | None = None
    git_commit: str | None = None
    python: str = ""
    versions: dict[str, str | None] = field(default_factory=dict)
    notebooks: list[NotebookRun] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """One line per notebook that failed."""
        return [run.error for run in self.notebooks if run.status == "failed" and run.error]

    @property
    def exit_code(self) -> int:
        states = {run.status for run in self.notebooks}
        return 130 if "interrupted" in states else 1 if "failed" in states else 0


def notebook_names() -> list[str]:
    """The notebooks of the suite, in order."""
    folder = paths.notebooks_dir()
    names = sorted(path.stem for path in folder.glob("*.ipynb") if not path.name.startswith("."))
    if not names:
        raise UserError(f"no notebooks in {folder}; install depthlens again or run it from a checkout")
    return names


def run(
    names: Sequence[str] | str,
    *,
    out: Path | str,
    profile: str | None = "demo",
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> RunReport:
    """Execute notebooks of the suite.

    Args:
        names: Names of notebooks, or paths as the shell completes them; or ``"all"``: those the profile orders, else
            every one.
        out: Folder for everything written.
        profile: A set of parameter values from ``notebooks/profiles.yml``; None: the notebooks' defaults.
        parameters: Values over the profile's. Text is read as YAML unless the notebook's default is text.
        progress: Show a bar (on a terminal) or a line per notebook on stderr.
    """
    if out is None:
        raise UserError("out None: give the path of a folder, such as runs/mine")
    arguments.check(out=out)
    if not isinstance(parameters or {}, Mapping):
        raise UserError(f"parameters {parameters!r}: give values by name, e.g. {{'limit': 10}}")
    out = Path(out)
    known = notebook_names()
    folder = paths.notebooks_dir()
    sources = {name: read_notebook(folder / f"{name}.ipynb") for name in known}
    defaults = {name: declared(nb, name) for name, nb in sources.items()}
    profiles = Profiles(folder / "profiles.yml", defaults)
    selected = _select(names, known, profiles.order(profile))
    profile_values = profiles.values(profile)
    given = assign(dict(parameters or {}), {name: defaults[name] for name in selected})

    report = RunReport(out=out, profile=profile, started=_now(), **provenance.environment())
    for name in selected:
        values = profile_values[name] | given[name]
        if "out" in defaults[name] and "out" not in values:
            values["out"] = str(out.resolve() / name)
        sound(defaults[name] | values, name)
        report.notebooks.append(NotebookRun(name, values, question=pages.question(sources[name], name)))
    notebooks_in(out, without=selected)  # a broken one lying there must not spoil the index at the end
    writable_folder(out)

    with RunProgress(len(selected), enabled=progress) as show:
        for notebook in report.notebooks:
            try:
                _run_one(notebook, folder / f"{notebook.name}.ipynb", report, show)
            except KeyboardInterrupt:
                notebook.status = "interrupted"
                notebook.error = notebook.error or f"notebook {notebook.name} was interrupted"
                break
    report.finished = _now()
    record = asdict(report) | {"out": str(out)}
    write_whole(out / "record.json", json.dumps(record, indent=2, ensure_ascii=False, default=str) + "\n")
    gallery(out)
    return report


def _select(names: Sequence[str] | str, known: list[str], order: list[str] | None) -> list[str]:
    wanted = [names] if isinstance(names, str) else names
    if not isinstance(wanted, Sequence) or not wanted or not all(isinstance(name, str | Path) for name in wanted):
        raise UserError(f"no notebook named; give 'all' or any of: {', '.join(known)}")
    if list(wanted) == ["all"]:
        return order or known
    found = []
    for given in wanted:
        if given == "all":
            raise UserError("'all' stands alone: give 'all' or names of notebooks, not both")
        path = Path(str(given))
        if path.stem not in known or (path.suffix and path.suffix != ".ipynb"):
            raise unknown("notebook", path.stem if path.suffix == ".ipynb" else given, known)
        own = paths.notebooks_dir() / f"{path.stem}.ipynb"
        # the shell completes a path; only a file that was changed is another notebook than the suite's
        if path.is_file() and not path.samefile(own) and path.read_bytes() != own.read_bytes():
            fault = f"notebook {str(given)!r} is not the suite's own {path.stem}"
            raise UserError(f"{fault}; give the name {path.stem}, or run this file with papermill")
        found.append(path.stem)
    return list(dict.fromkeys(found))


def _run_one(run: NotebookRun, source: Path, report: RunReport, show: RunProgress) -> None:
    nb = load_notebook_node(str(source))
    if run.parameters:
        nb = parameterize_notebook(nb, run.parameters, kernel_name="python3", language="python")
    target = report.out / f"{run.name}.ipynb"
    started = time.monotonic()
    current = 0

    def save() -> None:
        run.seconds = round(time.monotonic() - started, 2)
        run.headline = pages.headline(nb)[0]
        about = {key: getattr(report, key) for key in ("profile", "depthlens", "git_commit", "python", "versions")}
        nb.metadata["depthlens"] = asdict(run) | about | {"finished": _now()}
        write_whole(target, nbformat.writes(nb) + "\n")

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal current
        current = cell_index
        show.cell(cell_index)
        save()  # after each cell, so that a killed run leaves what it had

    run.status = "interrupted"  # until it has ended otherwise
    with show.notebook(run, len(nb.cells)):
        try:
            _execute(nb, on_cell_start)
        except DeadKernelError:
            why = "its kernel died (often: out of memory)"
            run.status, run.cell, run.error = (
                "failed",
                current + 1,
                f"notebook {run.name}, cell {current + 1}: {why}",
            )
        else:
            run.status = "ok"
            if failed := failed_cell(nb):
                run.status, run.cell = "failed", failed[0]
                run.error = f"notebook {run.name}, cell {failed[0]}: {failed[1]}"
        finally:
            if run.status == "interrupted":
                run.error = f"notebook {run.name} was interrupted in cell {current + 1}"
            save()


def _execute(nb: nbformat.NotebookNode, on_cell_start: Callable[..., None]) -> None:
    """Let papermill run all cells in place; it stops at the first error and marks that cell."""
    NBClientEngine.execute_notebook(
        nb,
        "python3",
        output_path=None,  # papermill writes in place; we write whole files
        progress_bar=False,
        start_timeout=120,
        kernel_manager_class=_OwnInterpreter,
        on_cell_start=on_cell_start,
        coalesce_streams=True,  # a progress bar leaves its last line, not every one
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
