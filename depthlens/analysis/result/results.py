"""What a sweep found, and what it can be asked: each method imports what answers it when it is called."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from depthlens import paths
from depthlens.ablations.conditions import chosen
from depthlens.analysis.numbers import stats
from depthlens.analysis.numbers.means import in_top
from depthlens.analysis.result import documents
from depthlens.analysis.result.documents import DOCS_COLUMNS as DOCS_COLUMNS
from depthlens.analysis.result.scored import Scored
from depthlens.errors import unknown

if TYPE_CHECKING:
    from depthlens.analysis.heads.scores import HeadScores
    from depthlens.analysis.result.broken import Broken
    from depthlens.analysis.result.tables import DescribedTable
    from depthlens.analysis.show.explorer import Explorer


class Result(Scored):
    """Scores of documents x conditions, with everything derived from them.

    Attributes:
        docs: One row per (task, metric, condition, document); the columns are ``DOCS_COLUMNS``, ``parsed``:
            whether the answer could be read (True for choices, NA where it is not known), and ``complete``: whether a
            written answer ended before it had as many tokens as were allowed (NA for choices).
        record: JSON-able; ``record["tasks"][task]["metrics"][metric]`` has ``higher_is_better``, ``chance``.
        asked: What `questions` reads; None where it is not known.

    Example:
        >>> result.critical()["condition"].tolist()
        ['L1', 'L2']
        >>> result.summary[["condition", "n", "value"]].round(2).head(2)
          condition   n  value
        0  baseline  12    1.0
        1        L0  12    1.0
    """

    NEXT: ClassVar[str] = (
        "next: result.describe() says it in words, result.critical() lists what is shown to cost something, "
        "result.plot() draws it"
    )

    @property
    def notes(self) -> list[str]:
        """What limits the conclusions: tasks at chance, few subjects, cut prompts, selections."""
        from depthlens.analysis.show import words  # what shows a result knows it

        return words.notes(self)

    def answers(
        self, condition: str, change: str = "broken", *, task: str | None = None, against: Result | None = None
    ) -> pd.DataFrame:
        """The answers that a condition changes, or in which two models differ: see `depthlens.analysis.result.answers`.

        Example:
            >>> result.answers("L2")[["question", "baseline_answer", "answer"]].columns.tolist()
            ['question', 'baseline_answer', 'answer']
        """
        from depthlens.analysis.result import answers

        return answers.answers(self, condition, change, task=task, against=against)

    def broken(self, conditions: str | Sequence[str], task: str | None = None) -> Broken:
        """What the questions that a condition breaks have in common; see `depthlens.analysis.result.broken`.

        ``result.broken("L11").by("region")`` crosses broken and kept questions with a field of the documents.

        Raises:
            UserError: there is no such condition or task, several tasks, or the questions are not known.

        Example:
            >>> print(result.broken("L2").describe()[0])
            L2 breaks 12 of 12 questions of organism_one_hop that the whole model can lose.
        """
        from depthlens.analysis.result import broken

        return broken.broken(self, conditions, task)

    def to_inspect(self, out: str | Path) -> list[Path]:
        """Write a log of Inspect for each task and condition into a folder, for ``inspect view --log-dir OUT``.

        The condition is among the arguments of the model; see `depthlens.analysis.result.inspect_logs`.

        Returns:
            The ``.eval`` files. Those of an earlier call for the same result are replaced.

        Raises:
            UserError: the folder cannot be written, or the questions are not known.

        Example:
            >>> len(result.to_inspect("logs"))
            7
        """
        from depthlens.analysis.result import inspect_logs

        return inspect_logs.write(self, out)

    def explore(self) -> Explorer:
        """What breaks: a map of the removed parts, and the answers that each of them changes.

        In JupyterLab ``view = result.explore()`` shows it, and the next cell reads ``view.condition`` and
        ``view.documents``.
        """
        from depthlens.analysis.show.explorer import Explorer

        return Explorer(self)

    def unparsed(self, task: str, metric: str) -> pd.DataFrame:
        """Share of unreadable answers by condition; see `depthlens.analysis.show.written_answers.unparsed`."""
        from depthlens.analysis.show import written_answers

        return written_answers.unparsed(self, task, metric)

    def critical(self) -> pd.DataFrame:
        """Rows of the summary whose loss is significant by step-down maxT, and above the metric's ``min_effect``.

        A task at chance yields no row and a warning that names it. ``in_top`` is how stable the ranking is: the
        share of bootstrap draws of questions in which the row is among the k costliest of its task and metric, where k
        are critical (`depthlens.analysis.numbers.means.in_top`).
        """
        from depthlens.analysis.show import words

        for row in self.baselines.itertuples():
            if row.at_chance:
                warnings.warn(words.cannot_judge(row), stacklevel=2)
        tops = [in_top(each.mean(), int(each.critical().sum())) for each in self.every_losses.values()]
        table = self.loss_table.assign(in_top=np.concatenate([[], *tops]))
        return table.loc[table["critical"], [*stats.SUMMARY_COLUMNS, "in_top"]].reset_index(drop=True)

    def head_losses(
        self, task: str | None = None, metric: str | None = None, *, beyond: str | None = None
    ) -> HeadScores:
        """Loss that removing each head causes, of a head sweep: mean over documents of baseline minus score.

        Args:
            task: Which task; may be left out where there is one.
            metric: Which metric; may be left out where the task has one.
            beyond: Another task of the same documents, whose losses are subtracted: high for heads that carry what only
                ``task`` needs, near 0 for those that both need.

        Example:
            >>> heads.head_losses("organism_two_hop", "acc", beyond="organism_one_hop").top(2)
            [L3.H0, L4.H3]
        """
        from depthlens.analysis.heads import effects

        return effects.head_losses(self, documents.only(self.docs, "task", task), metric, beyond)

    def loss_by_third(self, *, scale: str = "above_chance") -> pd.DataFrame:
        """Loss of removing one layer of each depth third, of a layer sweep: task, third, loss, ci_low, ci_high.

        Args:
            scale: Mean losses as shares of the score ``above_chance`` or in the unit of the ``score``; or the third's
                share of all losses, its ``importance``. See `depthlens.analysis.layers.depth`.

        Example:
            >>> result.loss_by_third()["loss"].round(1).tolist()
            [0.4, 0.7, 0.0]
        """
        from depthlens.analysis.layers import depth

        return depth.loss_by_third(self, scale)

    def centre_of_mass(self) -> DescribedTable:
        """How deep the losses of a layer sweep are: their mean depth by task, as a share of the model's depth.

        Returns:
            One row a task: task, n, centre, ci_low, ci_high, unplaced ("" or why there is no centre); one sentence a
            task, then one for every two tasks on which is deeper, with intervals that hold together (Bonferroni).

        Example:
            >>> result.centre_of_mass().table["unplaced"].item()
            '12 questions are too few; take at least 100'
        """
        from depthlens.analysis.layers import depth

        return depth.centre_of_mass(self)

    def recovery(self, donor: Result) -> DescribedTable:
        """What share of the gap between a base model and its donor each transplant recovers.

        Args:
            donor: The donor's own baseline on the same tasks, metrics and documents.

        Returns:
            One row a task and transplant: `depthlens.analysis.layers.recovery` has the columns.

        Example:
            >>> moved.recovery(whole).table[["condition", "no_gap"]].head(1)
                condition                                        no_gap
            0    L0@donor  the donor is not proven better than the base
        """
        from depthlens.analysis.layers import recovery

        return recovery.recovery(self, donor)

    def split(self, task: str) -> Result:
        """A group of tasks as several, ``group, subtask``; p-values are corrected within each.

        Args:
            task: Name of the group.

        Example:
            >>> subjects.split("mmlu").docs["task"].unique().tolist()
            ['mmlu, mmlu_anatomy', 'mmlu, mmlu_virology']
        """
        from depthlens.analysis.result import concat

        return concat.split(self, task)

    def describe(self, conditions: str | Sequence[str] | None = None) -> list[str]:
        """What the result says, one sentence each.

        Args:
            conditions: What each of these costs: a sentence per condition, task and metric. None describes the
                whole result: for a head sweep how many heads are critical and which costs most, for a block sweep the
                largest block whose loss is shown to be small, and otherwise the critical conditions of each task.

        Raises:
            UserError: a condition that the result does not have.
        """
        from depthlens.analysis.show import words

        if conditions is None:
            return words.describe(self)
        table = self.loss_table
        rows = table[table["condition"].isin(chosen(conditions, table["condition"].unique()))]
        return [words.sentence(row) for row in rows.itertuples()]

    def display(self) -> tuple[str, pd.DataFrame, list[str]]:
        """What is shown: the worst losses of each task and metric, and what limits the conclusions."""
        from depthlens.analysis.show import words

        return words.displayed(self)


def examples(name: str = "smollm2-135m-cot") -> Result:
    """A sweep over all layers of a model, from the package: no model is loaded.

    ``smollm2-135m-cot`` was asked 60 questions about capitals, without worked examples: in ``capitals_generative`` it
    writes the answer, in ``capitals_continuation`` it chooses among four. The others are models of the atlas
    (``docs/atlas.md``) on published benchmarks: scores by the number of the document, without any text of these.
    ``dl.compare(mine, dl.examples(name))`` puts one's own sweep beside one of them.

    Raises:
        UserError: an unknown name; the message lists all.

    Example:
        >>> dl.examples().answers("L23", task="capitals_generative")["answer"].head(2).tolist()
        [' Kolkuru', ' Calcutta']
    """
    folder = paths.data_dir() / "examples"
    if name not in (names := sorted(path.name for path in folder.iterdir())):
        raise unknown("example", name, names)
    return Result.load(folder / name)
