"""The fast path of the engine: requests packed into prefix trees, all conditions on one walk over the layers.

See `depthlens.engine.wavefront` for the walk and `depthlens.engine.decoding` for texts. Where texts are scored, a pack
is cut so that one condition takes at most about ten seconds (`depthlens.engine.work`), and so are the conditions that
walk through it together. Their answers are stored then, so that no more than that is lost when the work is stopped.
Texts that are written are stored as they end, and only memory bounds a pack. Where memory runs out, the budget is
halved, then the pack, then the group of conditions, and the work continues.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.torch import TorchBackend
from depthlens.engine import prefix_tree
from depthlens.engine.decoding import Decoding
from depthlens.engine.prefix_tree import Pack
from depthlens.engine.wavefront import CleanRow, Wavefront, fork_layer
from depthlens.engine.work import MIN_BATCH_TOKENS, Budget, Work, WorkRate, text_lengths, tried
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import wide, wide_type
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, place_of
from depthlens.models.quantised import other_weights_bytes, other_weights_resident
from depthlens.progress import Bar
from depthlens.requests import LoglikelihoodAnswer
from depthlens.store.answer_cache import AnswerRows, Product

# prompts that are decoded in one pack, even if few conditions fit into memory then: a pack's last rows, which write for
# longest, have few others beside them
MIN_PROMPTS = 64
# conditions that walk together; more gain nothing, since the clean row they share is by then a small part
MAX_OPEN_ROWS = 128
# a prefix that requests share is computed once a pack, so that a pack of several times its length spends little on it
PREFIX_SHARE = 4

Passed = Callable[[int], None]  # called with the number of tokens that have passed a layer


class PackedTrees:
    """Requests under conditions on their way through the layers, pack by pack.

    Args:
        lens: A loaded model.
        backend: Hooks and reference means.
        budget: Bounds on one batch.
        work: Counts what is computed.
        rows: Requests, conditions, and their answers, which are filled in and kept.
        bar: Moves as tokens pass layers, by rows (request, condition).
        writes: Whether texts are asked for, or log-likelihoods.

    Attributes:
        batch_tokens: Token budget of one batch, as it is by now: it falls where memory runs out.
        tokens: What is read of each request.
        max_new: Most tokens that each request writes.
        at_once: Conditions that are decoded together.
    """

    at_once: int

    def __init__(
        self, lens: Lens, backend: TorchBackend, budget: Budget, work: Work, rows: AnswerRows, bar: Bar, *, writes: bool
    ) -> None:
        self.lens, self.backend, self.budget, self.work = lens, backend, budget, work
        self.rows, self.bar, self.writes = rows, bar, writes
        self.batch_tokens = budget.batch_tokens
        self.tokens = [q.context if writes else q.inputs for q in rows.requests]
        self.max_new = [q.max_new_tokens if writes else 0 for q in rows.requests]
        self._rate = WorkRate(lens)
        self._forks = [fork_layer(condition, lens.dims.n_layers) for condition in rows.conditions]

    def run(self) -> None:
        """Answer every request under every condition."""
        order = sorted(self.rows.unfinished, key=lambda c: self._forks[c])  # the baseline last: see decoding.Decoding
        self.at_once, room = self._decoding_room(max(1, len(order)))
        size = self._size_with_weights([self.rows.conditions[c] for c in order]) if self.writes else MAX_OPEN_ROWS
        # every row of a pack lives through all layers: their states bound the size of a pack whose texts are scored
        row_bytes = self.lens.dims.d_model * self.lens.dtype.itemsize
        for group in (order[i : i + size] for i in range(0, len(order), size)):
            if self.writes:
                with other_weights_resident(self.lens, [self.rows.conditions[c] for c in group]):
                    self._walk(group, room)
            else:
                self._walk(group, max(1, self.budget.state_bytes // (len(group) * row_bytes)))

    def _walk(self, group: Sequence[int], room: int) -> None:
        """Run all requests under a group of conditions that fits into memory, sorted by where they fork off.

        Args:
            group: Indices of conditions.
            room: Largest number of distinct tokens in a pack, and of tokens written after them.
        """
        n_layers = self.lens.dims.n_layers

        def limit(prefix: int) -> int:
            return room if self.writes else min(room, max(int(self._rate.work / n_layers), PREFIX_SHARE * prefix))

        for pack in prefix_tree.pack(self.tokens, limit, extra=max(self.max_new, default=0)):
            todo = [c for c in group if any(self.rows.answers[c][r] is None for r in pack.sequences)]
            walked: list[int] = []  # of which requests the clean row is
            clean = CleanRow()
            while todo:
                n = len(todo) if self.writes else self._in_time(pack, todo, walked=clean.final is not None)
                some, todo = todo[:n], todo[n:]
                for members, under in self.rows.missing(pack.sequences, some):
                    if members != walked:
                        walked, clean = members, CleanRow(frozenset(self._forks[c] for c in todo))
                    self.compute(members, under, clean)

    def _in_time(self, pack: Pack, todo: Sequence[int], *, walked: bool) -> int:
        """How many conditions take about the time of a pack together; all of them, if that is half as long again."""
        n, work = 1, self._rate.work
        while n < len(todo) and self._work(pack, todo[: n + 1], walked) <= work:
            n += 1
        return len(todo) if self._work(pack, todo, walked) <= 1.5 * work else n

    def _work(self, pack: Pack, group: Sequence[int], walked: bool) -> int:
        """Tokens that pass a layer, counting each layer: of the clean row, of rows that have forked, and written."""
        n_layers = self.lens.dims.n_layers
        read = sum(n_layers - self._forks[c] for c in group)
        written = sum(self.max_new[r] for r in pack.sequences)
        return pack.n_tokens * (read + (0 if walked else n_layers)) + n_layers * len(group) * written

    def compute(self, members: list[int], group: list[int], clean: CleanRow) -> None:
        """Answer some requests under some conditions, and store the answers.

        Where memory runs out, the halves of what is missing are answered.
        """
        pack, walked = prefix_tree.build(self.tokens, members), clean.final is not None
        start, n_rows, work, done = self.bar.n, len(members) * len(group), max(1, self._work(pack, group, walked)), 0

        def passed(n: int) -> None:
            nonlocal done
            done += n
            self.work.layer_tokens += n
            self.bar.update(start + n_rows * min(done, work) // work - self.bar.n)

        def run() -> bool:
            with self._rate.measured(work):
                (self._write if self.writes else self._score)(pack, group, clean, passed)
            return True

        can_shrink = n_rows > 1 or self.batch_tokens > MIN_BATCH_TOKENS
        complete = tried(run, smaller=can_shrink)
        answered = [(c, r) for c in group for r in members if self.rows.answers[c][r] is not None]
        self.bar.update(start + len(answered) - self.bar.n)
        n_tokens, unshared = 0 if walked else pack.n_tokens, sum(len(self.tokens[r]) for _, r in answered)
        self.work.add(Work(rows=len(answered), tokens=n_tokens, unshared_tokens=unshared))
        self.rows.keep(answered)
        if not complete:
            clean.forget()
            self.batch_tokens = max(MIN_BATCH_TOKENS, self.batch_tokens // 2)
            for product in self.rows.missing(members, group):
                for half in _halves(*product):
                    self.compute(*half, CleanRow())

    def _score(self, pack: Pack, group: list[int], clean: CleanRow, passed: Passed) -> None:
        """Log-likelihoods of one pack under a group of conditions."""
        requests, conditions = self.rows.requests, [self.rows.conditions[c] for c in group]
        scored: dict[int, int] = {}  # which positions are unembedded: sequences share them as they share tokens
        spans = [
            [scored.setdefault(node, len(scored)) for node in path[len(requests[r].context) - 1 :]]
            for r, path in zip(pack.sequences, pack.paths, strict=True)
        ]
        walk = Wavefront(self.lens, self.backend.means, self.batch_tokens)
        states = walk.run(pack, conditions, list(scored), passed=passed, clean=clean)
        states = moved(states, place_of(self.lens.arch.unembed))
        targets = torch.tensor([t for r in pack.sequences for t in requests[r].continuation], device=states.device)
        places = torch.tensor([i for span in spans for i in span], device=states.device)
        logprobs, greedy = self._target_logprobs(conditions, states, places, targets)
        sizes = [len(span) for span in spans]
        for c, *of_condition in zip(group, logprobs.cpu(), greedy.cpu(), strict=True):
            for r, sums, hits in zip(pack.sequences, *(x.split(sizes) for x in of_condition), strict=True):
                logprob = math.fsum(sums.tolist())
                if not math.isfinite(logprob):
                    raise self.lens.not_finite(self.rows.conditions[c])
                self.rows.answers[c][r] = LoglikelihoodAnswer(logprob, all(hits.tolist()))

    @torch.no_grad()
    def _target_logprobs(
        self,
        conditions: Sequence[Condition],
        states: Float[Tensor, "condition position d_model"],
        places: Int[Tensor, " target"],
        targets: Int[Tensor, " target"],
    ) -> tuple[Float[Tensor, "condition target"], Bool[Tensor, "condition target"]]:
        """Log-probabilities of target tokens, and whether each is the likeliest.

        Args:
            conditions: One a row.
            states: Final residual streams; so many as the budget allows are unembedded at once.
            places: Position among the states that predicts each target.
            targets: Token ids.
        """
        n, n_positions = len(conditions), states.shape[1]
        rows = (torch.arange(n, device=places.device)[:, None] * n_positions + places).flatten()
        wanted, under = targets.repeat(n), [c for c in conditions for _ in range(n_positions)]
        logprobs = torch.empty(len(rows), dtype=wide_type(states.dtype), device=states.device)
        greedy = torch.empty(len(rows), dtype=torch.bool, device=states.device)
        start = 0
        for block in states.flatten(0, 1).split(self.budget.unembed_rows):
            end = start + len(block)
            logits = wide(weight_swap.unembed(self.lens, under[start:end], block))
            here = ((rows >= start) & (rows < end)).nonzero()[:, 0]
            at = rows[here] - start
            logprobs[here] = logits[at, wanted[here]] - logits.logsumexp(-1)[at]
            greedy[here] = logits.argmax(-1)[at] == wanted[here]
            start = end
        return logprobs.view(n, -1), greedy.view(n, -1)

    def _write(self, pack: Pack, group: list[int], _: CleanRow, passed: Passed) -> None:
        """Texts of one pack under a group of conditions, of which some fit into memory at once."""
        rows, conditions = self.rows, [self.rows.conditions[c] for c in group]
        writer = Writer(self.lens, [rows.requests[r] for r in pack.sequences], conditions)
        expected = text_lengths(self.lens, writer.requests)

        def finished(found: list[Row]) -> None:
            n = sum(len(writer.tokens[row]) for row in found)
            spared = sum(expected[d] for _, d in found) - n
            self.work.add(Work(written_tokens=n, spared=self.lens.dims.n_layers * spared))
            for c, d in found:
                rows.answers[group[c]][pack.sequences[d]] = writer.text((c, d))
            # long texts: those that have ended are stored while the others are written
            rows.keep(((group[c], pack.sequences[d]) for c, d in found), wait=True)

        budget = replace(self.budget, batch_tokens=self.batch_tokens)
        Decoding(self.lens, self.backend, pack, conditions, budget, writer, passed, finished).run(self.at_once)

    def _decoding_room(self, n_conditions: int) -> tuple[int, int]:
        """How many conditions are decoded at once, and how many tokens each may hold keys and values for."""
        dims = self.lens.dims
        token_bytes = 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * self.lens.dtype.itemsize
        shared = prefix_tree.common_prefix(min(self.tokens, default=()), max(self.tokens, default=()))
        own = max(map(len, self.tokens), default=0) - shared + max(self.max_new, default=0)
        enough = shared + min(len(self.tokens), MIN_PROMPTS) * own
        size = n_conditions
        while size > 1 and self.budget.key_bytes // (size * token_bytes) < enough:
            size = (size + 1) // 2
        return size, max(1, self.budget.key_bytes // (size * token_bytes))

    def _size_with_weights(self, ordered: Sequence[Condition]) -> int:
        """How many conditions in a row are decoded in one go, so that their weights fit into memory with the keys.

        One condition's layers are in memory in any case, because text is written with all of them.
        """

        def taken(conditions: Sequence[Condition]) -> int:
            return other_weights_bytes(self.lens, conditions)

        size = max(1, len(ordered))
        bound = max(max((taken([c]) for c in ordered), default=0), self.budget.key_bytes)
        while size > 1 and any(taken(ordered[i : i + size]) > bound for i in range(0, len(ordered), size)):
            size = (size + 1) // 2
        return size


def _halves(members: list[int], group: list[int]) -> list[Product]:
    """A product in two: half of the requests each, or of the conditions where there is one request."""
    items = members if len(members) > 1 else group
    middle = len(items) // 2
    cut = [half for half in (items[:middle], items[middle:]) if half]
    return [(half, group) if len(members) > 1 else (members, half) for half in cut]
