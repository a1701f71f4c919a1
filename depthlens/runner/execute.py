"""Run notebooks headlessly: papermill executes them, `pages` renders them, `index` lists their findings.

Everything the caller asked for (notebook names, profile, parameters, output folder) is checked before the first cell
runs. The kernel is always the interpreter that runs depthlens, whatever kernels the user has registered. A notebook
that fails keeps what it has computed and does not stop the others. Ctrl-C keeps it too, and ends the run.

Under OUT: ``NAME.ipynb`` (executed), ``NAME.html``, ``record.json`` (what this call ran, with which versions) and
``index.html`` (every notebook in the folder, also from earlier calls). The index is there before the first notebook
runs, and is written again at every cell, so that a finding can be read as soon as its notebook has ended.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
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
from depthlens.paths import locked
from depthlens.progress import say
from depthlens.runner import pages
from depthlens.runner.index import Index
from depthlens.runner.notebook_files import failed_cell, read_notebook, write_whole
from depthlens.runner.parameters import Profiles, assign, check_twin, check_values, declared, with_first_layers
from depthlens.runner.progress import RunProgress
from depthlens.runner.report import NotebookRun, RunReport

KERNEL_DIED = "its kernel died (often: out of memory)"
# `_run_one` reports a dead kernel in one line; without a handler Python would print papermill's own line as well.
logging.getLogger("papermill").addHandler(logging.NullHandler())


class OwnInterpreter(AsyncKernelManager):
    """Starts the kernel with the Python that runs depthlens, not with what is registered as ``python3``."""

    @default("transport_encryption")
    def _encrypted_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"  # other users of a cluster node share its ports

    async def shutdown_kernel(  # type: ignore[override]  # the class above declares the form without async
        self, now: bool = False, restart: bool = False
    ) -> None:
        # As in the parent, but without the SIGINT that it sends first, because kernels answer it with a traceback on
        # the terminal. A kernel that is in the middle of a cell when the user presses Ctrl-C is not waited for.
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
        names: Names of notebooks, or paths as the shell completes them; or ``"all"``: those that the profile orders,
            else every one.
        out: Folder for everything written.
        profile: A set of parameter values from ``notebooks/profiles.yml``; None: the notebooks' defaults.
        parameters: Values over the profile's. Text is read as YAML unless the notebook's default is text.
        progress: Say on stderr where the pages are, and show a bar (on a terminal) or a line per cell.

    Returns:
        What was run and how it ended. A notebook that fails raises no error here.

    Raises:
        UserError: a notebook, profile or parameter that does not exist, a value that a notebook would refuse, or a
            folder that cannot be written, or that another process writes to.
    """
    return start(prepare(names, out=out, profile=profile, parameters=parameters), progress=progress)


@dataclass(frozen=True)
class PreparedRun:
    """A run of notebooks whose values were checked, and of which nothing was written.

    Attributes:
        report: What is to be run.
        sources: The notebooks by name.
        left_out: One line for each notebook of ``all`` that needs a value which was not given.
    """

    report: RunReport
    sources: dict[str, nbformat.NotebookNode]
    left_out: list[str]


def prepare(
    names: Sequence[str] | str,
    *,
    out: Path | str,
    profile: str | None = "demo",
    parameters: Mapping[str, object] | None = None,
) -> PreparedRun:
    """Check everything that can be checked before a run; see `run`."""
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
    own_values = assign(dict(parameters or {}), {name: defaults[name] for name in selected})

    report = RunReport(out=out, profile=profile, started=_now(), **provenance.environment())
    left_out = []
    for name in selected:
        values = profile_values[name] | own_values[name]
        try:
            check_twin(defaults[name] | values, own_values[name], name)
        except UserError as error:
            if names not in ("all", ["all"]) or len(selected) == 1:
                raise
            left_out.append(str(error))
            continue
        if "out" in defaults[name] and "out" not in values:
            values["out"] = str(out.resolve() / name)
        values |= with_first_layers(defaults[name] | values, profiles.n_layers(profile))
        check_values(defaults[name] | values, name)
        report.notebooks.append(
            NotebookRun(name, values, own_values[name], question=pages.question(sources[name], name))
        )
    return PreparedRun(report, {run.name: sources[run.name] for run in report.notebooks}, left_out)


