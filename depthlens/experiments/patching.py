"""Activation patching: which part of a model, at which token, carries the difference between two prompts.

Two prompts differ in what decides the answer ("The capital of France is", "The capital of Italy is"). Each part at each
position of one prompt gets what it writes on the other prompt, and the difference of two answers' logits, or another
metric, tells how much of the answer comes with it (causal tracing, Meng et al. 2022, arXiv 2202.05262; Zhang & Nanda
2024, arXiv 2309.16042). The patched parts are conditions such as ``L12[7]@resample``, so that all of them share one
walk. A metric reads the logits of every position, and each patch is a whole pass then.

The residual stream before a layer is what the layer below it leaves: this layer's condition puts in place the one
prompt's stream less what enters the layer on the other prompt. Before the first layer the stream is the token itself.

A query of one prompt changes what its head gives at its own token, a key or a value what all heads of its group give
from its token on. Conditions put that in place. It is computed from what attention reads on both prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.ablations import BASELINE, WORDS, Condition, expand
from depthlens.analysis.numbers import means
from depthlens.analysis.numbers.words import estimate
from depthlens.analysis.result.findings import Drawable
from depthlens.backends.row_edits import Means
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.experiments.attention_patterns import HEADS, exchanged
from depthlens.experiments.geometry import residual_streams
from depthlens.experiments.one_prompt import states_of, words
from depthlens.experiments.texts import tokens_of
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.progress import Bar
from depthlens.requests import LoglikelihoodRequest

RESID = "resid"
PARTS = (WORDS["layer"], "attn", "mlp", WORDS["head"], RESID, *HEADS)
RESTORE, BREAK = DIRECTIONS = ("restore", "break")
NATS = "log-probability of {right!r} minus that of {wrong!r}"
SAME = 1e-4  # nats that sums in another order may differ by
SMALL = 0.1  # share of the difference, below which the largest effect of a single pair is called none
Metric = Callable[[Float[Tensor, "prompt pos d_vocab"]], Any]
Cell = tuple[tuple[int, ...], Condition]  # what is run: a prompt under a condition
Spans = list[tuple[range, ...]]  # of a pair, by place: the tokens in the clean and in the corrupted prompt


@dataclass(frozen=True, eq=False)
class Patching(Drawable):
    """What `patch` found.

    Attributes:
        effect: Share of the difference between the two prompts that a patch moves: 0 is nothing, 1 all. Of several
            pairs what a patch moves on average over the mean difference, so that a pair which hardly differs hardly
            counts; without an interval where there is one pair. Shape [part, pos].
        p_adjusted: Whether a patch moves anything, corrected for all parts and positions (step-down maxT); NaN of one
            pair. It tests what is moved, not the share: dividing by a mean of few pairs would make errors too small.
            Shape [part, pos].
        parts: Text of each part, such as ``L12``, ``L12.H3``, ``L12.resid_pre`` or ``L12.KV1.k``. Shape [part].
        places: Where is patched: numbers of tokens, or the names that were given. Shape [pos].
        tokens: Text of each place in the first pair's prompt into which is patched. Shape [pos].
        sources: Text of each place in its other prompt, from which is patched. Shape [pos].
        metric: What is compared, in words: the log-probability of the right answer minus that of the wrong one (of one
            token each, the difference of their logits), or the name of the metric.
        differences: The metric by pair: columns ``clean`` and ``corrupted``; of answers also ``right`` and ``wrong``,
            their texts.
        direction: ``restore`` or ``break``.
    """

    effect: means.Mean
    p_adjusted: Float[np.ndarray, "part pos"]
    parts: tuple[str, ...]
    places: tuple[int | str, ...]
    tokens: tuple[str, ...]
    sources: tuple[str, ...]
    metric: str
    differences: pd.DataFrame
    direction: str

    @property
    def table(self) -> pd.DataFrame:
        """One row a part and position.

        Columns: ``part``, ``position``, ``token``, ``source`` (the token that the patch comes from), ``effect``,
        ``ci_low``, ``ci_high``, ``p_adjusted``.
        """
        n_parts, n_pos = len(self.parts), len(self.tokens)
        columns = {"part": np.repeat(self.parts, n_pos), "position": np.tile(self.places, n_parts)}
        columns |= {"token": np.tile(self.tokens, n_parts), "source": np.tile(self.sources, n_parts)}
        effects = pd.DataFrame(columns | self.effect.ravel().columns("effect")).drop(columns="p_value")
        return effects.assign(p_adjusted=self.p_adjusted.ravel())

    def top(self, k: int = 5) -> pd.DataFrame:
        """The k rows of `table` with the largest effects, of either sign."""
        largest = self.table["effect"].abs().nlargest(arguments.whole("k", k, 1))
        return self.table.loc[largest.index].reset_index(drop=True)

    @property
    def compared(self) -> str:
        """What is compared, and how much it is on both prompts; of several pairs the mean."""
        n = len(self.differences)
        named = ", of which this is the first" if "right" in self.differences else ""
        more = f" (mean of {n} pairs{named})" if n > 1 else ""
        clean, corrupted = self.differences[["clean", "corrupted"]].mean()
        return f"{self.metric}{more}: {clean:.2f} on the clean prompt, {corrupted:.2f} on the corrupted one"

    def describe(self) -> list[str]:
        """What the patches that move most do, one sentence each, and what is compared; that none is shown is said."""
        moved, rows = "restores" if self.direction == RESTORE else "breaks", self.table
        patches = [
            f"Patching {row.part} at {_place(row.position)} ({_both(row)}) {moved} "
            f"{estimate(row.effect, row.ci_low, row.ci_high)} of the difference{_shown(row.p_adjusted)}."
            for row in self.top(3).itertuples()
        ]
        if len(self.differences) > 1 and not (rows["p_adjusted"] < means.ALPHA).any():
            patches = ["No patch is shown to move the difference.", *patches]
        elif len(self.differences) == 1 and rows["effect"].abs().max() < SMALL:
            patches = [f"No patch moves {SMALL} of the difference.", *patches]
        if "right" in self.differences and (self.differences["clean"] <= self.differences["corrupted"]).any():
            patches = ["The clean prompt does not make its answer likelier: cannot judge the patches."]
        return [*patches, f"The difference is that of {self.compared}."]

    def __repr__(self) -> str:
        size = f"{len(self.parts)} parts at {len(self.tokens)} tokens"
        nothing = [line for line in self.describe()[:1] if line.startswith("No patch")]
        return "\n".join([f"Patching ({self.direction}) of {size}; {self.compared}", *nothing, str(self.top())])


@one_thread
def patch(
    lens: Lens,
    clean: str | Sequence[str],
    corrupted: str | Sequence[str],
    parts: str = "layers",
    *,
    answer: tuple[str, str] | Sequence[tuple[str, str]] | None = None,
    metric: Metric | None = None,
    positions: Mapping[str, Sequence[Any]] | None = None,
    direction: str = RESTORE,
    batch_tokens: int | None = None,
    progress: bool = True,
) -> Patching:
    """Patch what each part writes at each token from one prompt into another.

    Args:
        lens: A loaded model.
        clean: A prompt whose right answer the model knows, or several.
        corrupted: The same with another answer, one for each clean one. Without ``positions`` all prompts have equally
            many tokens.
        parts: ``layers`` (what a whole layer adds to the residual stream), ``attn``, ``mlp``, ``heads``, ``resid``
            (the residual stream before each layer; before the first one the token itself, which keeps its position),
            or ``q``, ``k`` or ``v``: the query of each head, the key or the value of each KV group. Queries and keys
            come with the rotary angles of their own token.
        answer: The answer of the clean prompt and that of the corrupted one, as they follow the prompt (mostly with a
            space before them): one pair for all prompts, or one for each. None: the likeliest next token of each.
        metric: What is compared in place of answers: a function of logits, shape [prompt, pos, d_vocab], that gives one
            number a prompt. Prompts are in the order of the pairs. Shorter ones begin with rows of NaN, so that -1 is
            the last token of each.
        positions: Where is patched, by names of yours, with one entry for each pair: ``(start, stop)``, which is from
            token ``start`` to the one before ``stop``; or a token's number (-1: the last one); or two such entries, for
            the clean and for the corrupted prompt. The tokens of an entry are patched together.
        direction: ``restore``: from the clean prompt into the corrupted one (denoising: what is sufficient);
            ``break``: the other way round (noising: what is necessary).
        batch_tokens: See `depthlens.condition_sweep`.
        progress: Whether a bar is shown.

    Returns:
        Effects by part and position, means over the pairs.

    Raises:
        UserError: prompts of unlike numbers, or of a pair without a difference; prompts of unlike length without
            ``positions``, or positions that prompts do not have; an answer that is no pair, answers that both prompts
            tell apart equally well, answers of several tokens with ``k`` or ``v``, or a metric that does not give a
            number a prompt; for ``q``, ``k`` and ``v`` a model whose heads write something else than attention gives.

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
    names, spans = _places(rows, positions)
    single = _parts(lens, parts)
    if metric is not None and answer is not None:
        raise UserError("metric: it takes the place of answer; give one of them")
    told = [] if metric else _told(lens, rows, answer)
    turn = -1 if direction == BREAK else 1  # from the corrupted prompt into the clean one
    ways, at = [row[::turn] for row in rows], [[both[::turn] for both in of] for of in spans]
    if (later := parts in ("k", "v")) and any(len(ids) > 1 for answers in told for ids in answers):
        raise UserError(f"parts {parts!r}: answers of one token are compared, or a metric; give answer= or metric=")

    def values(cells: Sequence[Sequence[Cell]], states: Sequence[Means | None], progress: bool) -> np.ndarray:
        """What is compared in each cell of each pair. Shape [pair, cell]."""
        engines = [Engine(lens, batch_tokens=batch_tokens, means=of, progress=progress) for of in states]
        if metric is not None:
            return _by_metric(engines, cells, metric, progress)
        return np.array([_by_answers(*each) for each in zip(engines, cells, told, strict=True)])

    whole = values([[(source, BASELINE)] for source, _ in ways], [None] * len(rows), False)  # [pair, 1]
    found = []  # of a key and a value one place after the other, because each changes what heads give at later tokens
    for spans in [[[of[i]] for of in at] for i in range(len(names))] if later else [at]:
        cells = [_cells(single, way, of_way, later) for way, of_way in zip(ways, spans, strict=True)]
        states = [_states(lens, parts, *each) for each in zip(ways, spans, cells, strict=True)]
        found.append(values(cells, states, progress))
    plain = found[0][:, :1]  # of the prompts into which is patched
    moved = np.concatenate([(of[:, 1:] - of[:, :1]).reshape(len(rows), len(single), -1) for of in found], -1)
    differences = _differences(lens, np.hstack([whole, plain])[:, ::turn], told)
    compared = _name(metric) if metric else NATS.format_map(differences.iloc[0])
    gaps = (whole - plain)[:, 0]
    if positions is None:  # before the first token that differs a patch does nothing
        moved = np.pad(moved, ((0, 0), (0, 0), (names[0], 0)))
        names, at = [*range(len(ways[0][0]))], [[(range(i, i + 1),) * 2 for i in range(len(ways[0][0]))]]
    sign = np.sign(gaps.mean()) or 1.0
    effect, gap = (means.mean(sign * of, limits=means.UNLIMITED) for of in (moved, gaps))
    sources, tokens = (
        tuple("".join(words(lens, [text[i] for i in both[side]])) for both in at[0])
        for side, text in enumerate(ways[0])
    )
    p = means.max_t(effect.ravel()) if len(rows) > 1 else np.full(effect.value.size, np.nan)
    return Patching(
        effect / gap,
        p.reshape(effect.value.shape),
        tuple(name for name, _ in single),
        tuple(names),
        tokens,
        sources,
        compared,
        differences,
        direction,
    )


