"""The fast path of the engine: requests packed into prefix trees, all conditions on one walk over the layers.

See `depthlens.engine.wavefront` for the walk, `depthlens.engine.decoding` for texts and `depthlens.engine.pack_runs`
for what happens where time or memory is short.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from depthlens.ablations import Condition
from depthlens.backends import weight_swap
from depthlens.backends.torch import TorchBackend
from depthlens.engine import prefix_tree
from depthlens.engine.decoding import Decoding
from depthlens.engine.memory_budget import Budget
from depthlens.engine.pack_runs import PackRuns, Passed
from depthlens.engine.tree_attention import walking
from depthlens.engine.walk_check import Found
from depthlens.engine.wavefront import CleanRow, Wavefront, fork_layer
from depthlens.engine.work import Work, text_lengths
from depthlens.engine.writer import Row, Writer
from depthlens.models.architectures import wide, wide_type
from depthlens.models.lens import Lens
from depthlens.models.placement import moved, place_of
from depthlens.models.quantised import other_weights_bytes, other_weights_resident
from depthlens.progress import Bar
from depthlens.requests import LoglikelihoodAnswer
from depthlens.store.answer_cache import AnswerRows

# prompts that are decoded in one pack, even if few conditions fit into memory then: a pack's last rows, which write for
# longest, have few others beside them
MIN_PROMPTS = 64
# conditions that walk together; more gain nothing, since the clean row they share is by then a small part
MAX_OPEN_ROWS = 128


class PackedTrees:
    """Requests under conditions on the fast path; see `depthlens.engine.engine.EnginePath`.

    Args:
        lens: A loaded model.
        backend: Hooks and reference means.
        budget: Bounds on one batch.
        work: Counts what is computed.
        tried: How the model is walked.
    """

    def __init__(self, lens: Lens, backend: TorchBackend, budget: Budget, work: Work, tried: Found) -> None:
        self.lens = lens
        self.tried = tried
        self.backend = backend
        self.budget = budget
        self.batch_tokens = budget.batch_tokens
        self.work = work

    def loglikelihood(self, rows: AnswerRows, bar: Bar) -> None:
        """Score every request under every condition."""
        run, conditions = partial(self._score, rows), rows.conditions
        tokens = [q.inputs for q in rows.requests]
        packs = PackRuns(self.lens, tokens, rows, run, bar, self.batch_tokens, self.work)
        order = sorted(rows.unfinished, key=lambda c: (conditions[c].first_layer or 0, str(conditions[c])))
        # every row of a pack lives through all layers: their states bound the size of a pack
        row_bytes = self.lens.dims.d_model * self.lens.dtype.itemsize
        for i in range(0, len(order), MAX_OPEN_ROWS):
            group = order[i : i + MAX_OPEN_ROWS]
            packs.walk(group, max(1, self.budget.state_bytes // (len(group) * row_bytes)))
        self.batch_tokens = packs.batch_tokens

    def _score(
        self,
        rows: AnswerRows,
        pack: prefix_tree.Pack,
        group: list[int],
        clean: CleanRow,
        passed: Passed,
        batch_tokens: int,
    ) -> None:
        """Log-likelihoods of one pack under a group of conditions."""
        requests, conditions = rows.requests, rows.conditions
        scored, spans = _scored(requests, pack)
        walk = Wavefront(self.lens, self.backend.means, batch_tokens, self.tried)
        under = [conditions[c] for c in group]
        states = walk.run(pack, under, list(scored), passed=passed, clean=clean)
        states = moved(states, place_of(self.lens.arch.unembed))
        targets = torch.tensor([t for r in pack.sequences for t in requests[r].continuation], device=states.device)
        places = torch.tensor([i for span in spans for i in span], device=states.device)
        # several conditions at once: a matrix product wants rows, but their logits must stay small
        step = max(1, self.budget.unembed_rows // len(scored))
        for i in range(0, len(group), step):
            chunk = group[i : i + step]
            under = [conditions[c] for c in chunk]
            logprobs, greedy = self._target_logprobs(under, states[i : i + step], places, targets)
            for c, sums, hits in zip(chunk, logprobs.tolist(), greedy.tolist(), strict=True):
                start = 0
                for r, span in zip(pack.sequences, spans, strict=True):
                    end = start + len(span)
                    if not math.isfinite(sum(sums[start:end])):
                        raise self.lens.not_finite(conditions[c])
                    rows.answers[c][r] = LoglikelihoodAnswer(math.fsum(sums[start:end]), all(hits[start:end]))
                    start = end

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
            states: Final residual streams; they are unembedded in blocks of positions.
            places: Position among the states that predicts each target.
            targets: Token ids.
        """
        n = len(conditions), len(targets)
        logprobs = torch.empty(n, dtype=wide_type(states.dtype), device=states.device)
        greedy = torch.empty(n, dtype=torch.bool, device=states.device)
        for start in range(0, states.shape[1], self.budget.unembed_rows):
            block = states[:, start : start + self.budget.unembed_rows]
            logits = wide(weight_swap.unembed(self.lens, conditions, block))
            here = ((places >= start) & (places < start + block.shape[1])).nonzero()[:, 0]
            at, wanted = places[here] - start, targets[here]
            logprobs[:, here] = logits[:, at, wanted] - logits.logsumexp(-1)[:, at]
            greedy[:, here] = logits.argmax(-1)[:, at] == wanted
        return logprobs, greedy

    def generate_until(self, rows: AnswerRows, bar: Bar) -> None:
        """Write the text of every request under every condition."""
        conditions = rows.conditions
        contexts = [q.context for q in rows.requests]
        max_new = [q.max_new_tokens for q in rows.requests]
        n_layers = self.lens.dims.n_layers
        # by fork, the baseline last: see decoding.Decoding
        order = sorted(rows.unfinished, key=lambda c: fork_layer(conditions[c], n_layers))
        at_once, room = self._decoding_room(contexts, max(1, len(order)), max(max_new, default=0))
        size = self._size_with_weights([conditions[c] for c in order])
        run = partial(self._write, rows, at_once)
        packs = PackRuns(self.lens, contexts, rows, run, bar, self.batch_tokens, self.work, max_new)
        for i in range(0, len(order), size):
            group = order[i : i + size]
            with other_weights_resident(self.lens, [conditions[c] for c in group]):
                packs.walk(group, room)
        self.batch_tokens = packs.batch_tokens

    def _write(
        self,
        rows: AnswerRows,
        at_once: int,
        pack: prefix_tree.Pack,
        group: list[int],
        clean: CleanRow,
        passed: Passed,
        batch_tokens: int,
    ) -> None:
        """Texts of one pack under a group of conditions, of which so many fit into memory at once."""
        conditions = [rows.conditions[c] for c in group]
        writer = Writer(self.lens, [rows.requests[r] for r in pack.sequences], conditions)
        expected = text_lengths(self.lens, writer.requests)

        def finished(found: list[Row]) -> None:
            n = sum(len(writer.tokens[row]) for row in found)
            self.work.add(Work(written_tokens=n, spared=sum(expected[d] for _, d in found) - n))
            for c, d in found:
                rows.answers[group[c]][pack.sequences[d]] = writer.text((c, d))
            # long texts: those that have ended are stored while the others are written
            rows.keep(((group[c], pack.sequences[d]) for c, d in found), wait=True)

        budget = replace(self.budget, batch_tokens=batch_tokens)
        of_pack = pack, conditions, budget, self.tried, writer, passed, finished
        with walking(self.lens.model):
            Decoding(self.lens, self.backend, *of_pack).run(at_once)

    def _decoding_room(self, contexts: Sequence[tuple[int, ...]], n_conditions: int, n_new: int) -> tuple[int, int]:
        """How many conditions are decoded at once, and how many tokens each may hold keys and values for."""
        dims = self.lens.dims
        token_bytes = 2 * dims.n_layers * dims.n_kv_heads * dims.d_head * self.lens.dtype.itemsize
        shared = prefix_tree.common_prefix(min(contexts, default=()), max(contexts, default=()))
        longest = max(map(len, contexts), default=0)
        enough = shared + min(len(contexts), MIN_PROMPTS) * (longest - shared + n_new)
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


def _scored(requests: Sequence[Any], pack: prefix_tree.Pack) -> tuple[dict[int, int], list[list[int]]]:
    """Where the scored positions of a pack are among those that are unembedded, and those of each sequence.

    Sequences share scored positions as they share tokens: each is unembedded once.
    """
    scored: dict[int, int] = {}
    spans = []
    for r, path in zip(pack.sequences, pack.paths, strict=True):
        nodes = path[len(requests[r].context) - 1 :]
        spans.append([scored.setdefault(n, len(scored)) for n in nodes])
    return scored, spans
