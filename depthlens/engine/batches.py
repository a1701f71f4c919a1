"""How the engine answers requests under conditions: packed into prefix trees, or row by row.

**Packs.** Requests are packed into prefix trees, and all conditions walk through the layers together: see
`depthlens.engine.wavefront`, and `depthlens.engine.decoding` for texts. Where texts are scored, a pack is cut so that
one condition takes at most about ten seconds (`depthlens.engine.work`), and so are the conditions that walk through it
together. Their answers are stored then, so that no more than that is lost when the work is stopped. Texts that are
written are stored as they end, and only memory bounds a pack. Where memory runs out, the budget is halved, then the
pack, then the group of conditions, and the work continues.

**Rows.** For backends that only know whole forward passes, for models on a server, and for attention that the wavefront
does not compute, each row (condition, request) takes a forward pass of its own, in padded batches. Rows share nothing
but the batch, and the scores are the same. Long requests come first, and answers are stored about every ten seconds.
Where memory runs out, the batch is halved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from depthlens.ablations import routes
from depthlens.backends import row_edits, site_edits
from depthlens.backends.torch import Rows, predictions
from depthlens.engine import prefix_tree, walk_check
from depthlens.engine.decoding import FIRST_ROOM, Decoding
from depthlens.engine.wavefront import CLEAN, CleanRow, Wavefront, first_edited, places, ways_of
from depthlens.engine.work import MIN_BATCH_TOKENS, Budget, Work, WorkRate, text_lengths, tried
from depthlens.engine.writer import Row, Writer
from depthlens.errors import UserError
from depthlens.models.lens import Lens
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


@dataclass
class Batches:
    """Requests under conditions on their way to answers.

    Attributes:
        lens: A loaded model.
        backend: Applies the conditions; of packs: hooks and reference means.
        budget: Bounds on one batch; its tokens fall where memory runs out.
        work: Counts what is computed.
        rows: Requests, conditions, and their answers, which are filled in and kept.
        bar: Moves by rows (condition, request).
        writes: Whether texts are asked for, or log-likelihoods.
        read: What is read of each request.
        max_new: Most tokens that each request writes.
    """

    lens: Lens
    backend: Any
    budget: Budget
    work: Work
    rows: AnswerRows
    bar: Bar
    writes: bool

    def __post_init__(self) -> None:
        requests = self.rows.requests
        self.read = [q.context if self.writes else q.inputs for q in requests]
        self.max_new = [q.max_new_tokens if self.writes else 0 for q in requests]

    def scored(self, rows: Sequence[Row], scores: Float[Tensor, "2 row"]) -> list[LoglikelihoodAnswer]:
        """Answers of rows from sums of log-probabilities, and how many tokens are not the likeliest.

        Raises:
            UserError: a sum is not finite.
        """
        for (c, _), is_finite in zip(rows, scores[0].isfinite().tolist(), strict=True):
            if not is_finite:
                raise self.lens.not_finite(self.rows.conditions[c])
        return [LoglikelihoodAnswer(logprob, misses == 0) for logprob, misses in scores.T.tolist()]


class PackedTrees(Batches):
    """Requests in packs, through the layers under many conditions together."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._rate = WorkRate(self.lens)
        self._ways = ways_of(self.lens, self.rows.conditions)
        shared, clean = routes.forks(self._ways), self._ways[CLEAN]
        # where each leaves the clean row, whichever others walk with it
        self._forks = {c: routes.forks({CLEAN: clean, c: way})[c].step for c, way in self._ways.items()}
        # passes that no other row has; unembedding costs about as much as one
        self._own = {c: max(1, way.passed(shared[c].step)) for c, way in self._ways.items()}
        self._starts = [first_edited(condition) for condition in self.rows.conditions]
        self.reserved = 0  # tokens that each row has room to write

    def run(self) -> None:
        """Answer every request under every condition."""
        order = sorted(self.rows.unfinished, key=lambda c: self._forks[c])  # the baseline last: see decoding.Decoding
        if self.writes:
            return self._write_all(order)
        order.sort(key=lambda c: self._starts[c])  # those that are edited from the same position on walk together
        # every row of a pack lives through all layers: their states bound the size of a pack
        row_bytes = self.lens.dims.d_model * self.lens.dtype.itemsize
        for group in (order[i : i + MAX_OPEN_ROWS] for i in range(0, len(order), MAX_OPEN_ROWS)):
            self._walk(group, max(1, self.budget.state_bytes // (len(group) * row_bytes)))

    def _write_all(self, order: Sequence[int]) -> None:
        """Write all texts, under so many conditions in one go that their weights fit into memory with the keys."""
        dims, conditions = self.lens.dims, self.rows.conditions
        n_kept = len(places(self._ways))  # each has keys and values of its own
        n_held = self.budget.key_bytes // (2 * n_kept * dims.n_kv_heads * dims.d_head * self.lens.dtype.itemsize)
        shared = prefix_tree.common_prefix(min(self.read), max(self.read))
        # texts end early more often than not; see `Decoding.run` for where they do not
        self.reserved = min(max(self.max_new), max(FIRST_ROOM, *text_lengths(self.lens, self.rows.requests)))
        own = max(map(len, self.read)) - shared + self.reserved
        # conditions that are decoded together
        self.at_once = max(1, min(len(order), n_held // (shared + min(len(self.read), MIN_PROMPTS) * own)))
        taken = max(other_weights_bytes(self.lens, [conditions[c]]) for c in order)
        size = max(1, self.budget.key_bytes // taken) if taken else len(order)
        for group in (order[i : i + size] for i in range(0, len(order), size)):
            with other_weights_resident(self.lens, [conditions[c] for c in group]):
                self._walk(group, max(1, n_held // self.at_once))

    def _walk(self, group: Sequence[int], room: int) -> None:
        """Run all requests under a group of conditions that fits into memory, sorted by where they fork off.

        Args:
            group: Indices of conditions.
            room: Largest number of distinct tokens in a pack, and of tokens written after them.
        """
        n_layers = self.lens.dims.n_layers

        def limit(prefix: int) -> int:
            in_time = room if self.writes else max(int(self._rate.work / n_layers), PREFIX_SHARE * prefix)
            return min(room, in_time, walk_check.longest_row(self.lens) or room)

        for pack in prefix_tree.pack(self.read, limit, extra=self.reserved):
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

    def _in_time(self, pack: prefix_tree.Pack, todo: Sequence[int], *, walked: bool) -> int:
        """How many conditions take about the time of a pack together; all of them, if that is half as long again."""
        n, work = 1, self._rate.work
        while n < len(todo) and self._work(pack, todo[: n + 1], walked) <= work:
            n += 1
        return len(todo) if self._work(pack, todo, walked) <= 1.5 * work else n

    def _work(self, pack: prefix_tree.Pack, group: Sequence[int], walked: bool) -> int:
        """Tokens that pass a layer, counting each layer: of the clean row, of rows that have forked, and written."""
        read = sum(self._own[c] for c in group)
        written = sum(self.max_new[r] for r in pack.sequences) * sum(self._ways[c].passed() for c in group)
        before = 0 if self.writes else min(pack.n_prefix, *(self._starts[c] for c in group))
        clean = 0 if walked else self._ways[CLEAN].passed() * pack.n_tokens
        return clean + (pack.n_tokens - before) * read + written

    def compute(self, members: list[int], group: list[int], clean: CleanRow) -> None:
        """Answer some requests under some conditions, and store the answers.

        Where memory runs out, the halves of what is missing are answered.
        """
        pack, walked = prefix_tree.build(self.read, members), clean.final is not None
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

        can_shrink = n_rows > 1 or self.budget.batch_tokens > MIN_BATCH_TOKENS
        complete = tried(run, smaller=can_shrink)
        answered = [(c, r) for c in group for r in members if self.rows.answers[c][r] is not None]
        self.bar.update(start + len(answered) - self.bar.n)
        n_tokens, unshared = 0 if walked else pack.n_tokens, sum(len(self.read[r]) for _, r in answered)
        self.work.add(Work(rows=len(answered), tokens=n_tokens, unshared_tokens=unshared))
        self.rows.keep(answered)
        if not complete:
            clean.inputs, clean.keys, clean.final = {}, {}, None  # walked again where it is needed
            self.budget.batch_tokens = max(MIN_BATCH_TOKENS, self.budget.batch_tokens // 2)
            for half in cut(self.rows.requests, self.rows.missing(members, group), 2):
                self.compute(*half, CleanRow())

    @torch.no_grad()
    def _score(self, pack: prefix_tree.Pack, group: list[int], clean: CleanRow, passed: Passed) -> None:
        """Log-likelihoods of one pack under a group of conditions."""
        requests, conditions = self.rows.requests, [self.rows.conditions[c] for c in group]
        scored: dict[int, int] = {}  # which positions are unembedded: sequences share them as they share tokens
        spans = [
            [scored.setdefault(node, len(scored)) for node in path[len(requests[r].context) - 1 :]]
            for r, path in zip(pack.sequences, pack.paths, strict=True)
        ]
        about = self.lens, self.backend.means, self.budget.batch_tokens, pack, conditions, list(scored)
        states = Wavefront(*about, passed=passed, clean=clean).run().flatten(0, 1)
        n, n_sequences = len(group), len(pack.sequences)
        sequence, position, target = predictions(spans, [requests[r].continuation for r in pack.sequences]).T
        number = torch.arange(n)[:, None]  # of each condition
        whose, at = (number * n_sequences + sequence).flatten(), (number * len(scored) + position).flatten()
        wanted, under = target.repeat(n), [condition for condition in conditions for _ in scored]
        answer = torch.zeros(2, n * n_sequences, dtype=torch.float64)
        for start in range(0, len(under), self.budget.unembed_rows):
            end = start + self.budget.unembed_rows
            logits = row_edits.unembed(self.lens, under[start:end], states[start:end])
            here = (at >= start) & (at < end)
            site_edits.add_scores(answer, logits, whose[here], wanted[here], at[here] - start)
        rows = [(c, r) for c in group for r in pack.sequences]
        for (c, r), found in zip(rows, self.scored(rows, answer), strict=True):
            self.rows.answers[c][r] = found

    def _write(self, pack: prefix_tree.Pack, group: list[int], _: CleanRow, passed: Passed) -> None:
        """Texts of one pack under a group of conditions, of which some fit into memory at once."""
        rows, conditions = self.rows, [self.rows.conditions[c] for c in group]
        writer = Writer(self.lens, [rows.requests[r] for r in pack.sequences], conditions)

        def finished(found: list[Row]) -> None:
            self.work.add(Work(written_tokens=sum(len(writer.tokens[row]) for row in found)))
            for c, d in found:
                rows.answers[group[c]][pack.sequences[d]] = writer.text((c, d))
            # long texts: those that have ended are stored while the others are written
            rows.keep(((group[c], pack.sequences[d]) for c, d in found), wait=True)

        Decoding(self.lens, self.backend, pack, conditions, self.budget, writer, passed, finished).run(self.at_once)


class RowBatches(Batches):
    """Requests under conditions, row by row."""

    def run(self) -> None:
        """Answer every request under every condition, long ones first.

        Raises:
            UserError: a server is to draw tokens.
        """
        rows, lengths = self.rows, [len(read) + new for read, new in zip(self.read, self.max_new, strict=True)]
        todo = [(c, r) for members, group in rows.missing() for c in group for r in members]
        todo.sort(key=lambda row: -lengths[row[1]])
        # what a user has put on the model may depend on all of a batch
        alone = walk_check.found(self.lens).foreign is not None
        # in float64 nothing is padded: eager attention takes its softmax in float32, where what padding sees is NaN
        most = 1 if alone or (self.writes and self.lens.dtype == torch.float64) else len(todo)
        with other_weights_resident(self.lens, rows.conditions) if self.writes else nullcontext():
            while todo:
                longest = max(1, lengths[todo[0][1]])
                batch = todo[: max(1, min(most, self.budget.batch_tokens // longest))]
                answers = tried(partial(self._write if self.writes else self._score, batch), smaller=len(batch) > 1)
                if answers is None:
                    self.budget.batch_tokens = max(1, len(batch) // 2 * longest)
                    continue
                read = sum(len(self.read[r]) for _, r in batch)
                self.work.add(Work(len(batch), read, read, layer_tokens=self.lens.dims.n_layers * read))
                for (c, r), answer in zip(batch, answers, strict=True):
                    rows.answers[c][r] = answer
                todo = todo[len(batch) :]
                self.bar.update(len(batch))
                rows.keep(batch, wait=True)

    def _score(self, batch: list[Row]) -> Sequence[Any]:
        under = [self.rows.conditions[c] for c, _ in batch]
        asked = [self.rows.requests[r] for _, r in batch]
        tokens, mask = self._padded(batch)
        spans = [range(len(q.context) - 1, len(q.inputs)) for q in asked]
        targets, at_once = [q.continuation for q in asked], self.budget.unembed_rows
        found = self.backend.score(tokens, mask, under, spans, targets, unembed_rows=at_once)
        return self.scored(batch, found)

    def _write(self, batch: list[Row]) -> Sequence[Any]:
        rows = self.rows
        asked = [rows.requests[r] for _, r in batch]
        writer = Writer(self.lens, rows.requests, rows.conditions)
        tokens, mask = self._padded(batch)
        if self.lens.remote:
            if any(q.sampling for q in asked):
                fault = "a server draws tokens in its own way; load the model here to sample"
                raise UserError(f"model {self.lens.name}: {fault}")
            under, most = [rows.conditions[c] for c, _ in batch], max(q.max_new_tokens for q in asked)
            new = self.backend.write(tokens, mask, under, most, writer.rules, writer.eos)
            texts = [writer.replay(row, of_row) for row, of_row in zip(batch, new, strict=True)]
        else:
            self._write_together(writer, batch, tokens, mask)
            texts = [writer.text(row) for row in batch]
        written = sum(len(writer.tokens[row]) for row in batch)
        passed = self.lens.dims.n_layers * (written - len(batch))
        self.work.add(Work(written_tokens=written, layer_tokens=passed))
        return texts

    def _write_together(self, writer: Writer, alive: list[Row], tokens: Rows, mask: Rows) -> None:
        cache = None
        while alive:
            under = [writer.conditions[c] for c, _ in alive]
            logits, cache = self.backend.forward(tokens, mask, under, cache=cache)
            unfinished = writer.write(alive, torch.cat(logits))
            if len(unfinished) < len(alive):
                keep = torch.tensor([alive.index(row) for row in unfinished], dtype=torch.long)
                cache.batch_select_indices(keep)  # which may be on several devices
                mask, alive = mask[keep], unfinished
            tokens = torch.tensor([writer.tokens[row][-1:] for row in alive], device=self.lens.device)
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)

    def _padded(self, batch: list[Row]) -> list[Rows]:
        """Token ids and attention mask; those for a server are here."""
        device = "cpu" if self.lens.remote else self.lens.device
        ids = [torch.tensor(self.read[r], device=device) for _, r in batch]
        padded = partial(pad_sequence, batch_first=True, padding_side="left" if self.writes else "right")
        return [padded(ids), padded([torch.ones_like(row) for row in ids])]


def cut(requests: Sequence[Any], products: Sequence[Product], n: int) -> list[Product]:
    """Products in about ``n`` shards: runs of requests, of which neighbours share their beginnings.

    Where a product has fewer requests than it is to have shards, its conditions are dealt out, too.
    """
    n_rows = max(1, sum(len(members) * len(group) for members, group in products))
    shards: list[Product] = []
    for members, group in products:
        wanted = max(1, round(n * len(members) * len(group) / n_rows))
        order = sorted(members, key=lambda r: requests[r].context)
        size = -(-len(order) // wanted)
        runs = [order[i : i + size] for i in range(0, len(order), size)]
        # every n-th condition: those that leave the clean row early and late are in each
        hands = min(len(group), -(-wanted // len(runs)))
        shards += [(run, list(group[i::hands])) for run in runs for i in range(hands)]
    return shards
