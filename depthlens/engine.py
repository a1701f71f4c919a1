"""Requests x conditions -> log-likelihoods and texts, in batches ruled by one token budget.

A row of a batch is (request, condition), so one forward pass serves many conditions. The engine knows nothing of
tasks: requests are token ids. Running out of memory halves the budget and goes on; nothing computed is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm
from transformers import RepetitionPenaltyLogitsProcessor

from depthlens import backends, packing, wavefront
from depthlens.ablations import BASELINE, Condition, expand
from depthlens.errors import UserError

# measured on 2 cores: larger batches gain nothing on a CPU, and attention masks and logits grow with them
CPU_BATCH_TOKENS = 4096
GPU_BATCH_TOKENS = 65536
# below this a layer's weights cost more to read than its arithmetic; memory that does not do for it does for nothing
MIN_BATCH_TOKENS = 64
# residual streams of all open rows of a pack, held from layer to layer
STATE_BYTES = 512 << 20
# conditions that walk together; more gain nothing, since the clean row they share is by then a small part
MAX_OPEN_ROWS = 128


@dataclass(frozen=True)
class Loglikelihood:
    """Ask for log p(continuation | context); both are token ids and neither is empty."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Generate:
    """Ask for the greedy text after a context, cut before the first stop string.

    Attributes:
        context: Token ids.
        until: Stop strings.
        max_new_tokens: Tokens written at the most.
    """

    context: tuple[int, ...]
    until: tuple[str, ...]
    max_new_tokens: int


@dataclass(frozen=True)
class Likelihood:
    """Answer to `Loglikelihood`: sum of log-probabilities in nats, and whether greedy decoding would write it."""

    logprob: float
    is_greedy: bool


