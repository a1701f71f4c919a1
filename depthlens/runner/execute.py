"""Run notebooks headlessly: papermill executes them, `pages` makes pages of them and an index.

Everything the caller asked for (notebook names, profile, parameters, models, output folder) is checked before the first
cell runs. The kernel is always the interpreter that runs depthlens, whatever kernels the user has registered. A
notebook that fails keeps what it has computed and does not stop the others. Ctrl-C keeps it too, and ends the run.

Under OUT: ``NAME.ipynb`` (executed), ``NAME.html``, ``record.json`` (what this call ran, with which versions) and
``index.html`` (every notebook in the folder, also from earlier calls), which is written again after each notebook.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping, Sequence
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
from depthlens import progress as bars
from depthlens.errors import UserError, concerning, unknown
from depthlens.runner import pages
from depthlens.runner.notebook_files import Executed, failed_cell, read_notebook, write_whole
from depthlens.runner.parameters import assign, check, declared, read_profile, with_first_layers

FIRST = "11_one_prompt"  # of the suite: one answer, before answers are counted

# `_execute` reports a dead kernel in one line; without a handler Python would print papermill's own line as well.
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
        env = {
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",  # even where the user's shell sets Agg
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            bars.ENVIRONMENT: "bars",  # they stay on standard error, which pages fold away
        }
        return KernelSpec(argv=own["argv"], language="python", metadata=own.get("metadata", {}), env=env)


@dataclass
class NotebookRun:
    """One notebook of a run.

    Attributes:
        name: Path of the executed notebook without ending, relative to the folder of the run.
        source: Name of the notebook of the suite that is executed, or path of another file.
        parameters: Values that differ from the notebook's defaults.
        given: Those of them that the caller gave, over the profile's.
        status: ``not run``, then ``ok``, ``failed`` or ``interrupted``.
        seconds: How long it ran.
        error: One line that names the notebook, the cell and the error.
        headline: Text of its finding.
    """

    name: str
    source: str
    parameters: dict[str, object]
    given: dict[str, object]
    status: str = "not run"
    seconds: float | None = None
    error: str | None = None
    headline: str = ""


@dataclass
class RunReport:
    """What a run did; the same as OUT/record.json.

    Attributes:
        out: Its folder.
        profile: The profile of its values; None: the notebooks' own.
        finished: Date and time.
        environment: Versions of depthlens and other packages, commit, machine, and time of the start.
        notebooks: What was run, in order.

    Example:
        >>> report.exit_code, [notebook.status for notebook in report.notebooks]
        (0, ['ok'])
    """

    out: Path
    profile: str | None
    finished: str = ""
    environment: dict[str, object] = field(default_factory=provenance.environment)
    notebooks: list[NotebookRun] = field(default_factory=list)

    @property
    def errors(self) -> list[str]:
        """One line per notebook that failed."""
        return [run.error for run in self.notebooks if run.status == "failed" and run.error]

    @property
    def exit_code(self) -> int:
        """130 after an interrupt, 1 where a notebook failed, else 0."""
        states = {run.status for run in self.notebooks}
        return 130 if "interrupted" in states else 1 if "failed" in states else 0


def suite() -> dict[str, Path]:
    """The notebooks of the suite by name: `FIRST`, then the others by number."""
    found = sorted(paths.notebooks_dir().glob("[!.]*.ipynb"), key=lambda path: (path.stem != FIRST, path.name))
    return {path.stem: path for path in found}


def run(
    names: Sequence[str] | str,
    *,
    out: Path | str,
    profile: str | None = None,
    parameters: Mapping[str, object] | None = None,
    progress: bool = True,
) -> RunReport:
    """Execute notebooks.

    Args:
        names: Names of notebooks of the suite, or paths of notebook files; or ``"all"`` of the suite.
        out: Folder for everything written.
        profile: A set of parameter values from ``notebooks/profiles.yml``; None: the notebooks' own defaults.
        parameters: Values over the profile's, for each notebook that has them. Text is read as YAML unless the
            notebook's default is text.
        progress: Say on stderr which notebook begins, and show papermill's bar on a terminal, elsewhere a line a cell.

    Returns:
        What was run and how it ended. A notebook that fails raises no error here.

    Raises:
        UserError: a notebook, profile or parameter that does not exist, a value that a notebook would refuse, or a
            folder that cannot be written, or that another process writes to.

    Example:
        >>> report = dl.runner.run("00_tour", out="runs/again", parameters={"model": "organism", "limit": 4})
        >>> report.errors
        []
    """
    report = prepare(names, out=out, profile=profile, parameters=parameters)
    with paths.locked(report.out):
        try:
            for number, notebook in enumerate(report.notebooks, start=1):
                execute_notebook(notebook, report, f"[{number}/{len(report.notebooks)}] {notebook.name}" * progress)
        except KeyboardInterrupt:
            pass  # the report says it
        finally:
            report.finished = _now()
            record = asdict(report)
            text = json.dumps(record | record.pop("environment"), indent=2, ensure_ascii=False, default=str)
            write_whole(report.out / "record.json", f"{text}\n")
    return report


def prepare(
    names: Sequence[str] | str,
    *,
    out: Path | str,
    profile: str | None = None,
    parameters: Mapping[str, object] | None = None,
) -> RunReport:
    """Check everything that can be checked before a run, and write nothing; see `run`."""
    out = Path(arguments.PATH("out", out))
    pages.executed(out)  # a broken notebook there is refused now and not after the first one
    known = suite()
    named = known if names in ("all", ["all"]) else _named(names, known)
    files = known | named
    defaults = {name: declared(read_notebook(path), name) for name, path in files.items()}
    of_profile, n_layers = read_profile(paths.notebooks_dir() / "profiles.yml", profile, defaults)
    report = RunReport(out, profile)
    own_values = assign(parameters or {}, {name: defaults[name] for name in named})
    for name in named:
        own_file = files[name] != known.get(name)
        values = of_profile[name] | own_values[name]
        if "out" in defaults[name] and "out" not in values:
            values["out"] = str(out / name)
        values |= with_first_layers(defaults[name] | values, n_layers)
        with concerning(f"notebook {name}"):
            check({key: value for key, value in (defaults[name] | values).items() if value is not None})
        source = str(files[name]) if own_file else name
        if own_file and files[name].resolve() == (out / f"{name}.ipynb").resolve():
            raise UserError(f"notebook {source!r} would be replaced by what it becomes; name another --out")
        report.notebooks.append(NotebookRun(name, source, values, own_values[name]))
    return report


def _named(names: Sequence[str] | str, known: Mapping[str, Path]) -> dict[str, Path]:
    """The files of notebooks that are named, or that are files themselves, by name."""
    found: dict[str, Path] = {}
    for path in map(Path, arguments.names("notebooks", names, "00_tour")):
        name = path.stem if path.suffix == ".ipynb" else str(path)
        file = path if path.suffix == ".ipynb" and path.is_file() else known.get(name)
        if file is None:
            raise unknown("notebook", name, known, "give 'all' alone, names, or files (.ipynb)")
        if found.setdefault(name, file) != file:
            raise UserError(f"notebooks {found[name]} and {file} would write to one file; run one of them apart")
    return found


def execute_notebook(run: NotebookRun, report: RunReport, label: str) -> None:
    """Execute one notebook; its file is saved at every cell, its page and the index when it ends.

    Args:
        run: The notebook.
        report: Of the run.
        label: What progress is said with; "": nothing is said.
    """
    on_terminal = bool(label) and sys.stderr.isatty()
    if label:
        bars.say(label)
    nb = load_notebook_node(str(suite().get(run.source, run.source)))
    if run.parameters:
        nb = parameterize_notebook(nb, run.parameters, kernel_name="python3", language="python")
    notebook, started, cell = Executed(run.name, nb), time.monotonic(), 0

    def save() -> None:
        run.seconds, run.headline = round(time.monotonic() - started, 2), notebook.headline
        nb.metadata["depthlens"] = asdict(run) | report.environment | {"profile": report.profile, "finished": _now()}
        write_whole(report.out / f"{run.name}.ipynb", nbformat.writes(nb) + "\n")

    def begin(cell_index: int, **begun: object) -> None:
        nonlocal cell
        cell = cell_index + 1
        if label and not on_terminal and nb.cells[cell_index].cell_type == "code":
            bars.say(f"{label}, cell {cell} of {len(nb.cells)}")
        save()  # so that a killed run leaves what it had

    run.status, fault = "interrupted", "interrupted"  # until it has ended otherwise
    try:
        NBClientEngine.execute_notebook(
            nb,
            "python3",
            progress_bar={"desc": label} if on_terminal else False,
            stderr_file=sys.stderr if on_terminal else None,  # the bar of the work in a cell is seen, too
            start_timeout=120,
            kernel_manager_class=OwnInterpreter,
            on_cell_start=begin,
            coalesce_streams=True,  # a progress bar leaves its last line, not every one
        )
        failed = failed_cell(nb)
        run.status, (cell, fault) = ("failed", failed) if failed else ("ok", (0, ""))
    except DeadKernelError:
        run.status, fault = "failed", "its kernel died (often: out of memory)"
    finally:
        run.error = f"notebook {run.name}, cell {cell}: {fault}" if fault else None
        save()
        pages.write_page(report.out, notebook)
        pages.write_index(report.out)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
