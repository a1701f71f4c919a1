"""Requests x conditions -> log-likelihoods and texts, in batches ruled by one token budget.

A row of a batch is (request, condition), so one forward pass serves many conditions. The engine knows nothing of
tasks: requests are token ids. Running out of memory halves the budget and goes on; nothing computed is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from depthlens import backends, budget, decoding, donors, offload, packing, wavefront
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.budget import out_of_memory
from depthlens.decoding import Writer
from depthlens.errors import UserError
from depthlens.plain import PlainRows
from depthlens.requests import Generate, Likelihood, Loglikelihood

# positions that are unembedded at once: 512 x 49k logits in float32 are 100 MB
UNEMBED_ROWS = 512
# how many prompts make a decoding step worth its weights
MIN_PROMPTS = 16
# conditions that walk together; more gain nothing, since the clean row they share is by then a small part
MAX_OPEN_ROWS = 128


Passed = Callable[[int], None]  # told how many more tokens have passed a layer


class Engine:
    """Runs requests under conditions on one model.

    Args:
        lens: A loaded model.
        backend: Name of the backend that applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length); None chooses by device and free memory.
        means: Reference means, needed by ``@mean`` conditions.
        progress: Show a tqdm bar with rows/s and time left.

    Raises:
        UserError: unknown backend, one that an offloaded model does not have, or a budget below 1.
    """

    def __init__(
        self,
        lens: Any,
        *,
        backend: str = "torch",
        batch_tokens: int | None = None,
        means: backends.Means | None = None,
        progress: bool = True,
    ) -> None:
        if batch_tokens is not None and (not isinstance(batch_tokens, int) or batch_tokens < 1):
            raise UserError(f"batch_tokens {batch_tokens!r}: give a whole number of tokens, at least 1")
        if lens.stream and backend in backends.BACKENDS and backend != "torch":
            raise UserError(f"backend {backend!r} needs the whole model in memory; use torch, or load without offload")
        self.lens = lens
        self.backend = backends.get(backend, lens, means)
        self.budget = budget.choose(lens, batch_tokens)
        self.batch_tokens = self.budget.batch_tokens
        self.progress = progress

    def loglikelihood(
        self, requests: Sequence[Loglikelihood], conditions: Sequence[Condition], desc: str = "loglikelihood"
    ) -> list[list[Likelihood]]:
        """Score every request under every condition.

        Returns:
            Answers, indexed [condition][request].
        """
        donors.require(self.lens, conditions, self.backend.name)
        answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        # the last token of a continuation is predicted, never read
        inputs = [(*q.context, *q.continuation)[:-1] for q in requests]
        with tqdm(total=len(requests) * len(conditions), desc=desc, unit="row", disable=not self.progress) as bar:
            if not self._walks(max(map(len, inputs), default=0)):
                return self._plain(lambda rows: rows.loglikelihood(requests, conditions, bar))

            def run(members: list[int], group: list[int], passed: Passed) -> None:
                self._score_pack(packing.build(inputs, members), requests, conditions, group, answers, passed)

            for group in self._groups(conditions):
                # every row of a pack lives through all layers: their states bound the size of a pack
                row_bytes = self.lens.dims.d_model * self.lens.dtype.itemsize
                room = max(1, self.budget.state_bytes // (len(group) * row_bytes))
                for packed in packing.pack(inputs, room):
                    work = self._layer_passes(conditions, group) * packed.n_tokens
                    self._giving_way(packed.sequences, group, run, bar, work)
        return answers

    def _plain(self, run: Callable[[PlainRows], Any]) -> Any:
        kind: Any = PlainRows
        if self.lens.remote:
            from depthlens.remote_rows import RemoteRows as kind  # slow to import
        rows = kind(self.lens, self.backend, self.batch_tokens)
        found = run(rows)
        self.batch_tokens = rows.batch_tokens
        return found

    def _walks(self, longest: int) -> bool:
        """Whether the fast path does what the model does: its attention must see all tokens before."""
        window = getattr(self.lens.model.config, "sliding_window", None)
        return self.backend.name == "torch" and (window is None or longest <= window)

    def _groups(self, conditions: Sequence[Condition]) -> list[list[int]]:
        """Conditions that walk together, sorted by where they fork off."""
        order = sorted(range(len(conditions)), key=lambda c: (conditions[c].first_layer or 0, str(conditions[c])))
        return [order[i : i + MAX_OPEN_ROWS] for i in range(0, len(order), MAX_OPEN_ROWS)]

    def _score_pack(
        self,
        packed: packing.Pack,
        requests: Sequence[Loglikelihood],
        conditions: Sequence[Condition],
        group: list[int],
        answers: list[list[Any]],
        passed: Passed,
    ) -> None:
        # sequences share asked positions as they share tokens: each is unembedded once
        asked: dict[int, int] = {}
        spans = []
        for r, path in zip(packed.sequences, packed.paths, strict=True):
            nodes = path[len(requests[r].context) - 1 :]
            spans.append([asked.setdefault(n, len(asked)) for n in nodes])
        walk = wavefront.Wavefront(self.lens, self.backend.means, self.batch_tokens)
        states = walk.run(packed, [conditions[c] for c in group], list(asked), passed=passed)
        targets = torch.tensor([t for r in packed.sequences for t in requests[r].continuation], device=self.lens.device)
        where = torch.tensor([i for span in spans for i in span], device=self.lens.device)
        # several conditions at once: a matrix product wants rows, but their logits must stay small
        step = max(1, UNEMBED_ROWS // len(asked))
        for i in range(0, len(group), step):
            with torch.no_grad():
                with donors.ends(self.lens, [conditions[c] for c in group[i : i + step]]):
                    logits = self.lens.arch.unembed(self.lens.arch.final_norm(states[i : i + step])).float()
            picked = logits[:, where, targets] - logits.logsumexp(-1)[:, where]  # [condition, target]
            greedy = logits.argmax(-1)[:, where] == targets
            for c, sums, hits in zip(group[i : i + step], picked.tolist(), greedy.tolist(), strict=True):
                at = 0
                for r, span in zip(packed.sequences, spans, strict=True):
                    end = at + len(span)
                    answers[c][r] = Likelihood(math.fsum(sums[at:end]), all(hits[at:end]))
                    at = end

    def _layer_passes(self, conditions: Sequence[Condition], group: list[int]) -> int:
        """How many rows pass a layer, over all layers of a walk: the clean one, and those that have forked."""
        n_layers = self.lens.dims.n_layers
        return n_layers + sum(n_layers - conditions[c].first_layer for c in group if conditions[c])

    def _giving_way(
        self,
        members: list[int],
        group: list[int],
        run: Callable[[list[int], list[int], Passed], None],
        bar: tqdm,
        work: int,
    ) -> None:
        """Run requests under conditions; when memory runs out halve the chunk and the pack, and go on.

        Args:
            members: Requests of the pack.
            group: Conditions.
            run: Does the work and tells how many tokens have passed a layer.
            bar: Moves as tokens pass layers, by rows (request, condition).
            work: How many tokens will pass a layer at the most.
        """
        start, n_rows, done = bar.n, len(members) * len(group), 0

        def passed(n: int) -> None:
            nonlocal done
            done += n
            bar.update(start + n_rows * min(done, work) // work - bar.n)

        try:
            run(members, group, passed)
        except (torch.OutOfMemoryError, RuntimeError) as e:
            can_shrink = len(members) > 1 or len(group) > 1 or self.batch_tokens > budget.MIN_BATCH_TOKENS
            if not (out_of_memory(e) and can_shrink):
                raise
        else:
            bar.update(start + n_rows - bar.n)
            return
        # out here the traceback no longer holds what ran out
        bar.update(start - bar.n)
        self.batch_tokens = max(budget.MIN_BATCH_TOKENS, self.batch_tokens // 2)
        halves = (
            [(half, group) for half in _halves(members)] if len(members) > 1 else [(members, h) for h in _halves(group)]
        )
        for fewer_members, fewer_conditions in halves:
            share = max(1, work * len(fewer_members) * len(fewer_conditions) // n_rows)
            self._giving_way(fewer_members, fewer_conditions, run, bar, share)

    def generate_until(
        self, requests: Sequence[Generate], conditions: Sequence[Condition], desc: str = "generate"
    ) -> list[list[str]]:
        """Write the greedy text of every request under every condition.

        Returns:
            Texts, indexed [condition][request].

        Raises:
            UserError: the model is offloaded.
        """
        donors.require(self.lens, conditions, self.backend.name)
        if self.lens.stream:
            raise UserError(offload.NO_GENERATION)
        texts: list[list[str]] = [[""] * len(requests) for _ in conditions]
        contexts = [q.context for q in requests]
        with tqdm(total=len(requests) * len(conditions), desc=desc, unit="row", disable=not self.progress) as bar:
            if not self._walks(max((len(q.context) + q.max_new_tokens for q in requests), default=0)):
                with donors.held(self.lens.donor, conditions):
                    return self._plain(lambda rows: rows.generate_until(requests, conditions, bar))
            # by fork, the baseline last: see decoding.Rows
            n_layers = self.lens.dims.n_layers
            order = sorted(
                range(len(conditions)),
                key=lambda c: n_layers if not conditions[c] else conditions[c].first_layer,
            )
            n_new = max((q.max_new_tokens for q in requests), default=0)
            size, room = self._decoding_room(contexts, len(order), n_new)
            size = self._held_size([conditions[c] for c in order], size)

            def run(members: list[int], group: list[int], passed: Passed) -> None:
                self._decode_pack(packing.build(contexts, members), requests, conditions, group, texts, passed)

            for i in range(0, len(order), size):
                group = order[i : i + size]
                with donors.held(self.lens.donor, [conditions[c] for c in group]):
                    for packed in packing.pack(contexts, room, extra=n_new):
                        written = len(group) * sum(requests[r].max_new_tokens for r in packed.sequences)
                        work = self._layer_passes(conditions, group) * packed.n_tokens + n_layers * written
                        self._giving_way(packed.sequences, group, run, bar, work)
        return texts

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
        shared = packing.common_prefix(lowest, highest)
        longest = max(map(len, contexts), default=0)
        enough = shared + min(len(contexts), MIN_PROMPTS) * (longest - shared + n_new)
        size = n_conditions
        while size > 1 and self.budget.key_bytes // (size * token_bytes) < enough:
            size = (size + 1) // 2
        return size, max(1, self.budget.key_bytes // (size * token_bytes))

    def _decode_pack(
        self,
        packed: packing.Pack,
        requests: Sequence[Generate],
        conditions: Sequence[Condition],
        group: list[int],
        texts: list[list[str]],
        passed: Passed,
    ) -> None:
        asked = [requests[r] for r in packed.sequences]
        writer = Writer(self.lens, asked)
        n_new = max(q.max_new_tokens for q in asked)
        wanted = [conditions[c] for c in group]
        decoding.decode(self.lens, self.backend, packed, wanted, self.batch_tokens, n_new, writer, passed)
        for c, condition in enumerate(group):
            for d, r in enumerate(packed.sequences):
                texts[condition][r] = writer.text((c, d))


def _halves(items: list[int]) -> list[list[int]]:
    middle = len(items) // 2
    return [half for half in (items[:middle], items[middle:]) if half]


def next_token(
    lens: Any, prompt: str, conditions: Sequence[str | Condition] = (), k: int = 8, backend: str = "torch"
) -> pd.DataFrame:
    """Probability of the next token after a prompt, under the baseline and other conditions.

    Args:
        lens: A loaded model.
        prompt: Text, encoded as the tokenizer does by default.
        conditions: Beside the baseline, which always comes first.
        k: How many of the likeliest tokens of each condition are kept (their union is shown for all).
        backend: What applies the conditions.

    Returns:
        One row a token, one column a condition (its text form), sorted by the baseline's probability.

    Raises:
        UserError: empty prompt, or a condition that the model does not have.
    """
    tokens = lens.tokenizer(prompt).input_ids
    if not tokens:
        raise UserError("the prompt is empty; give some text")
    wanted = expand(conditions, lens.dims) if conditions else [BASELINE]
    rows = torch.tensor([tokens] * len(wanted), device=lens.device)
    engine = Engine(lens, backend=backend, progress=False)
    logits, _ = engine.backend.forward(rows, torch.ones_like(rows), wanted, positions=[[len(tokens) - 1]] * len(wanted))
    probs = torch.cat(logits).float().softmax(-1)  # [condition, d_vocab]
    kept = probs.topk(k).indices.flatten().unique()
    frame = pd.DataFrame(
        probs[:, kept].T.cpu().numpy(),
        index=pd.Index([lens.tokenizer.decode([t]) for t in kept.tolist()], name="token"),
        columns=[str(c) for c in wanted],
    )
    return frame.sort_values("baseline", ascending=False)