def _parts(lens: Lens, parts: str) -> list[tuple[str, Condition | None]]:
    """Name and condition of each part that is patched; the token, which has no condition, before the first layer."""
    if parts in HEADS:
        sites = expand(WORDS["head" if parts == "q" else "kv"], lens.dims)[1:]
        return [(f"{condition}.{parts}", condition) for condition in sites]
    if parts != RESID:
        return [(str(condition), condition) for condition in expand(parts, lens.dims)[1:]]
    below = [None, *expand(WORDS["layer"], lens.dims)[1:-1]]
    return [(f"L{layer}.resid_pre", condition) for layer, condition in enumerate(below)]


def _places(
    rows: Sequence[tuple[tuple[int, ...], ...]], positions: Mapping[str, Sequence[Any]] | None
) -> tuple[list[Any], list[Spans]]:
    """Names of the places where is patched, and for each pair of prompts the tokens of each place."""
    if positions is None:
        n = len(rows[0][0])
        for i, row in enumerate(rows):
            if (sizes := [*map(len, row)]) != [n] * 2:
                fault = f"pair {i}: prompts of {sizes[0]} and {sizes[1]} tokens; give prompts of {n}, as the first"
                raise UserError(f"{fault}, or positions=")
        first = min(next(i for i, (a, b) in enumerate(zip(*row, strict=True)) if a != b) for row in rows)
        return [*range(first, n)], [[(range(i, i + 1),) * 2 for i in range(first, n)] for _ in rows]
    for name, of_pairs in positions.items():
        if len(of_pairs) != len(rows):
            raise UserError(f"positions {name!r}: {len(of_pairs)} entries for {len(rows)} pairs; give one for each")
    found = [[_spans(name, of[i], [*map(len, row)]) for name, of in positions.items()] for i, row in enumerate(rows)]
    for of_pair in found:
        sources = [(pos, other) for both in of_pair for pos, other in zip(*both, strict=True)]
        for side in (0, 1):
            if len({one[side] for one in sources}) != len(set(sources)):
                raise UserError(f"positions {[*positions]}: a token has two others; name tokens that do not overlap")
    return [*positions], found


