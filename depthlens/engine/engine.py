"""Requests x conditions -> log-likelihoods and texts, in batches ruled by one token budget.

A row of a batch is (request, condition), so one forward pass serves many conditions. The engine knows nothing of
tasks: requests are token ids. Where memory runs out, the budget is halved and the work continues; no answer is lost.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable
from weakref import WeakSet

from depthlens import arguments, backends, progress
from depthlens.ablations import Condition
from depthlens.backends.protocol import Means
from depthlens.backends.torch import TorchBackend
from depthlens.engine import memory_budget, plain_rows, prefix_tree, walk_check
from depthlens.engine.packed_trees import PackedTrees
from depthlens.engine.padded_rows import PaddedRows
from depthlens.engine.shards import PER_WORKER, Job, Workers, cut
from depthlens.engine.wavefront import n_passed
from depthlens.engine.work import Work, text_lengths
from depthlens.engine.work_rate import WorkRate
from depthlens.engine.writer import require_plain
from depthlens.errors import UserError, unknown
from depthlens.models import pairs
from depthlens.models.lens import NO_GENERATION, Lens, exclusive
from depthlens.models.rounded_weights import modules_of
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache
from depthlens.store.answer_rows import AnswerRows

log = logging.getLogger(__name__)

PATHS = ("wavefront", "padded_rows")
_told: WeakSet[Lens] = WeakSet()  # models of which a line has said that they are not walked


@runtime_checkable
class EnginePath(Protocol):
    """Computes the answers that are missing in some rows, and stores them as they come.

    Attributes:
        batch_tokens: Token budget of one batch; falls where memory runs out.
        work: Counts what is computed.
    """

    batch_tokens: int
    work: Work

    def loglikelihood(self, rows: AnswerRows, bar: progress.Bar) -> None:
        """Score every request of some rows under every condition."""
        ...

    def generate_until(self, rows: AnswerRows, bar: progress.Bar) -> None:
        """Write the text of every request of some rows under every condition."""
        ...


class Engine:
    """Runs requests under conditions on one model.

    Args:
        lens: A loaded model.
        backend: Name of the backend that applies the conditions.
        path: ``wavefront`` (all conditions walk the layers together; torch only) or ``padded_rows`` (a whole forward
            pass for each row); None: the wavefront wherever it computes what the model computes.
        batch_tokens: Token budget of one batch (rows x padded length); None chooses by device and free memory.
        means: Reference means, needed by ``@mean`` conditions.
        progress: Show a bar with rows/s and time left.
        cache: Where answers are read and stored, pack by pack; None stores nothing.
        workers: Processes that compute the answers, each with the model that ``lens`` has (`depthlens.engine.shards`);
            None: this process does.

    Raises:
        UserError: unknown backend or path, one that the model or backend does not have, or a budget below 1.
    """

    def __init__(
        self,
        lens: Lens,
        *,
        backend: str = "torch",
        path: str | None = None,
        batch_tokens: int | None = None,
        means: Means | None = None,
        progress: bool = True,
        cache: AnswerCache | None = None,
        workers: Workers | None = None,
    ) -> None:
        arguments.loaded(lens)
        batch_tokens = arguments.check(batch_tokens=batch_tokens)["batch_tokens"]
        if path is not None and path not in PATHS:
            raise unknown("path", path, PATHS)
        if lens.stream and backend in backends.BACKENDS and backend != "torch":
            raise UserError(f"backend {backend!r} needs the whole model in memory; use torch, or load without offload")
        if workers is not None and lens.remote:
            raise UserError(f"model {lens.name!r} runs on a server; leave workers out")
        self.lens = lens
        modules_of(lens).clear()  # of another engine, which ran before weights may have been edited
        self.backend = backends.get(backend, lens, means)
        if path is not None and (lens.remote or (path == "wavefront" and not isinstance(self.backend, TorchBackend))):
            where = "a remote model" if lens.remote else f"backend {self.backend.name!r}"
            raise UserError(f"path {path!r}: {where} does not have it; leave path out")
        self.path = path
        self.asked_batch_tokens = batch_tokens
        self.workers = workers
        self.budget = memory_budget.choose(lens, batch_tokens)
        self.progress = progress
        self.cache = cache or AnswerCache()
        self.work = Work()

    @property
    def batch_tokens(self) -> int:
        """Token budget of one batch, as it is by now: it falls where memory runs out."""
        return self.budget.batch_tokens

    def like(self) -> Engine:
        """Another engine of the same model, backend, path and budget, without a store and a bar."""
        options: dict[str, Any] = {"path": self.path, "batch_tokens": self.batch_tokens, "means": self.backend.means}
        return Engine(self.lens, backend=self.backend.name, progress=False, **options)

    def loglikelihood(
        self, requests: Sequence[LoglikelihoodRequest], conditions: Sequence[Condition], desc: str = "loglikelihood"
    ) -> list[list[LoglikelihoodAnswer]]:
        """Score every request under every condition.

        Returns:
            Answers, indexed [condition][request].

        Raises:
            UserError: a condition needs a donor and there is none, an answer is not finite, or texts are so long that
                the model's rotary angles depend on the longest of a batch.
            Interrupted: Ctrl-C; the message says what is stored.
        """
        with self._working(requests, conditions, desc) as (rows, bar):
            longest = max((len(q.inputs) for q in requests), default=0)
            plain_rows.refuse_scaled_angles(self.lens, longest)
            needed = self._expect(rows, bar, None)
            if self.workers is not None:
                self._sharded(self.workers, rows, bar, longest, needed)
            elif rows.unfinished:
                path = self._path(longest)
                path.loglikelihood(rows, bar)
                self.budget = replace(self.budget, batch_tokens=path.batch_tokens)
        return rows.answers

    def generate_until(
        self, requests: Sequence[GenerateRequest], conditions: Sequence[Condition], desc: str = "generate"
    ) -> list[list[str]]:
        """Write the greedy text of every request under every condition.

        Returns:
            Texts, indexed [condition][request].

        Raises:
            UserError: the model is offloaded or asks for texts that are not written token by token, or see
                `loglikelihood`.
            Interrupted: Ctrl-C; the message says what is stored.
        """
        self.check_writing()
        with self._working(requests, conditions, desc) as (rows, bar):
            longest = max((len(q.context) + q.max_new_tokens for q in requests), default=0)
            plain_rows.refuse_scaled_angles(self.lens, longest)
            needed = self._expect(rows, bar, text_lengths(self.lens, requests))
            if self.workers is not None:
                self._sharded(self.workers, rows, bar, longest, needed, writes=conditions)
            elif rows.unfinished:
                path = self._path(longest, writes=conditions)
                path.generate_until(rows, bar)
                self.budget = replace(self.budget, batch_tokens=path.batch_tokens)
        return rows.answers

    def check_writing(self) -> None:
        """Refuse a model that writes no texts here.

        Raises:
            UserError: see `generate_until`.
        """
        if self.lens.stream:
            raise UserError(NO_GENERATION)
        require_plain(self.lens)

    def expected(self, rows: AnswerRows, lengths: Sequence[int] | None) -> int:
        """About how many tokens pass a layer for the answers that are missing, each layer counted.

        Args:
            rows: Requests under conditions.
            lengths: Of each text that is to be written, in tokens; None for log-likelihoods.
        """
        n_layers, total = self.lens.dims.n_layers, 0
        written = [0] * len(rows.requests) if lengths is None else lengths
        for members, group in rows.missing():
            read = [q.inputs if lengths is None else q.context for q in (rows.requests[r] for r in members)]
            conditions = [rows.conditions[c] for c in group]
            longest = max(len(tokens) + written[r] for tokens, r in zip(read, members, strict=True))
            if self.path_for(longest, conditions if lengths else ()) == "wavefront" and not self.lens.remote:
                forked = sum(n_passed(condition, n_layers) for condition in conditions)
                total += prefix_tree.n_distinct(read) * (n_layers + forked)
            else:
                total += n_layers * len(group) * sum(map(len, read))
            total += n_layers * len(group) * sum(max(0, written[r] - 1) for r in members)
        return total

    def _expect(self, rows: AnswerRows, bar: progress.Bar, lengths: Sequence[int] | None) -> int:
        """Let a bar that is shown tell the time left from `expected`, which is returned."""
        if not rows.unfinished or (bar.disable and self.workers is None):
            return 0
        needed, n_layers = self.expected(rows, lengths), self.lens.dims.n_layers

        def done() -> int:
            """What a text that has ended was expected to need is done, however short it is."""
            return self.work.layer_tokens + n_layers * self.work.spared

        before = done()
        bar.expects(needed, lambda: done() - before)
        return needed

    def _sharded(
        self,
        workers: Workers,
        rows: AnswerRows,
        bar: progress.Bar,
        longest: int,
        needed: int,
        writes: Sequence[Condition] | None = None,
    ) -> None:
        """Have workers compute what rows lack; they take the path that all requests together take."""
        means = self.backend.means and self.backend.means.to("cpu")
        path = self.path_for(longest, writes or ())
        job = Job(writes is not None, self.backend.name, path, self.asked_batch_tokens, means)
        n = max(PER_WORKER * workers.n, math.ceil(needed / WorkRate(self.lens).work))
        products = cut(rows.requests, rows.missing(), n)
        asked = [([rows.requests[r] for r in m], [rows.conditions[c] for c in g]) for m, g in products]
        with closing(workers.compute(self.lens, job, asked)) if asked else nullcontext(()) as done:
            for number, answers, work in done:
                members, group = products[number]
                for c, of_condition in zip(group, answers, strict=True):
                    for r, answer in zip(members, of_condition, strict=True):
                        rows.answers[c][r] = answer
                rows.put(members, group)
                self.work.add(work)
                bar.update(len(members) * len(group))

    def path_for(self, longest: int, writes: Sequence[Condition] = ()) -> str:
        """Name of the path that requests take the longest of which has so many tokens.

        The wavefront computes what the model computes only where attention sees all tokens before. Where texts are
        written under these conditions, a layer that runs twice needs keys and values of both runs, which it lacks.

        Raises:
            UserError: the wavefront was asked for, and the model's attention window is shorter, or a layer of a text
                runs twice.
        """
        twice = next((c for c in writes if c.uses("twice")), None)
        if twice and self.path == "wavefront":
            raise UserError(f"path 'wavefront' writes no text under {twice}; leave path out")
        not_walked = self._walked.fault
        window = plain_rows.window_of(self.lens)
        fits = window is None or longest <= window
        if self.path == "wavefront" and not fits:
            raise UserError(f"path 'wavefront': {longest} tokens, and the attention window is {window}; leave path out")
        if self.path == "padded_rows" or not fits or twice or not isinstance(self.backend, TorchBackend):
            return "padded_rows"
        if self.path == "wavefront" and not_walked:
            raise UserError(f"path 'wavefront': {not_walked}; leave path out")
        return "padded_rows" if not_walked else "wavefront"

    @cached_property
    def _walked(self) -> walk_check.Found:
        """Whether the wavefront computes what the model does."""
        found = walk_check.found(self.lens)
        if found.fault and isinstance(self.backend, TorchBackend) and self.lens not in _told:
            _told.add(self.lens)
            log.warning("model %s: %s; each row takes a whole pass, which is slower", self.lens.name, found.fault)
        return found

    def _path(self, longest: int, writes: Sequence[Condition] = ()) -> EnginePath:
        if self.lens.remote:
            from depthlens.backends.remote import RemoteNnsight  # slow to import
            from depthlens.engine.remote_rows import RemoteRows

            assert isinstance(self.backend, RemoteNnsight)
            return RemoteRows(self.lens, self.backend, self.batch_tokens, self.work)
        if self.path_for(longest, writes) == "wavefront" and isinstance(self.backend, TorchBackend):
            return PackedTrees(self.lens, self.backend, self.budget, self.work, self._walked)
        return PaddedRows(self.lens, self.backend, self.batch_tokens, self.work)

    @contextmanager
    def _working(
        self,
        requests: Sequence[LoglikelihoodRequest] | Sequence[GenerateRequest],
        conditions: Sequence[Condition],
        desc: str,
    ) -> Iterator[tuple[AnswerRows, progress.Bar]]:
        """Answers with what is known already, and a bar; Ctrl-C ends in one line."""
        pairs.require(self.lens, conditions, self.backend.name)
        rows = self.cache.rows(requests, conditions)
        if rows.unfinished:
            walk_check.require_parts(self.lens, self._walked, conditions)
        total = len(requests) * len(conditions)
        # the bar starts at what is known, so that its pace is that of the rest
        options = {"total": total, "initial": rows.n_known, "desc": desc, "unit": "row", "disable": not self.progress}
        with exclusive(self.lens), progress.bar(**options) as bar, rows.shown_on(bar):
            yield rows, bar