class Engine:
    """Runs requests under conditions on one model.

    Args:
        lens: A loaded model.
        backend: Name of the backend that applies the conditions.
        batch_tokens: Token budget of one batch (rows x padded length); None chooses by device.
        means: Reference means, needed by ``@mean`` conditions.
        progress: Show a tqdm bar with rows/s and time left.

    Raises:
        UserError: unknown backend or a budget below 1.
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
        self.lens = lens
        self.backend = backends.get(backend, lens, means)
        self.batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if lens.device.type == "cpu" else GPU_BATCH_TOKENS)
        self.progress = progress

    def loglikelihood(
        self, requests: Sequence[Loglikelihood], conditions: Sequence[Condition], desc: str = "loglikelihood"
    ) -> list[list[Likelihood]]:
        """Score every request under every condition.

        Returns:
            Answers, indexed [condition][request].
        """
        answers: list[list[Any]] = [[None] * len(requests) for _ in conditions]
        # the last token of a continuation is predicted, never read
        inputs = [(*q.context, *q.continuation)[:-1] for q in requests]
        with tqdm(total=len(requests) * len(conditions), desc=desc, unit="row", disable=not self.progress) as bar:
            if not self._walks(max(map(len, inputs), default=0)):
                self._rows(requests, inputs, conditions, answers, bar)
                return answers
            for group in self._groups(conditions):
                # every row of a pack lives through all layers: their states bound the size of a pack
                room = max(1, STATE_BYTES // (len(group) * self.lens.dims.d_model * self.lens.dtype.itemsize))
                for packed in packing.pack(inputs, room):
                    self._score_pack(packed, requests, conditions, group, answers)
                    bar.update(len(packed.sequences) * len(group))
        return answers

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
    ) -> None:
        # sequences share asked positions as they share tokens: each is unembedded once
        asked: dict[int, int] = {}
        spans = []
        for r, path in zip(packed.sequences, packed.paths, strict=True):
            nodes = path[len(requests[r].context) - 1 :]
            spans.append([asked.setdefault(n, len(asked)) for n in nodes])
        walk = wavefront.Wavefront(self.lens, self.backend.means, self.batch_tokens)
        states = self._shrinking(walk, lambda: walk.run(packed, [conditions[c] for c in group], list(asked)))
        targets = torch.tensor([t for r in packed.sequences for t in requests[r].continuation], device=self.lens.device)
        where = torch.tensor([i for span in spans for i in span], device=self.lens.device)
        for c, state in zip(group, states, strict=True):
            with torch.no_grad():
                logits = self.lens.arch.unembed(self.lens.arch.final_norm(state)).float()  # [asked, d_vocab]
            picked = logits[where, targets] - logits.logsumexp(-1)[where]
            greedy = logits.argmax(-1)[where] == targets
            at = 0
            sums, hits = picked.tolist(), greedy.tolist()
            for r, span in zip(packed.sequences, spans, strict=True):
                end = at + len(span)
                answers[c][r] = Likelihood(math.fsum(sums[at:end]), all(hits[at:end]))
                at = end

    def _shrinking(self, walk: wavefront.Wavefront, run: Callable[[], Tensor]) -> Tensor:
        """Run; when memory runs out halve the chunk and try again."""
        while True:
            try:
                return run()
            except (torch.OutOfMemoryError, RuntimeError) as e:
                if not out_of_memory(e) or self.batch_tokens < MIN_BATCH_TOKENS:
                    raise
                self.batch_tokens = walk.batch_tokens = self.batch_tokens // 2

    def _rows(
        self,
        requests: Sequence[Loglikelihood],
        inputs: Sequence[tuple[int, ...]],
        conditions: Sequence[Condition],
        answers: list[list[Any]],
        bar: tqdm,
    ) -> None:
        """The plain way, for backends that only know whole forward passes: a row is (request, condition)."""
        rows = [(c, r) for r in range(len(requests)) for c in range(len(conditions))]
        rows.sort(key=lambda row: -len(inputs[row[1]]))

        def run(batch: list[tuple[int, int]]) -> None:
            picked = [requests[r] for _, r in batch]
            tokens = [inputs[r] for _, r in batch]
            padded, mask = self._pad(tokens, left=False)
            positions = [range(len(q.context) - 1, len(t)) for q, t in zip(picked, tokens, strict=True)]
            logits, _ = self.backend.forward(padded, mask, [conditions[c] for c, _ in batch], positions=positions)
            for (c, r), q, values in zip(batch, picked, logits, strict=True):
                answers[c][r] = score(values, q.continuation)

        self._run(rows, lambda row: len(inputs[row[1]]), run, bar)

    def generate_until(
        self, requests: Sequence[Generate], conditions: Sequence[Condition], desc: str = "generate"
    ) -> list[list[str]]:
        """Write the greedy text of every request under every condition.

        Returns:
            Texts, indexed [condition][request].
        """
        texts: list[list[str]] = [[""] * len(requests) for _ in conditions]
        rows = [(c, r) for r in range(len(requests)) for c in range(len(conditions))]
        rows.sort(key=lambda row: -len(requests[row[1]].context))

        def length(row: tuple[int, int]) -> int:
            return len(requests[row[1]].context) + requests[row[1]].max_new_tokens

        def run(batch: list[tuple[int, int]]) -> None:
            written = self._decode([requests[r] for _, r in batch], [conditions[c] for c, _ in batch])
            for (c, r), text in zip(batch, written, strict=True):
                texts[c][r] = text

        with tqdm(total=len(rows), desc=desc, unit="row", disable=not self.progress) as bar:
            self._run(rows, length, run, bar)
        return texts

    def _decode(self, requests: list[Generate], conditions: list[Condition]) -> list[str]:
        """Greedy decoding of one batch of rows; a row leaves the batch when it is done."""
        writer = Writer(self.lens, requests)
        tokens, mask = self._pad([q.context for q in requests], left=True)
        alive, cache = list(range(len(requests))), None
        while alive:
            logits, cache = self.backend.forward(tokens, mask, [conditions[i] for i in alive], cache=cache)
            going_on = writer.write(alive, torch.cat(logits))
            if len(going_on) < len(alive):
                keep = torch.tensor([alive.index(i) for i in going_on], device=self.lens.device, dtype=torch.long)
                cache.batch_select_indices(keep)
                mask, alive = mask[keep], going_on
            tokens = torch.tensor([[writer.tokens[i][-1]] for i in alive], device=self.lens.device)
            mask = torch.cat([mask, mask.new_ones(len(alive), 1)], dim=1)
        return writer.texts()

    def _pad(self, rows: list[tuple[int, ...]], *, left: bool) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask, each of shape [row, pos]."""
        width = max(map(len, rows))
        tokens, mask = torch.zeros(2, len(rows), width, dtype=torch.long).unbind()
        for i, row in enumerate(rows):
            place = slice(width - len(row), width) if left else slice(0, len(row))
            tokens[i, place] = torch.tensor(row)
            mask[i, place] = 1
        return tokens.to(self.lens.device), mask.to(self.lens.device)

    def _run(self, rows: list[Any], length: Callable[[Any], int], run: Callable[[list[Any]], None], bar: tqdm) -> None:
        """Run rows, sorted long first, in batches under the budget; halve the budget when memory runs out."""
        start = 0
        while start < len(rows):
            size = max(1, self.batch_tokens // length(rows[start]))
            batch = rows[start : start + size]
            try:
                run(batch)
            except (torch.OutOfMemoryError, RuntimeError) as e:
                if not out_of_memory(e) or len(batch) == 1:
                    raise
                self.batch_tokens = max(1, len(batch) // 2 * length(rows[start]))
                continue
            start += len(batch)
            bar.update(len(batch))


def score(logits: Tensor, continuation: Sequence[int]) -> Likelihood:
    """Log-likelihood of a continuation from the logits that predict it. Shape [n_continuation, d_vocab]."""
    wanted = torch.tensor(continuation, device=logits.device)
    logprobs = torch.log_softmax(logits.float(), -1).gather(-1, wanted[:, None])
    return Likelihood(float(logprobs.sum()), bool((logits.argmax(-1) == wanted).all()))


def next_token(lens: Any, prompt: str, conditions: Sequence[str | Condition] = (), k: int = 8) -> pd.DataFrame:
    """Probability of the next token after a prompt, under the baseline and other conditions.

    Args:
        lens: A loaded model.
        prompt: Text, encoded as the tokenizer does by default.
        conditions: Beside the baseline, which always comes first.
        k: How many of the likeliest tokens of each condition are kept (their union is shown for all).

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
    engine = Engine(lens, progress=False)
    logits, _ = engine.backend.forward(rows, torch.ones_like(rows), wanted, positions=[[len(tokens) - 1]] * len(wanted))
    probs = torch.cat(logits).float().softmax(-1)  # [condition, d_vocab]
    kept = probs.topk(k).indices.flatten().unique()
    frame = pd.DataFrame(
        probs[:, kept].T.cpu().numpy(),
        index=pd.Index([lens.tokenizer.decode([t]) for t in kept.tolist()], name="token"),
        columns=[str(c) for c in wanted],
    )
    return frame.sort_values("baseline", ascending=False)


class Writer:
    """What each row has written, and when it is done: end-of-text token, stop string or length, as in lm-eval."""

    def __init__(self, lens: Any, requests: Sequence[Generate]) -> None:
        config = lens.model.generation_config
        eos = config.eos_token_id if config.eos_token_id is not None else lens.tokenizer.eos_token_id
        self.eos = set(eos) if isinstance(eos, (list, tuple)) else {eos}
        penalty = config.repetition_penalty or 1.0  # some instruct models ship one, and HF applies it when greedy
        self.penalty = RepetitionPenaltyLogitsProcessor(penalty) if penalty != 1.0 else None
        self.tokenizer = lens.tokenizer
        self.requests = requests
        self.tokens: list[list[int]] = [[] for _ in requests]

    def write(self, alive: Sequence[int], logits: Tensor) -> list[int]:
        """Append each row's likeliest token; returns the rows that go on. Logits of shape [row, d_vocab]."""
        if self.penalty is not None:
            seen = [[*self.requests[i].context, *self.tokens[i]] for i in alive]
            logits = torch.cat(
                [self.penalty(torch.tensor([s], device=logits.device), x[None]) for s, x in zip(seen, logits, strict=True)]
            )
        going_on = []
        for i, token in zip(alive, logits.argmax(-1).tolist(), strict=True):
            self.tokens[i].append(token)
            if not self._done(i):
                going_on.append(i)
        return going_on

    def _done(self, i: int) -> bool:
        tokens, request = self.tokens[i], self.requests[i]
        if tokens[-1] in self.eos or len(tokens) >= request.max_new_tokens:
            return True
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(stop in text for stop in request.until)

    def texts(self) -> list[str]:
        """The text of every row, cut before its first stop string."""
        return [
            cut(self.tokenizer.decode(tokens, skip_special_tokens=True), request.until)
            for tokens, request in zip(self.tokens, self.requests, strict=True)
        ]


def cut(text: str, until: Sequence[str]) -> str:
    """``text`` before the first of the stop strings."""
    for stop in until:
        text = text.split(stop)[0]
    return text


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory ran out (CPU allocation failures are plain RuntimeErrors in torch)."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error) or "can't allocate" in str(error)


