"""Requests under conditions, pack by pack: how much is done at once, what is kept of it, and what gives way.

A pack is cut so that one condition takes about ten seconds at the most (`pace`), and the conditions that walk through
it together likewise; what they wrote or scored is kept then, so that no more than that is lost when the work is
stopped. Running out of memory halves the budget, then the pack, then the group, and goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tqdm import tqdm

from depthlens.ablations import Condition
from depthlens.engine import memory_budget, prefix_tree
from depthlens.engine.memory_budget import out_of_memory
from depthlens.engine.wavefront import CleanRow
from depthlens.engine.work_rate import WorkRate
from depthlens.store.answer_rows import AnswerRows

# a prefix that requests share is computed once a pack: with so many times its length at least it stays a small part
PREFIX_SHARE = 4

Passed = Callable[[int], None]  # told how many more tokens have passed a layer
Run = Callable[[prefix_tree.Pack, list[int], CleanRow, Passed], None]


class PackRuns:
    """Requests under conditions on their way through the layers, in packs.

    Args:
        lens: A loaded model.
        tokens: What is read of each request.
        conditions: All conditions.
        rows: Their answers; keeps what was done.
        run: Does the work of a pack under some conditions.
        bar: Moves as tokens pass layers, by rows (request, condition).
        batch_tokens: Token budget of one batch; falls where memory runs out.
        written: Most tokens that each request writes; None: nothing is written.
        least_rows: AnswerRows that are worth a batch: fewer are not cut off to save time.

    Attributes:
        batch_tokens: The budget, as it is by now.
    """

    def __init__(
        self,
        lens: Any,
        tokens: Sequence[Sequence[int]],
        conditions: Sequence[Condition],
        rows: AnswerRows,
        run: Run,
        bar: tqdm,
        batch_tokens: int,
        *,
        written: Sequence[int] | None = None,
        least_rows: int = 1,
    ) -> None:
        self.tokens = tokens
        self.conditions = conditions
        self.rows = rows
        self.batch_tokens = batch_tokens
        self._run = run
        self._bar = bar
        self._written = written or [0] * len(tokens)
        self._least_rows = least_rows
        self._n_layers = lens.dims.n_layers
        self._pace = WorkRate(lens)
        self._clean: tuple[tuple[int, ...], CleanRow] = (), CleanRow(frozenset())

    def walk(self, group: Sequence[int], room: int) -> None:
        """Run all requests under a group of conditions that fits into memory, sorted by where they fork off.

        Args:
            group: Indices of conditions.
            room: Distinct tokens of a pack at the most, and what is written after them.
        """

        def fits(prefix: int) -> int:
            most = int(self._pace.work / self._n_layers)
            return min(room, max(most, PREFIX_SHARE * prefix))

        for packed in prefix_tree.pack(self.tokens, fits, extra=max(self._written, default=0)):
            for some in self._in_time(packed, group):
                self.rows.run(packed.sequences, some, self.do, self._bar.update)

    def do(self, members: list[int], group: list[int]) -> None:
        """Compute some requests under some conditions, and keep them."""
        packed = prefix_tree.build(self.tokens, members)
        later = [c for c, row in enumerate(self.rows.answers) if any(row[r] is None for r in members)]
        forks = frozenset(self.conditions[c].first_layer for c in later if c not in group and self.conditions[c])
        known, clean = self._clean
        if known != tuple(members) or not forks | {*self._forks(group)} <= clean.layers:
            clean = CleanRow(forks)
        self._clean = tuple(members), clean
        self._giving_way(packed, group, clean)
        if not forks:
            self._clean = (), CleanRow(frozenset())

    def _forks(self, group: Sequence[int]) -> list[int]:
        return [self.conditions[c].first_layer for c in group if self.conditions[c]]

    def _in_time(self, packed: prefix_tree.Pack, group: Sequence[int]) -> Iterator[list[int]]:
        """Conditions that lack answers in a pack, in groups that take about the time of a pack (half as long again)."""
        answers = self.rows.answers
        todo = [c for c in group if any(answers[c][r] is None for r in packed.sequences)]
        least = -(-self._least_rows // len(packed.sequences))  # conditions
        walked = False
        while todo:
            n, work = least, self._pace.work
            while n < len(todo) and self._work(packed, todo[: n + 1], walked) <= work:
                n += 1
            if len(todo) - n < least or self._work(packed, todo, walked) <= 1.5 * work:
                n = len(todo)
            yield todo[:n]
            todo, walked = todo[n:], True

    def _work(self, packed: prefix_tree.Pack, group: Sequence[int], walked: bool) -> int:
        """Tokens that pass a layer, counting each layer: of the clean row, of rows that have forked, and written."""
        read = sum(self._n_layers - layer for layer in self._forks(group)) + (0 if walked else self._n_layers)
        written = sum(self._written[r] for r in packed.sequences)
        return packed.n_tokens * read + self._n_layers * len(group) * written

    def _giving_way(self, packed: prefix_tree.Pack, group: list[int], clean: CleanRow) -> None:
        """Run a pack under conditions; when memory runs out halve the pack, or the group, and go on."""
        members = packed.sequences
        start, n_rows, done = self._bar.n, len(members) * len(group), 0
        work = max(1, self._work(packed, group, clean.final is not None))

        def passed(n: int) -> None:
            nonlocal done
            done += n
            self._bar.update(start + n_rows * min(done, work) // work - self._bar.n)

        try:
            with self._pace.measured(work):
                self._run(packed, group, clean, passed)
        except (torch.OutOfMemoryError, RuntimeError) as e:
            can_shrink = len(members) > 1 or len(group) > 1 or self.batch_tokens > memory_budget.MIN_BATCH_TOKENS
            if not (out_of_memory(e) and can_shrink):
                raise
        else:
            self._bar.update(start + n_rows - self._bar.n)
            self.rows.put(members, group)
            return
        # out here the traceback no longer holds what ran out
        self._clean = (), CleanRow(frozenset())
        self._bar.update(start - self._bar.n)
        self.batch_tokens = max(memory_budget.MIN_BATCH_TOKENS, self.batch_tokens // 2)
        halves = (
            [(half, group) for half in _halves(members)] if len(members) > 1 else [(members, h) for h in _halves(group)]
        )
        for fewer_members, fewer_conditions in halves:
            half = prefix_tree.build(self.tokens, fewer_members)
            self._giving_way(half, fewer_conditions, CleanRow(frozenset()))


def _halves(items: list[int]) -> list[list[int]]:
    middle = len(items) // 2
    return [half for half in (items[:middle], items[middle:]) if half]