def _spans(name: str, given: Any, sizes: Sequence[int]) -> tuple[range, ...]:
    """The tokens that an entry of ``positions`` stands for in the clean and in the corrupted prompt of a pair."""
    two = isinstance(given, Sequence) and len(given) == 2 and any(isinstance(at, Sequence) for at in given)
    each = zip(given if two else (given, given), sizes, strict=True)
    spans = [(at % n, at % n + 1) if isinstance(at, int) and -n <= at < n else at for at, n in each]
    whole = all(isinstance(at, Sequence) and len(at) == 2 and all(type(end) is int for end in at) for at in spans)
    sound = whole and all(0 <= start < stop <= n for (start, stop), n in zip(spans, sizes, strict=True))
    if not sound or len({stop - start for start, stop in spans}) > 1:
        fault = f"positions {name!r}: {given!r} in prompts of {sizes[0]} and {sizes[1]} tokens"
        raise UserError(f"{fault}; give (start, stop), or one for each of the two prompts, of equally many tokens")
    return range(*spans[0]), range(*spans[1])


def _cells(
    single: Sequence[tuple[str, Condition | None]], way: Sequence[tuple[int, ...]], spans: Spans, later: bool
) -> list[Cell]:
    """What is run of a pair: the prompt into which is patched, as it is, and then with each part at each place.

    Of a key or value (``later``) the conditions act from the place on.
    """
    source, target = way
    found: list[Cell] = [(target, BASELINE)]
    for _, condition in single:
        for pos, other in ((at, other) for other, at in spans):
            if condition is None:
                tokens = source[other.start : other.stop]
                found.append(((*target[: pos.start], *tokens, *target[pos.stop :]), BASELINE))
            else:
                (part,) = condition.ablations
                put = replace(part, mode="resample", start=pos.start, stop=0 if later else pos.stop)
                found.append((target, Condition((put,))))
    return found


