"""The pages of a folder of executed notebooks and the index over them, also while a run is still writing them.

The index needs nothing but the notebooks, because each carries the record of its run in its metadata. Notebooks that
papermill or a person ran are listed too. While notebooks of a run are still to come, the index has a card for each of
them, says which one is running, and reloads itself.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from nbformat import NotebookNode

from depthlens.errors import UserError
from depthlens.paths import writable_folder
from depthlens.runner import pages
from depthlens.runner.notebook_files import notebooks_in, read_notebook, run_state, write_whole
from depthlens.runner.run_facts import run_facts


def gallery(folder: Path | str) -> Path:
    """Render every executed notebook of a folder and the index over them; returns the path of the index.

    Raises:
        UserError: the folder does not exist, has no notebooks, has a broken one, or cannot be written.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"no folder {str(folder)!r}; give one that `depthlens run ... --out` wrote")
    index = Index(folder)
    if not index.cards:
        raise UserError(f"no notebooks in {str(folder)!r}; give a folder that `depthlens run ... --out` wrote")
    writable_folder(folder)
    return index.finish()


class Index:
    """The cards of a folder's notebooks: those that are there, and those that a run is going to write.

    Attributes:
        path: The file of the index.
        cards: By name of the notebook.
    """

    def __init__(self, folder: Path, planned: Mapping[str, NotebookNode] | None = None) -> None:
        """Read the notebooks of a folder.

        Args:
            folder: Folder with executed notebooks.
            planned: The notebooks of a run by name, not yet executed; they replace those of the same name.

        Raises:
            UserError: a file of the folder is not a notebook.
        """
        planned = planned or {}
        self.path = folder / "index.html"
        self._earlier = notebooks_in(folder, without=planned)
        self.cards = {name: _card(name, nb) for name, nb in self._earlier.items()}
        for name, nb in planned.items():
            self.cards[name] = pages.Card(
                name=name,
                question=pages.question(nb, name),
                status=pages.TO_COME,
                opens=any(map(pages.opens, nb.cells)),
            )

    def running(self, name: str, cell: int, n_cells: int) -> None:
        """Say that a notebook has begun its cell number ``cell``, counted from 1."""
        now = datetime.now(UTC)
        detail = f"cell {cell} of {n_cells} since {now:%H:%M} UTC"
        self.cards[name] = replace(self.cards[name], status=pages.RUNNING, detail=detail)
        self.write()

    def add(self, name: str, nb: NotebookNode) -> None:
        """Write the page of a notebook that has ended, and show its result on the index."""
        self._write_page(name, nb)
        self.cards[name] = _card(name, nb)
        self.write()

    def finish(self) -> Path:
        """Write all pages that `add` did not write, and the last index, where nothing is running or to come."""
        for name, card in self.cards.items():
            if card.status == pages.RUNNING:
                self.cards[name] = replace(card, status="interrupted", detail="")
            elif card.status == pages.TO_COME:
                self.cards[name] = replace(card, status="not run")
                with contextlib.suppress(UserError):  # an earlier run may have left a result, which still counts
                    self._earlier[name] = read_notebook(self.path.with_name(f"{name}.ipynb"))
                    self.cards[name] = _card(name, self._earlier[name])
        for name, nb in self._earlier.items():
            self._write_page(name, nb)
        return self.write()

    def write(self) -> Path:
        """Write the index; returns its path."""
        cards = sorted(self.cards.values(), key=lambda card: (not card.opens, card.name))
        profiles = sorted({card.profile for card in cards if card.profile})
        finished = max((card.finished for card in cards if card.finished), default="")
        facts = [card.facts for card in cards if card.facts]
        platforms = dict.fromkeys(f.platform for f in facts)
        commits = dict.fromkeys(f"commit {f.commit}" for f in facts if f.commit)
        about = [f"profile {', '.join(profiles)}" if profiles else "", *platforms, *commits, finished]
        title = f"depthlens: {self.path.parent.resolve().name}"
        write_whole(self.path, pages.index_page(cards, title=title, subtitle=" · ".join(filter(None, about))))
        return self.path

    def _write_page(self, name: str, nb: NotebookNode) -> None:
        state = run_state(nb)
        version = f"depthlens {state['depthlens']}" if state.get("depthlens") else ""
        profile = f"profile {state['profile']}" if state.get("profile") else ""
        footer = " · ".join(filter(None, [version, profile, state.get("finished", "")]))
        names = sorted(self.cards)
        at = names.index(name)
        beside = names[at - 1] if at else None, names[at + 1] if at + 1 < len(names) else None
        files = [path.relative_to(self.path.parent).as_posix() for path in self._files(name)]
        page = pages.notebook_page(nb, name, error=state["error"], footer=footer, files=files, beside=beside)
        write_whole(self.path.with_name(f"{name}.html"), page)

    def _files(self, name: str) -> list[Path]:
        """What a reader may want beside a page: the notebook itself, and the results that it wrote."""
        results = self.path.with_name(name)
        return [self.path.with_name(f"{name}.ipynb"), *sorted(p for p in results.rglob("*") if p.is_file())]


def _card(name: str, nb: NotebookNode) -> pages.Card:
    """The card of a notebook that has run."""
    state = run_state(nb)
    found, details = pages.finding(nb)
    return pages.Card(
        name=name,
        question=pages.question(nb, name),
        status=state["status"],
        opens=any(map(pages.opens, nb.cells)),
        has_page=True,
        finding=found,
        details=details,
        figure=pages.first_figure(nb),
        scorecard=pages.scorecard(nb),
        facts=run_facts(nb, name),
        error=state["error"],
        seconds=state["seconds"],
        profile=state.get("profile"),
        finished=state.get("finished"),
    )