def start(prepared: PreparedRun, *, progress: bool = True) -> RunReport:
    """Execute the notebooks of a prepared run; see `run`."""
    report = prepared.report
    index = Index(report.out, prepared.sources)
    with locked(report.out):
        index.write()
        if progress:
            say(f"writing findings to {index.path} as notebooks end", page=str(index.path))
            for notebook, values in report.left_out().items():
                say(f"leaving {', '.join(values)} out of {notebook}, which has no such parameter", left_out=values)
            for line in prepared.left_out:
                say(f"leaving out {line}", left_out=line)
        _run_all(report, index, RunProgress(len(report.notebooks), enabled=progress))
    return report


def _run_all(report: RunReport, index: Index, progress: RunProgress) -> None:
    """Run the notebooks of a report one after another; whatever ends the run leaves a record and whole pages."""
    try:
        with progress:
            for notebook in report.notebooks:
                try:
                    _run_one(notebook, report, index, progress)
                except KeyboardInterrupt:
                    notebook.status = "interrupted"
                    notebook.error = notebook.error or f"notebook {notebook.name} was interrupted"
                    break
    finally:
        report.finished = _now()
        record = asdict(report) | {"out": str(report.out)}
        text = json.dumps(record, indent=2, ensure_ascii=False, default=str)
        write_whole(report.out / "record.json", f"{text}\n")
        index.finish()


def _select(names: Sequence[str] | str, known: list[str], order: list[str] | None) -> list[str]:
    """The names of the notebooks to run, each once."""
    requested = [names] if isinstance(names, str) else names
    if (
        not isinstance(requested, Sequence)
        or not requested
        or not all(isinstance(name, str | Path) for name in requested)
    ):
        raise UserError(f"no notebook named; give 'all' or any of: {', '.join(known)}")
    if list(requested) == ["all"]:
        return order or known
    selected = []
    for name in requested:
        if name == "all":
            raise UserError("'all' cannot be combined with names: give 'all' or names of notebooks, not both")
        path = Path(str(name))
        if path.stem not in known or (path.suffix and path.suffix != ".ipynb"):
            raise unknown("notebook", path.stem if path.suffix == ".ipynb" else name, known)
        own = paths.notebooks_dir() / f"{path.stem}.ipynb"
        # the shell completes a path; only a file with other content is another notebook than the suite's
        if path.is_file() and not path.samefile(own) and path.read_bytes() != own.read_bytes():
            fault = f"notebook {str(name)!r} is not the suite's own {path.stem}"
            raise UserError(f"{fault}; give the name {path.stem}, or run this file with papermill")
        selected.append(path.stem)
    return list(dict.fromkeys(selected))


def _run_one(run: NotebookRun, report: RunReport, index: Index, progress: RunProgress) -> None:
    """Execute one notebook; its file is saved at every cell, its page and card when it ends."""
    nb = load_notebook_node(str(paths.notebooks_dir() / f"{run.name}.ipynb"))
    if run.parameters:
        nb = parameterize_notebook(nb, run.parameters, kernel_name="python3", language="python")
    started = time.monotonic()
    current = 1  # number of the cell that is running

    def save() -> None:
        run.seconds = round(time.monotonic() - started, 2)
        run.headline = pages.headline(nb)[0]
        about = {key: getattr(report, key) for key in ("profile", "depthlens", "git_commit", "python", "versions")}
        about["platform"] = provenance.where_and_when()["platform"]
        nb.metadata["depthlens"] = asdict(run) | about | {"finished": _now()}
        write_whole(report.out / f"{run.name}.ipynb", nbformat.writes(nb) + "\n")

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal current
        if cell.cell_type != "code":
            return
        current = cell_index + 1
        progress.cell(current)
        save()  # so that a killed run leaves what it had
        index.running(run.name, current, len(nb.cells))

    run.status = "interrupted"  # until it has ended otherwise
    with progress.notebook(run, len(nb.cells)):
        try:
            _execute(nb, on_cell_start)
            run.status = "ok"
            if failed := failed_cell(nb):
                run.fail(*failed)
        except DeadKernelError:
            run.fail(current, KERNEL_DIED)
        finally:
            if run.status == "interrupted":
                run.error = f"notebook {run.name} was interrupted in cell {current}"
            save()
            index.add(run.name, nb)


def _execute(nb: nbformat.NotebookNode, on_cell_start: Callable[..., None]) -> None:
    """Let papermill run all cells in place; it stops at the first error and marks that cell."""
    NBClientEngine.execute_notebook(
        nb,
        "python3",
        output_path=None,  # papermill writes in place; we write whole files
        progress_bar=False,
        start_timeout=120,
        kernel_manager_class=OwnInterpreter,
        on_cell_start=on_cell_start,
        coalesce_streams=True,  # a progress bar leaves its last line, not every one
    )


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
