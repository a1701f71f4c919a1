"""Requests under conditions, pack by pack: how much is done at once, when it is stored, and what if memory runs out.

Where texts are scored, a pack is cut so that one condition takes at most about ten seconds (`work`), and so are
the conditions that walk through it together. Their answers are stored then, so that no more than that is lost when the
work is stopped. Texts that are written are stored as they end, and only memory bounds a pack.
Where memory runs out, the budget is halved, then the pack, then the group of conditions, and the work continues.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from depthlens.engine import memory_budget, prefix_tree
from depthlens.engine.memory_budget import out_of_memory
from depthlens.engine.wavefront import CleanRow, fork_layer
from depthlens.engine.work import Work, WorkRate
from depthlens.models.lens import Lens
from depthlens.progress import Bar
from depthlens.store.answer_cache import AnswerRows, Product

# a prefix that requests share is computed once a pack, so that a pack of several times its length spends little on it
PREFIX_SHARE = 4

Passed = Callable[[int], None]  # called with the number of tokens that have passed a layer
Run = Callable[[prefix_tree.Pack, list[int], CleanRow, Passed, int], None]  # the last one is the token budget


class PackRuns:
    """Requests under conditions on their way through the layers, in packs.

    Args:
        lens: A loaded model.
        tokens: What is read of each request.
        rows: Their answers under all conditions.
        run: Computes a pack under some conditions within a token budget, and fills ``rows.answers``.
        bar: Moves as tokens pass layers, by rows (request, condition).
        batch_tokens: Token budget of one batch; falls where memory runs out.
        work: Counts what is computed.
        max_new: Most tokens that each request writes; None: nothing is written.

    Attributes:
        batch_tokens: The budget, as it is by now.
    """

    def __init__(
        self,
        lens: Lens,
        tokens: Sequence[Sequence[int]],
        rows: AnswerRows,
        run: Run,
        bar: Bar,
        batch_tokens: int,
        work: Work,
        max_new: Sequence[int] | None = None,
    ) -> None:
        self.tokens = tokens
        self.conditions = rows.conditions
        self.rows = rows
        self.batch_tokens = batch_tokens
        self._run = run
        self._bar = bar
        self._max_new = max_new or [0] * len(tokens)
        self._n_layers = lens.dims.n_layers
        self._work_done = work
        self._rate = WorkRate(lens)
        self._clean: tuple[tuple[int, ...], CleanRow] = (), CleanRow(frozenset())

    def walk(self, group: Sequence[int], room: int) -> None:
        """Run all requests under a group of conditions that fits into memory, sorted by where they fork off.

        Args:
            group: Indices of conditions.
            room: Largest number of distinct tokens in a pack, and of tokens written after them.
        """
        writes = any(self._max_new)

        def fits(prefix: int) -> int:
            return room if writes else min(room, max(int(self._rate.work / self._n_layers), PREFIX_SHARE * prefix))

        for pack in prefix_tree.pack(self.tokens, fits, extra=max(self._max_new, default=0)):
            for subgroup in [[*group]] if writes else self._in_time(pack, group):
                for product in self.rows.missing(pack.sequences, subgroup):
                    self.do(*product)

    def do(self, members: list[int], group: list[int]) -> None:
        """Compute some requests under some conditions, and store the answers."""
        pack = prefix_tree.build(self.tokens, members)
        later = [c for c in range(len(self.conditions)) if any(self.rows.answers[c][r] is None for r in members)]
        forks = self._forks([c for c in later if c not in group])
        known, clean = self._clean
        if known != tuple(members) or not forks | self._forks(group) <= clean.layers:
            clean = CleanRow(forks)
        self._clean = tuple(members), clean
        self._run_shrinking(pack, group, clean)
        if not forks:
            self._forget_clean_row()

    def _forget_clean_row(self) -> None:
        self._clean = (), CleanRow(frozenset())

    def _forks(self, group: Sequence[int]) -> frozenset[int]:
        """Layers at which conditions leave the clean row."""
        conditions = [self.conditions[c] for c in group]
        return frozenset(fork_layer(c, self._n_layers) for c in conditions if c)

    def _in_time(self, pack: prefix_tree.Pack, group: Sequence[int]) -> Iterator[list[int]]:
        """Conditions that lack answers in a pack, in groups that take about the time of a pack (half as long again)."""
        answers = self.rows.answers
        todo = [c for c in group if any(answers[c][r] is None for r in pack.sequences)]
        walked = False
        while todo:
            n, work = 1, self._rate.work
            while n < len(todo) and self._work(pack, todo[: n + 1], walked) <= work:
                n += 1
            if len(todo) == n or self._work(pack, todo, walked) <= 1.5 * work:
                n = len(todo)
            yield todo[:n]
            todo, walked = todo[n:], True

    def _work(self, pack: prefix_tree.Pack, group: Sequence[int], walked: bool) -> int:
        """Tokens that pass a layer, counting each layer: of the clean row, of rows that have forked, and written."""
        read = sum(self._n_layers - fork_layer(self.conditions[c], self._n_layers) for c in group)
        written = sum(self._max_new[r] for r in pack.sequences)
        return pack.n_tokens * (read + (0 if walked else self._n_layers)) + self._n_layers * len(group) * written

    def _run_shrinking(self, pack: prefix_tree.Pack, group: list[int], clean: CleanRow) -> None:
        """Run a pack under conditions; where memory runs out, halve the pack, or the group, and continue."""
        members = pack.sequences
        start, n_rows, done = self._bar.n, len(members) * len(group), 0
        walked = clean.final is not None
        work = max(1, self._work(pack, group, walked))
        n_tokens = 0 if walked else pack.n_tokens

        def passed(n: int) -> None:
            nonlocal done
            done += n
            self._work_done.layer_tokens += n
            self._bar.update(start + n_rows * min(done, work) // work - self._bar.n)

        try:
            with self._rate.measured(work):
                self._run(pack, group, clean, passed, self.batch_tokens)
        except (torch.OutOfMemoryError, RuntimeError) as e:
            can_shrink = len(members) > 1 or len(group) > 1 or self.batch_tokens > memory_budget.MIN_BATCH_TOKENS
            if not (out_of_memory(e) and can_shrink):
                raise
        else:
            self._bar.update(start + n_rows - self._bar.n)
            self._answered(members, group, n_tokens)
            return
        # outside of the except block: there the traceback would keep the tensors in memory
        self._forget_clean_row()
        self._answered(members, group, n_tokens)  # some may be
        self.batch_tokens = max(memory_budget.MIN_BATCH_TOKENS, self.batch_tokens // 2)
        missing = self.rows.missing(members, group)
        n_missing = sum(len(some) * len(conditions) for some, conditions in missing)
        self._bar.update(start + n_rows - n_missing - self._bar.n)
        for fewer_members, fewer_conditions in (half for product in missing for half in _halves(*product)):
            smaller = prefix_tree.build(self.tokens, fewer_members)
            self._run_shrinking(smaller, fewer_conditions, CleanRow(frozenset()))

    def _answered(self, members: Sequence[int], group: Sequence[int], n_tokens: int) -> None:
        """Store and count what is answered of some requests under some conditions; so many tokens were read for it."""
        done = [(c, r) for c in group for r in members if self.rows.answers[c][r] is not None]
        unshared = sum(len(self.tokens[r]) for _, r in done)
        self._work_done.add(Work(rows=len(done), tokens=n_tokens, unshared_tokens=unshared))
        self.rows.keep(done)


def _halves(members: list[int], group: list[int]) -> list[Product]:
    """A product in two: half of the requests each, or of the conditions where there is one request."""
    items = members if len(members) > 1 else group
    middle = len(items) // 2
    cut = [half for half in (items[:middle], items[middle:]) if half]
    return [(half, group) if len(members) > 1 else (members, half) for half in cut]
