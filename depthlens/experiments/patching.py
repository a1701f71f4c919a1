"""Activation patching: which part of a model, at which token, carries the difference between two prompts.

Two prompts of equally many tokens differ in what decides the answer ("The capital of France is", "The capital of Italy
is"). Each part at each position of one prompt gets what it writes on the other prompt, and the difference of two
answers' logits tells how much of the answer comes with it (causal tracing, Meng et al. 2022, arXiv 2202.05262; Zhang &
Nanda 2024, arXiv 2309.16042). The patched parts are conditions such as ``L12[7]@resample``, so that all of them share
one walk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.ablations import BASELINE, WORDS, AnyHead, Condition, Head, expand, heads_condition, heads_of
from depthlens.analysis.numbers import means
from depthlens.analysis.numbers.words import estimate
from depthlens.analysis.result.findings import Drawable
from depthlens.backends.row_edits import hooks
from depthlens.engine import walk_check
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.experiments.one_prompt import states_of, words
from depthlens.experiments.texts import tokens_of
from depthlens.models.architectures import body_of, head, replaced_forwards, wide
from depthlens.models.lens import Lens, one_thread
from depthlens.models.placement import moved
from depthlens.requests import LoglikelihoodRequest

PARTS = (WORDS["layer"], "attn", "mlp", WORDS["head"])
RESTORE, BREAK = DIRECTIONS = ("restore", "break")
SAME = 1e-4  # nats that sums in another order may differ by


@dataclass(frozen=True, eq=False)
class Patching(Drawable):
    """What `patch` found.

    Attributes:
        effect: Share of the difference between the two prompts that a patch moves: 0 is nothing, 1 all. Of several
            pairs what a patch moves on average over the mean difference, so that a pair which hardly differs hardly
            counts; without an interval where there is one pair. Shape [part, pos].
        parts: Text of each part, such as ``L12`` or ``L12.H3``. Shape [part].
        tokens: Text of each token of the first pair's prompt into which is patched. Shape [pos].
        sources: Text of each token of its other prompt, from which is patched. Shape [pos].
        differences: Log-probability of the right answer minus that of the wrong one (of one token each, the difference
            of their logits), by pair: on the clean and on the corrupted prompt. Columns ``right`` and ``wrong``, the
            text of the answers, ``clean`` and ``corrupted``.
        direction: ``restore`` or ``break``.
    """

    effect: means.Mean
    parts: tuple[str, ...]
    tokens: tuple[str, ...]
    sources: tuple[str, ...]
    differences: pd.DataFrame
    direction: str

    @property
    def table(self) -> pd.DataFrame:
        """One row a part and position.

        Columns: ``part``, ``position``, ``token``, ``source`` (the token that the patch comes from), ``effect``,
        ``ci_low``, ``ci_high``, and ``p_adjusted``, corrected for all parts and positions (step-down maxT; NaN of
        one pair).
        """
        n_parts, n_pos, effect = len(self.parts), len(self.tokens), self.effect.ravel()
        columns = {"part": np.repeat(self.parts, n_pos), "position": np.tile(range(n_pos), n_parts)}
        columns |= {"token": np.tile(self.tokens, n_parts), "source": np.tile(self.sources, n_parts)}
        p = means.max_t(effect) if effect.n > 1 else np.nan
        return pd.DataFrame(columns | effect.columns("effect")).drop(columns="p_value").assign(p_adjusted=p)

    def top(self, k: int = 5) -> pd.DataFrame:
        """The k rows of `table` with the largest effects, of either sign."""
        largest = self.table["effect"].abs().nlargest(arguments.whole("k", k, 1))
        return self.table.loc[largest.index].reset_index(drop=True)

    @property
    def compared(self) -> str:
        """The two answers, and how much likelier the right one is on both prompts; of several pairs the mean."""
        (right, wrong), n = self.differences.loc[0, ["right", "wrong"]], len(self.differences)
        more = f" (mean of {n} pairs, of which this is the first)" if n > 1 else ""
        clean, corrupted = self.differences[["clean", "corrupted"]].mean()
        said = f"log-probability of {right!r} minus that of {wrong!r}{more}"
        return f"{said}: {clean:.2f} on the clean prompt, {corrupted:.2f} on the corrupted one"

    def describe(self) -> list[str]:
        """What the patches that move most do, one sentence each, and which answers are compared."""
        moved = "restores" if self.direction == RESTORE else "breaks"
        patches = [
            f"Patching {row.part} at token {row.position} ({_both(row)}) {moved} "
            f"{estimate(row.effect, row.ci_low, row.ci_high)} of the difference{_shown(row.p_adjusted)}."
            for row in self.top(3).itertuples()
        ]
        if (self.differences["clean"] <= self.differences["corrupted"]).any():
            patches = ["The clean prompt does not make its answer likelier: cannot judge the patches."]
        return [*patches, f"The difference is the {self.compared}."]

    def __repr__(self) -> str:
        size = f"{len(self.parts)} parts at {len(self.tokens)} tokens"
        return f"Patching ({self.direction}) of {size}; {self.compared}\n{self.top()}"


@one_thread
def patch(
    lens: Lens,
    clean: str | Sequence[str],
    corrupted: str | Sequence[str],
    parts: str = "layers",
    *,
    answer: tuple[str, str] | Sequence[tuple[str, str]] | None = None,
    direction: str = RESTORE,
    into: AnyHead | None = None,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> Patching:
    """Patch what each part writes at each token from one prompt into another.

    Args:
        lens: A loaded model.
        clean: A prompt whose right answer the model knows, or several.
        corrupted: The same with another answer: a prompt of as many tokens for each clean one.
        parts: ``layers`` (what a whole layer adds to the residual stream), ``attn``, ``mlp`` or ``heads``.
        answer: The answer of the clean prompt and that of the corrupted one, as they follow the prompt (mostly with a
            space before them): one pair for all prompts, or one for each. None: the likeliest next token of each.
        direction: ``restore``: from the clean prompt into the corrupted one (denoising: what is sufficient);
            ``break``: the other way round (noising: what is necessary).
        into: A head, the receiver: of the ``heads`` below it only what goes straight into it is patched (path patching,
            Wang et al. 2022, arXiv 2211.00593). It reads as if a head had written what it writes on the other prompt;
            all other parts read what they read before. Answers are of one token.
        batch_tokens: See `depthlens.condition_sweep`.
        progress: Whether a bar is shown.

    Returns:
        Effects by part and position, means over the pairs.

    Raises:
        UserError: prompts of unlike numbers, prompts of a pair with unlike numbers of tokens or without a difference,
            an answer that is no pair, answers that both prompts tell apart equally well, or a path from other parts
            than heads, to a head without any below it, or in a model whose layers do more than add what attention
            gives.

    Example:
        >>> clean, corrupted = "Ada Ben SEP Cleo Dora SEP QA Cleo", "Ada Dora SEP Cleo Ben SEP QA Cleo"
        >>> found = dl.patch(lens, clean, corrupted, "heads")
        >>> found.top(1)[["part", "position"]]
            part  position
        0  L2.H1         8
        >>> figure = found.plot()
    """
    for name, value, allowed in (("parts", parts, PARTS), ("direction", direction, DIRECTIONS)):
        arguments.one_of(*allowed)(name, value)
    rows = _rows(lens, clean, corrupted)
    answers = [answer] * len(rows) if answer is None or isinstance(answer[0], str) else [*answer]
    if len(answers) != len(rows) or any(one is not None and (isinstance(one, str) or len(one) != 2) for one in answers):
        raise UserError(
            f"answer {answer!r}: give (right, wrong), or a list of {len(rows)}, one for each pair of prompts"
        )
    single = expand(parts, lens.dims)[1:]
    if into is not None:
        (receiver,) = heads_of("into", [into])
        heads_condition([receiver]).validate(lens.dims)
        single = [part for part in single if part.ablations[0].layer < receiver.layer]
        if parts != WORDS["head"] or not single:
            fault = f"into {receiver} with parts {parts!r}: a path goes from heads into one of a later layer"
            raise UserError(f"{fault}; give parts 'heads', and a head of L1 or later")
        if not walk_check.found(lens).adds:
            fault = f"a layer of {lens.name!r} does more than add what its attention gives"
            raise UserError(f"into {receiver}: {fault}; patch without into")
    n_pos = len(rows[0][0])
    first = min(next(i for i, (a, b) in enumerate(zip(*row, strict=True)) if a != b) for row in rows)
    # before the first token that differs all states are the same, and a patch does nothing
    conditions = [_at(condition, position) for condition in single for position in range(first, n_pos)]
    asked = [_answers(lens, row, told) for row, told in zip(rows, answers, strict=True)]
    differences = _differences(lens, Engine(lens, batch_tokens=batch_tokens, progress=False), rows, asked)
    side = "clean" if direction == RESTORE else "corrupted"  # from which is patched
    ways = [row if direction == RESTORE else row[::-1] for row in rows]
    found: list[np.ndarray] = []
    gaps: list[float] = []
    for (source, target), told, whole in zip(ways, asked, differences[side], strict=True):
        states = states_of(lens, source, conditions)
        engine = Engine(lens, batch_tokens=batch_tokens, means=states, progress=progress)
        patched = _difference(engine, target, told, [BASELINE, *([] if into else conditions)])
        if into is not None:
            change = states.sample["z"] - states_of(lens, target, conditions).sample["z"]
            by_path = _paths(lens, engine.budget.batch_tokens, target, change, conditions, receiver, told)
            patched = np.append(patched, by_path)
        found.append(np.pad((patched[1:] - patched[0]).reshape(len(single), -1), ((0, 0), (first, 0))))
        gaps.append(whole - patched[0])
    sign = np.sign(np.mean(gaps)) or 1.0
    moves, gap = (means.mean(sign * np.stack(values), limits=means.UNLIMITED) for values in (found, gaps))
    effect = moves / gap
    sources, tokens = (words(lens, ids) for ids in ways[0])
    return Patching(effect, tuple(map(str, single)), tokens, sources, differences, direction)


def _shown(p: float) -> str:
    """Whether an effect is shown, as one of those of all parts and positions; "" of one pair, which shows nothing."""
    return "" if np.isnan(p) else f" ({'shown' if p < means.ALPHA else 'not shown'}, p_adjusted = {p:.2g})"


def _both(row: Any) -> str:
    token, source = row.token.strip(), row.source.strip()
    return repr(token) if token == source else f"{token!r}, from {source!r}"


@torch.no_grad()
def _paths(
    lens: Lens,
    batch_tokens: int,
    target: tuple[int, ...],
    change: Float[Tensor, "n_layers pos n_heads d_head"],
    senders: Sequence[Condition],
    into: Head,
    answers: Sequence[tuple[int, ...]],
) -> np.ndarray:
    """Difference of the answers' logits where one sender writes its change into what the receiver reads.

    Shape [sender].
    """
    if any(len(ids) != 1 for ids in answers):
        raise UserError("into: answers of several tokens; give answers of one token each")
    found = []
    tokens = torch.tensor([target], device=lens.device)
    size = max(1, batch_tokens // len(target))
    for chunk in (senders[i : i + size] for i in range(0, len(senders), size)):
        written = torch.zeros(len(chunk), len(target), lens.dims.d_model, dtype=lens.dtype, device=lens.device)
        for row, ((sender,), at) in enumerate((part.ablations, part.ablations[0].start) for part in chunk):
            z = torch.zeros_like(change[0, 0])
            z[sender.index] = change[sender.layer, at, sender.index]
            project = lens.arch.o_proj[sender.layer]
            written[row, at] = project(z.flatten()) - project(torch.zeros_like(z).flatten())

        with replaced_forwards([(lens.arch.layers[into.layer], _receiver(lens, into, written))]):
            states = body_of(lens.model)(tokens.expand(len(chunk), -1), use_cache=False).last_hidden_state
        logits = wide(head(lens.model, states[:, -1]))
        found.append((logits[:, answers[0][0]] - logits[:, answers[1][0]]).cpu().numpy())
    return np.concatenate(found)


def _receiver(lens: Lens, into: Head, written: Float[Tensor, "row pos d_model"]) -> Callable[..., Any]:
    """The forward of the receiver's layer in which the receiver alone reads what is written into the layer's input."""
    layer, width = into.layer, lens.dims.d_head
    forward = lens.arch.layers[layer].forward
    before, after = into.head * width, (into.head + 1) * width

    def call(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        read: list[Tensor] = []

        def keep(z: Tensor) -> Tensor:
            read.append(z)
            return z

        def put(z: Tensor) -> Tensor:
            return torch.cat([z[..., :before], read[0][..., before:after], z[..., after:]], -1)

        with hooks(lens.arch, layer, {"z": keep}):
            forward(x + moved(written, x.device), *args, **kwargs)
        with hooks(lens.arch, layer, {"z": put}):
            return forward(x, *args, **kwargs)

    return call


def _rows(lens: Lens, *given: str | Sequence[str]) -> list[tuple[tuple[int, ...], ...]]:
    """The tokens of both prompts of each pair."""
    clean, corrupted = ([texts] if isinstance(texts, str) else [*texts] for texts in given)
    if len(clean) != len(corrupted) or not clean:
        raise UserError(f"{len(clean)} clean and {len(corrupted)} corrupted prompts; give as many of both")
    rows = [tuple(tokens_of(lens, text) for text in pair) for pair in zip(clean, corrupted, strict=True)]
    for i, row in enumerate(rows):
        if (sizes := [*map(len, row)]) != [n := len(rows[0][0])] * 2:
            raise UserError(f"pair {i}: prompts of {sizes[0]} and {sizes[1]} tokens; give prompts of {n}, as the first")
        if row[0] == row[1]:
            raise UserError(f"clean and corrupted are both {clean[i]!r}; give prompts that differ")
    return rows


def _at(condition: Condition, position: int) -> Condition:
    (part,) = condition.ablations
    return Condition((replace(part, mode="resample", start=position, stop=position + 1),))


def _answers(lens: Lens, row: tuple[tuple[int, ...], ...], told: Any) -> list[tuple[int, ...]]:
    """The tokens of both answers; where none are told, the likeliest next token of each prompt."""
    if told:
        found = [tuple(lens.tokenizer(str(text), add_special_tokens=False).input_ids) for text in told]
        if not all(found):
            raise UserError(f"answer {tuple(told)!r}: an answer has no tokens; give some text")
        return found
    ids = torch.tensor(row, device=lens.device)
    backend = Engine(lens, progress=False).backend
    logits, _ = backend.forward(ids, torch.ones_like(ids), [BASELINE] * 2, positions=[[ids.shape[1] - 1]] * 2)
    return [(int(one.argmax()),) for one in logits]


def _differences(
    lens: Lens,
    engine: Engine,
    rows: Sequence[tuple[tuple[int, ...], ...]],
    answers: Sequence[Sequence[tuple[int, ...]]],
) -> pd.DataFrame:
    """`Patching.differences`; refuses a pair of prompts that give its answers alike, in which a patch moves nothing."""
    found = []
    for i, (row, told) in enumerate(zip(rows, answers, strict=True)):
        right, wrong = (lens.tokenizer.decode([*ids]) for ids in told)
        clean, corrupted = (_difference(engine, text, told, [BASELINE])[0] for text in row)
        if not abs(clean - corrupted) >= SAME:
            alike = f"pair {i}: {right!r} against {wrong!r} is {clean:.2f} nats after both prompts"
            raise UserError(f"{alike}, and no patch moves it; give answer=(right, wrong) that the prompts tell apart")
        found.append((right, wrong, clean, corrupted))
    return pd.DataFrame(found, columns=["right", "wrong", "clean", "corrupted"])


def _difference(
    engine: Engine, prompt: tuple[int, ...], answers: Sequence[tuple[int, ...]], conditions: Sequence[Condition]
) -> np.ndarray:
    """Log-probability of the first answer minus that of the second. Shape [condition]."""
    requests = [LoglikelihoodRequest(prompt, ids) for ids in answers]
    scores = engine.loglikelihood(requests, conditions, desc="patching")
    return np.array([right.logprob - wrong.logprob for right, wrong in scores])
