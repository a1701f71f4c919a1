"""Requests x conditions -> log-likelihoods and texts, in batches ruled by one token budget.

A row of a batch is (request, condition), so one forward pass serves many conditions. The engine knows nothing of
tasks: requests are token ids. Where memory runs out, the budget is halved and the work continues; no answer is lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import closing
from typing import Any

from depthlens import arguments, backends, progress
from depthlens.ablations import Condition, modes, routes
from depthlens.backends import row_edits
from depthlens.backends.torch import TorchBackend
from depthlens.engine import prefix_tree, walk_check, work
from depthlens.engine.batches import PackedTrees, RowBatches, cut
from depthlens.engine.wavefront import CLEAN, ways_of
from depthlens.engine.work import Work, WorkRate, text_lengths
from depthlens.engine.writer import require_plain
from depthlens.errors import UserError, unknown
from depthlens.models import in_force, pairs
from depthlens.models.lens import ALONE, NO_GENERATION, Lens
from depthlens.requests import GenerateRequest, LoglikelihoodAnswer, LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerCache, AnswerRows

PATHS = ("wavefront", "padded_rows")
# shards that each worker gets at least: the fewer there are, the longer wait those who end first
PER_WORKER = 6


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
        workers: Processes that compute the answers, each with the model that ``lens`` has (`depthlens.cluster.pool`);
            None: this process does.

    Raises:
        UserError: unknown backend or path, a backend that the model does not have, or a budget below 1.

    Example:
        >>> from depthlens import requests
        >>> request = requests.LoglikelihoodRequest((1, 2, 3), (4,))  # token ids of a prompt, and of its answer
        >>> ((answer,),) = dl.Engine(lens, progress=False).loglikelihood([request], [dl.parse_condition("L2")])
        >>> answer.logprob < 0
        True
    """

    def __init__(
        self,
        lens: Lens,
        *,
        backend: str = "torch",
        path: str | None = None,
        batch_tokens: int | None = None,
        means: row_edits.Means | None = None,
        progress: bool = True,
        cache: AnswerCache | None = None,
        workers: Any = None,
    ) -> None:
        arguments.loaded(lens)
        batch_tokens = arguments.check(batch_tokens=batch_tokens)["batch_tokens"]
        if path is not None and path not in PATHS:
            raise unknown("path", path, PATHS)
        if workers is not None and lens.remote:
            raise UserError(f"model {lens.name!r} runs on a server; leave workers out")
        self.lens = lens
        self.backend = backends.get(backend, lens, means)
        self.path = path
        # of the engines of workers and of `like`; each chooses its budget, where none was given, by its own memory
        self._options: dict[str, Any] = {"backend": backend, "path": path, "batch_tokens": batch_tokens, "means": means}
        self.workers = workers
        self.budget = work.choose(lens, batch_tokens)
        self.progress = progress
        self.cache = cache or AnswerCache()
        self.work = Work()

    def like(self) -> Engine:
        """Another engine of the same model and options, without a store, workers and a bar."""
        return Engine(self.lens, progress=False, **self._options)

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
        return self._answers(requests, conditions, desc, writes=False)

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
        return self._answers(requests, conditions, desc, writes=True)

    def _answers(
        self, requests: Sequence[Any], conditions: Sequence[Condition], desc: str, *, writes: bool
    ) -> list[list[Any]]:
        """What is known already, and the rest computed."""
        self.lens.bind()  # a module may have been replaced since the engine was made
        pairs.require(self.lens, conditions, self.backend.name)
        longest = max((len(q.context) + q.max_new_tokens if writes else len(q.inputs) for q in requests), default=0)
        rows = self.cache.rows(requests, conditions)
        walked = self.walked() if rows.unfinished else walk_check.Found()
        walk_check.require_parts(self.lens, walked, conditions)
        own = next((c for c in conditions if modes.keys(c.modes)), None)
        if self.workers is not None and (walked.foreign or in_force.entered(self.lens.model) or own):
            fault = walked.foreign or (f"runs under {own} here" if own else "is ablated here")
            raise UserError(f"model {self.lens.name!r} {fault}, which workers do not know; leave workers out")
        total = len(requests) * len(conditions)
        # the bar starts at what is known, so that its pace is that of the rest
        options = {"total": total, "initial": rows.n_known, "desc": desc, "unit": "row", "disable": not self.progress}
        with ALONE, progress.Bar(**options) as bar, rows.kept_at_the_end():
            walk_check.refuse_scaled_angles(self.lens, longest)
            if not rows.unfinished:
                return rows.answers
            if writes and self.path_for(longest) == "padded_rows":
                entered = (one.condition for one in in_force.entered(self.lens.model))
                if twice := next((c for c in (*conditions, *entered) if c.uses("repeat")), None):
                    fault = f"condition {twice} passes layers again, and writes no texts where layers are not walked"
                    raise UserError(f"{fault}; score answers instead")
            row_edits.require([conditions[c] for c in rows.unfinished], self.lens, self.backend.means)
            if self.workers is not None:
                needed = self.expected(rows, text_lengths(self.lens, requests) if writes else None)
                self._sharded(rows, bar, self.path_for(longest), needed, writes=writes)
            else:
                about = self.lens, self.backend, self.budget, self.work, rows, bar, writes
                (PackedTrees if self.path_for(longest) == "wavefront" else RowBatches)(*about).run()
        return rows.answers

    def check_writing(self) -> None:
        """Refuse a model of which no texts are written here.

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
        ways, total = ways_of(self.lens, rows.conditions), 0
        forks = routes.forks(ways)
        written = [0] * len(rows.requests) if lengths is None else lengths
        for members, group in rows.missing():
            read = [q.inputs if lengths is None else q.context for q in (rows.requests[r] for r in members)]
            longest = max(len(tokens) + written[r] for tokens, r in zip(read, members, strict=True))
            if self.path_for(longest) == "wavefront":
                forked = sum(ways[c].passed(forks[c].step) for c in group)
                total += prefix_tree.n_distinct(read) * (ways[CLEAN].passed() + forked)
            else:
                total += self.lens.dims.n_layers * len(group) * sum(map(len, read))
            passed = sum(ways[c].passed() for c in group)
            total += passed * sum(max(0, written[r] - 1) for r in members)
        return total

    def _sharded(self, rows: AnswerRows, bar: progress.Bar, path: str, needed: int, *, writes: bool) -> None:
        """Have workers compute what rows lack; they take the path that all requests together take."""
        job = self._options | {"path": path, "means": self.backend.means and self.backend.means.to("cpu")}
        method = "generate_until" if writes else "loglikelihood"
        n = max(PER_WORKER * self.workers.n, math.ceil(needed / WorkRate(self.lens).work))
        products = cut(rows.requests, rows.missing(), n)
        asked = [([rows.requests[r] for r in m], [rows.conditions[c] for c in g]) for m, g in products]
        with closing(self.workers.compute(self.lens, method, job, asked)) as done:
            for number, answers, work in done:
                members, group = products[number]
                for c, of_condition in zip(group, answers, strict=True):
                    for r, answer in zip(members, of_condition, strict=True):
                        rows.answers[c][r] = answer
                rows.keep((c, r) for c in group for r in members)
                self.work.add(work)
                bar.update(len(members) * len(group))

    def path_for(self, longest: int) -> str:
        """Name of the path that requests take the longest of which has so many tokens.

        The wavefront computes what the model computes only where attention sees all tokens before.

        Raises:
            UserError: the wavefront was asked for by name, and does not.
        """
        window = walk_check.window_of(self.lens)
        fits = window is None or longest <= window
        if self.path == "padded_rows" or not isinstance(self.backend, TorchBackend):
            return "padded_rows"
        fault = self.walked().fault if fits else f"{longest} tokens are more than its attention sees, {window}"
        if fault and self.path:
            raise UserError(f"path 'wavefront' of model {self.lens.name!r}: {fault}; leave path out")
        return "padded_rows" if fault else "wavefront"

    def walked(self) -> walk_check.Found:
        """Whether the wavefront computes what the model does."""
        return walk_check.found(self.lens)