def _states(lens: Lens, parts: str, way: Sequence[tuple[int, ...]], spans: Spans, cells: Sequence[Cell]) -> Means:
    """What the conditions put in place, at the positions of the prompt into which is patched."""
    source, target = way
    if parts in HEADS:
        return Means("another prompt", sample={"z": exchanged(lens, source, target, parts, spans)})
    at = [min(pos, len(source) - 1) for pos in range(len(target))]
    for other, pos in spans:
        at[pos.start : pos.stop] = other
    if parts == RESID:
        before, after = residual_streams(lens, target)[:-1], residual_streams(lens, source)[1:]
        change = torch.stack([b[at] - a for a, b in zip(before, after, strict=True)]).to(lens.device)
        return Means("another prompt", sample={"layer": change})
    states = states_of(lens, source, [condition for _, condition in cells])
    return replace(states, sample={site: values[:, at] for site, values in states.sample.items()})


def _by_answers(engine: Engine, cells: Sequence[Cell], answers: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Log-probability of the first answer minus that of the second, in each cell. Shape [cell]."""
    target, found = cells[0][0], dict[Cell, float]()
    conditions = [*dict.fromkeys(condition for text, condition in cells if text == target)]
    others = [*dict.fromkeys(text for text, _ in cells if text != target)]
    for texts, under in [([target], conditions)] + [(others, [BASELINE])] * bool(others):
        requests = [LoglikelihoodRequest(text, ids) for text in texts for ids in answers]
        for condition, scores in zip(under, engine.loglikelihood(requests, under, desc="patching"), strict=True):
            right, wrong = (np.array([score.logprob for score in scores[i::2]]) for i in (0, 1))
            found |= dict(zip([(text, condition) for text in texts], right - wrong, strict=True))
    return np.array([found[cell] for cell in cells])


def _logits(engine: Engine, texts: Sequence[Sequence[int]], conditions: Sequence[Condition]) -> Tensor:
    """Logits of texts of equal length, each under its condition. Shape [text, pos, d_vocab]."""
    tokens = torch.tensor(texts, device=engine.lens.device)
    every = [range(tokens.shape[1])] * len(tokens)
    logits, _ = engine.backend.forward(tokens, torch.ones_like(tokens), conditions, positions=every)
    return wide(torch.stack(logits))


def _by_metric(
    engines: Sequence[Engine], cells: Sequence[Sequence[Cell]], metric: Metric, progress: bool
) -> np.ndarray:
    """A metric in each cell of each pair; the engines have what the conditions put in place. Shape [pair, cell]."""
    budget, found = engines[0].budget, []
    longest = max(len(text) for of_pair in cells for text, _ in of_pair)
    size = max(1, min(budget.unembed_rows // (longest * len(cells)), budget.batch_tokens // longest))
    if engines[0].walked().foreign is not None:  # what a user has put on the model may depend on the batch
        size = 1
    for start in Bar(iterable=range(0, len(cells[0]), size), desc="patching", disable=not progress):
        of_pairs = []
        for engine, of_pair in zip(engines, cells, strict=True):
            logits = _logits(engine, *zip(*of_pair[start : start + size], strict=True))
            nothing = (0, 0, longest - logits.shape[1], 0)
            of_pairs.append(torch.nn.functional.pad(logits, nothing, value=torch.nan))
        for logits in torch.stack(of_pairs, 1):  # [prompt, pos, d_vocab]
            values = torch.as_tensor(metric(logits)).double().cpu()
            if values.shape != (len(cells),):
                fault = f"metric {_name(metric)} gives shape {[*values.shape]} for {len(cells)} prompts"
                raise UserError(f"{fault}; return one number a prompt, such as logits[:, -1, token]")
            found.append(values.numpy())
    return np.array(found).T


def _name(metric: Metric) -> str:
    return str(getattr(metric, "__name__", type(metric).__name__))


def _told(lens: Lens, rows: Sequence[tuple[tuple[int, ...], ...]], answer: Any) -> list[list[tuple[int, ...]]]:
    """The tokens of both answers of each pair; where none are given, the likeliest next token of each prompt."""
    answers = [answer] * len(rows) if answer is None or isinstance(answer[0], str) else [*answer]
    if len(answers) != len(rows) or any(one is not None and (isinstance(one, str) or len(one) != 2) for one in answers):
        fault = f"answer {answer!r}: give (right, wrong), or a list of {len(rows)}, one for each pair of prompts"
        raise UserError(fault)
    engine, found = Engine(lens, progress=False), []
    for row, told in zip(rows, answers, strict=True):
        if told:
            found.append([tuple(lens.tokenizer(str(text), add_special_tokens=False).input_ids) for text in told])
        else:
            found.append([(int(_logits(engine, [text], [BASELINE])[0, -1].argmax()),) for text in row])
        if not all(found[-1]):
            raise UserError(f"answer {tuple(told)!r}: an answer has no tokens; give some text")
    return found


def _place(position: int | str) -> str:
    return position if isinstance(position, str) else f"token {position}"


def _shown(p: float) -> str:
    """Whether an effect is shown, as one of those of all parts and positions; "" of one pair, which shows nothing."""
    return "" if np.isnan(p) else f" ({'shown' if p < means.ALPHA else 'not shown'}, p_adjusted = {p:.2g})"


def _both(row: Any) -> str:
    token, source = row.token.strip(), row.source.strip()
    return repr(token) if token == source else f"{token!r}, from {source!r}"


def _rows(lens: Lens, *given: str | Sequence[str]) -> list[tuple[tuple[int, ...], ...]]:
    """The tokens of both prompts of each pair."""
    clean, corrupted = ([texts] if isinstance(texts, str) else [*texts] for texts in given)
    if len(clean) != len(corrupted) or not clean:
        raise UserError(f"{len(clean)} clean and {len(corrupted)} corrupted prompts; give as many of both")
    rows = [tuple(tokens_of(lens, text) for text in pair) for pair in zip(clean, corrupted, strict=True)]
    for i, row in enumerate(rows):
        if row[0] == row[1]:
            raise UserError(f"clean and corrupted are both {clean[i]!r}; give prompts that differ")
    return rows


def _differences(lens: Lens, values: np.ndarray, told: Sequence[Sequence[tuple[int, ...]]]) -> pd.DataFrame:
    """`Patching.differences`; refuses a pair of prompts that are alike, in which a patch moves nothing."""
    texts = [[lens.tokenizer.decode([*ids]) for ids in answers] for answers in told]
    table = pd.DataFrame(texts, columns=["right", "wrong"] if told else None)
    table[["clean", "corrupted"]] = values
    clean, corrupted = values.T
    if (same := np.isclose(clean, corrupted, rtol=1e-6, atol=SAME if told else 0.0)).any():
        row = table[same].iloc[0]
        what = f"{row.right!r} against {row.wrong!r}" if told else "the metric"
        fault = f"pair {np.argmax(same)}: {what} is {row.clean:.3g} after both prompts, and no patch moves it"
        raise UserError(f"{fault}; give answer=(right, wrong), or a metric, that tells the prompts apart")
    return table
