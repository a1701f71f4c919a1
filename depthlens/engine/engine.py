"""Requests x conditions -> log-likelihoods and texts, in batches ruled by one token budget.

A row of a batch is (request, condition), so one forward pass serves many conditions. The engine knows nothing of
tasks: requests are token ids. Running out of memory halves the budget and goes on; nothing computed is lost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from tqdm import tqdm

from depthlens import backends, progress
from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.protocol import Means
from depthlens.engine import decoding, memory_budget, nonfinite, prefix_tree
from depthlens.engine.decoding import Writer
from depthlens.engine.nonfinite import NotFinite
from depthlens.engine.pack_runs import PackRuns, Passed
from depthlens.engine.padded_rows import PaddedRows
from depthlens.engine.wavefront import CleanRow, Wavefront
from depthlens.engine.work_rate import WorkRate
from depthlens.errors import Interrupted, UserError
from depthlens.models import offload, pairs
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store import answer_cache
from depthlens.store.answer_cache import AnswerCache
from depthlens.store.answer_rows import AnswerRows

# positions that are unembedded at once: 512 x 49k logits in float32 are 100 MB
UNEMBED_ROWS = 512
# how many prompts make a decoding step worth its weights
MIN_PROMPTS = 16
# conditions that walk together; more gain nothing, since the clean row they share is by then a small part
MAX_OPEN_ROWS = 128
# rows (condition, prompt) that make a decoding step worth its weights
MIN_DECODED_ROWS = 64


class Engine:
    """Runs requests under conditions on one model.

    Args:
        lens: A loaded model.
        backend: Name of the backend that applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length); None chooses by device and free memory.
        means: Reference means, needed by ``@mean`` conditions.
        progress: Show a bar with rows/s and time left.
        kept: Where answers are found and kept, pack by pack; None keeps nothing.

    Raises:
        UserError: unknown backend, one that an offloaded model does not have, or a budget below 1.
    """

    def __init__(
        self,
        lens: Any,
        *,
        backend: str = "torch",
        batch_tokens: int | None = None,
        means: Means | None = None,
        progress: bool = True,
        kept: AnswerCache | None = None,
    ) -> None:
        if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
            raise UserError(f"batch_tokens {batch_tokens!r}: give a whole number of tokens, at least 1")
        if lens.stream and backend in backends.BACKENDS and backend != "torch":
            raise UserError(f"backend {backend!r} needs the whole model in memory; use torch, or load without offload")
        self.lens = lens
        self.backend = backends.get(backend, lens, means)
        self.budget = memory_budget.choose(lens, batch_tokens)
        self.batch_tokens = self.budget.batch_tokens
        self.progress = progress
        self.kept = kept or AnswerCache()

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], desc: str = "loglikelihood"
    ) -> list[list[LoglikelihoodAnswer]]:
        """Score every request under every condition.

        Returns:
            Answers, indexed [condition][request].
        """
        pairs.require(self.lens, conditions, self.backend.name)
        # the last token of a continuation is predicted, never read
        inputs = [(*q.context, *q.continuation)[:-1] for q in requests]
        rows = self.kept.rows(requests, conditions)
        with self._bar(rows, desc) as bar, self._watched(inputs, conditions, rows):
            if not self._walks(max(map(len, inputs), default=0)):
                return self._plain("loglikelihood", requests, conditions, [len(t) for t in inputs], rows, bar)

            def run(packed: prefix_tree.Pack, group: list[int], clean: CleanRow, passed: Passed) -> None:
                self._score_pack(packed, requests, conditions, group, rows.answers, passed, clean, packs.batch_tokens)

            packs = PackRuns(self.lens, inputs, conditions, rows, run, bar, self.batch_tokens)
            for group in self._groups(conditions, rows.unfinished):
                # every row of a pack lives through all layers: their states bound the size of a pack
                row_bytes = self.lens.dims.d_model * self.lens.dtype.itemsize
                packs.walk(group, max(1, self.budget.state_bytes // (len(group) * row_bytes)))
            rows.finish(packs.do, bar.update)
            self.batch_tokens = packs.batch_tokens
        return rows.answers

    def _bar(self, rows: AnswerRows, desc: str) -> tqdm:
        """A bar over rows (request, condition) that starts at what is known, so that its pace is that of the rest."""
        total = sum(map(len, rows.answers))
        bar = progress.bar(total=total, initial=rows.n_known, desc=desc, unit="row", disable=not self.progress)
        rows.watched(bar)
        return bar

    @contextmanager
    def _watched(
        self, tokens: Sequence[Sequence[int]], conditions: Sequence[Condition], rows: AnswerRows
    ) -> Iterator[None]:
        """Within the context what ends the work is told: an answer that is not finite, and Ctrl-C."""
        try:
            yield
        except NotFinite as e:
            c, r = e.row
            read = (*tokens[r], *e.written)
            nonfinite.refuse(self.lens, self.backend.means, read, conditions[c], self.batch_tokens)
        except KeyboardInterrupt:
            raise Interrupted(rows.kept_so_far()) from None

    def _plain(
        self,
        kind: str,
        requests: Sequence[Any],
        conditions: Sequence[Condition],
        lengths: Sequence[int],
        rows: AnswerRows,
        bar: tqdm,
    ) -> list[list[Any]]:
        """Answers row by row by the method ``kind``, long requests first, kept as a pack's are."""
        maker: Any = PaddedRows
        if self.lens.remote:
            from depthlens.engine.remote_rows import RemoteRows as maker  # slow to import
        plain = maker(self.lens, self.backend, self.batch_tokens)
        limit, n_layers = WorkRate(self.lens), self.lens.dims.n_layers

        def do(members: list[int], group: list[int]) -> None:
            asked = [requests[r] for r in members]
            try:
                with limit.measured(n_layers * len(group) * sum(lengths[r] for r in members)):
                    found = getattr(plain, kind)(asked, [conditions[c] for c in group], bar)
            except NotFinite as e:
                raise NotFinite((group[e.row[0]], members[e.row[1]]), e.written) from e
            for c, given in zip(group, found, strict=True):
                for r, answer in zip(members, given, strict=True):
                    rows.answers[c][r] = answer
            rows.put(members, group)

        order = sorted(range(len(requests)), key=lambda r: -lengths[r])
        while order:
            n_rows = max(1, int(max(limit.work / n_layers, plain.batch_tokens) / max(1, lengths[order[0]])))
            size, n = min(n_rows, len(conditions)), max(1, n_rows // len(conditions))
            for i in range(0, len(conditions), size):
                rows.run(order[:n], range(len(conditions))[i : i + size], do, bar.update)
            order = order[n:]
        rows.finish(do, bar.update)
        self.batch_tokens = plain.batch_tokens
        return rows.answers

    def _walks(self, longest: int) -> bool:
        """Whether the fast path does what the model does: its attention must see all tokens before."""
        window = getattr(self.lens.model.config, "sliding_window", None)
        return self.backend.name == "torch" and (window is None or longest <= window)

    def _groups(self, conditions: Sequence[Condition], some: Sequence[int]) -> list[list[int]]:
        """Some of the conditions in groups that walk together, sorted by where they fork off."""
        order = sorted(some, key=lambda c: (conditions[c].first_layer or 0, str(conditions[c])))
        return [order[i : i + MAX_OPEN_ROWS] for i in range(0, len(order), MAX_OPEN_ROWS)]

    def _score_pack(
        self,
        packed: prefix_tree.Pack,
        requests: Sequence[LoglikelihoodRequest],
        conditions: Sequence[Condition],
        group: list[int],
        answers: list[list[Any]],
        passed: Passed,
        clean: CleanRow,
        batch_tokens: int,
    ) -> None:
        # sequences share asked positions as they share tokens: each is unembedded once
        asked: dict[int, int] = {}
        spans = []
        for r, path in zip(packed.sequences, packed.paths, strict=True):
            nodes = path[len(requests[r].context) - 1 :]
            spans.append([asked.setdefault(n, len(asked)) for n in nodes])
        walk = Wavefront(self.lens, self.backend.means, batch_tokens)
        states = walk.run(packed, [conditions[c] for c in group], list(asked), passed=passed, clean=clean)
        targets = torch.tensor([t for r in packed.sequences for t in requests[r].continuation], device=self.lens.device)
        where = torch.tensor([i for span in spans for i in span], device=self.lens.device)
        # several conditions at once: a matrix product wants rows, but their logits must stay small
        step = max(1, UNEMBED_ROWS // len(asked))
        for i in range(0, len(group), step):
            with torch.no_grad():
                with weight_swap.ends(self.lens, [conditions[c] for c in group[i : i + step]]):
                    logits = self.lens.arch.unembed(self.lens.arch.final_norm(states[i : i + step])).float()
            picked = logits[:, where, targets] - logits.logsumexp(-1)[:, where]  # [condition, target]
            greedy = logits.argmax(-1)[:, where] == targets
            for c, sums, hits in zip(group[i : i + step], picked.tolist(), greedy.tolist(), strict=True):
                at = 0
                for r, span in zip(packed.sequences, spans, strict=True):
                    end = at + len(span)
                    total = sum(sums[at:end])
                    if not math.isfinite(total):
                        raise NotFinite((c, r))
                    answers[c][r] = LoglikelihoodAnswer(math.fsum(sums[at:end]), all(hits[at:end]))
                    at = end

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], desc: str = "generate"
    ) -> list[list[str]]:
        """Write the greedy text of every request under every condition.

        Returns:
            Texts, indexed [condition][request].

        Raises:
            UserError: the model is offloaded.
        """
        pairs.require(self.lens, conditions, self.backend.name)
        if self.lens.stream:
            raise UserError(offload.NO_GENERATION)
        contexts = [q.context for q in requests]
        rows = self.kept.rows(requests, conditions)
        with self._bar(rows, desc) as bar, self._watched(contexts, conditions, rows):
            lengths = [len(q.context) + q.max_new_tokens for q in requests]
            if not self._walks(max(lengths, default=0)):
                with pairs.held(self.lens.donor, conditions):
                    return self._plain("generate_until", requests, conditions, lengths, rows, bar)
            # by fork, the baseline last: see decoding.AnswerRows
            n_layers = self.lens.dims.n_layers
            order = sorted(
                rows.unfinished,
                key=lambda c: n_layers if not conditions[c] else conditions[c].first_layer,
            )
            written = [q.max_new_tokens for q in requests]
            size, room = self._decoding_room(contexts, max(1, len(order)), max(written, default=0))
            size = self._held_size([conditions[c] for c in order], size)

            def run(packed: prefix_tree.Pack, group: list[int], clean: CleanRow, passed: Passed) -> None:
                self._decode_pack(packed, requests, conditions, group, rows, passed, clean, packs.batch_tokens)

            packs = PackRuns(
                self.lens,
                contexts,
                conditions,
                rows,
                run,
                bar,
                self.batch_tokens,
                written=written,
                least_rows=MIN_DECODED_ROWS,
            )
            for i in range(0, len(order), size):
                group = order[i : i + size]
                with pairs.held(self.lens.donor, [conditions[c] for c in group]):
                    packs.walk(group, room)
            with pairs.held(self.lens.donor, conditions if rows.deferred else []):
                rows.finish(packs.do, bar.update)
            self.batch_tokens = packs.batch_tokens
        return rows.answers

    def _held_size(self, ordered: Sequence[Condition], size: int) -> int:
        """How many conditions in a row are decoded together, so that what they take from a donor fits with the keys.

        One condition's layers are held in any case: text is written with all of them.
        """
        if not self.lens.donor:
            return size
        least = max((self.lens.donor.held_bytes([c]) for c in ordered), default=0)

        def most(n: int) -> int:
            return max(self.lens.donor.held_bytes(ordered[i : i + n]) for i in range(0, len(ordered), n))

        while size > 1 and most(size) > max(least, self.budget.key_bytes):
            size = (size + 1) // 2
        return size

    def _decoding_room(self, contexts: Sequence[tuple[int, ...]], n_conditions: int, n_new: int) -> tuple[int, int]:
        """How many conditions are decoded together, and how many tokens each may hold keys and values for."""
        dims = self.lens.dims
        token_bytes = 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * self.lens.dtype.itemsize
        lowest, highest = min(contexts, default=()), max(contexts, default=())
        shared = prefix_tree.common_prefix(lowest, highest)
        longest = max(map(len, contexts), default=0)
        enough = shared + min(len(contexts), MIN_PROMPTS) * (longest - shared + n_new)
        size = n_conditions
        while size > 1 and self.budget.key_bytes // (size * token_bytes) < enough:
            size = (size + 1) // 2
        return size, max(1, self.budget.key_bytes // (size * token_bytes))

    def _decode_pack(
        self,
        packed: prefix_tree.Pack,
        requests: Sequence[GenerateRequest],
        conditions: Sequence[Condition],
        group: list[int],
        rows: AnswerRows,
        passed: Passed,
        clean: CleanRow,
        batch_tokens: int,
    ) -> None:
        asked = [requests[r] for r in packed.sequences]
        writer = Writer(self.lens, asked)
        n_new = max(q.max_new_tokens for q in asked)
        wanted = [conditions[c] for c in group]
        last, waiting = time.monotonic(), []

        def finished(done: list[tuple[int, int]]) -> None:
            nonlocal last, waiting
            for c, d in done:
                at = group[c], packed.sequences[d]
                rows.answers[at[0]][at[1]] = writer.text((c, d))
                waiting.append(at)
            if (
                time.monotonic() - last > answer_cache.KEEP_SECONDS
            ):  # long texts: those that have ended are kept meanwhile
                rows.keep(waiting)
                last, waiting = time.monotonic(), []

        try:
            decoding.decode(
                self.lens, self.backend, packed, wanted, batch_tokens, n_new, writer, passed, clean, finished
            )
        except NotFinite as e:
            raise NotFinite((group[e.row[0]], packed.sequences[e.row[1]]), e.written) from e
