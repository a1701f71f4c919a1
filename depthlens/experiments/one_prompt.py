"""Prompts from several sides: what comes next under conditions, what layers would say, states, where heads look."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from depthlens import arguments, progress
from depthlens.ablations import BASELINE, AnyHead, Condition, Head, expand, parse_condition
from depthlens.analysis.result.findings import Drawable
from depthlens.analysis.show.views import View
from depthlens.backends.row_edits import Means
from depthlens.backends.torch import entered
from depthlens.engine.engine import Engine
from depthlens.engine.references import Reference
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns
from depthlens.experiments.condition_runs import prompts_of_resample
from depthlens.experiments.geometry import residual_streams, unembedded
from depthlens.experiments.texts import tokens_of
from depthlens.models import in_force, pairs
from depthlens.models.architectures import wide
from depthlens.models.lens import Lens, one_thread
from depthlens.requests import GenerateRequest

N_MOST = 4  # tokens that a head looks at, where not all are shown


@one_thread
def next_token(
    lens: Lens,
    prompt: str,
    conditions: str | Sequence[str | Condition] = (),
    k: int = 8,
    backend: str = "torch",
    *,
    resample_prompt: str | None = None,
) -> pd.DataFrame:
    """Probability of the next token after a prompt, under the baseline and other conditions.

    Args:
        lens: A loaded model.
        prompt: Text, encoded as the tokenizer does by default.
        conditions: Beside the baseline, which always comes first.
        k: How many of the likeliest tokens of each condition are kept (their union is shown for all).
        backend: What applies the conditions.
        resample_prompt: What ``@resample`` conditions take the states of.

    Returns:
        One row a token, one column a condition (its text form), sorted by the baseline's probability. Where several
        tokens have one text, their numbers stand behind it.

    Raises:
        UserError: an empty prompt, a condition that the model does not have, or ``@resample`` without prompts.

    Example:
        >>> dl.next_token(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo", ["L2", "L3"], k=1).columns.tolist()
        ['baseline', 'L2', 'L3']
    """
    k = arguments.whole("k", k, 1)
    tokens = tokens_of(lens, prompt)
    columns = expand(conditions, lens.dims) if conditions else [BASELINE]
    pairs.require(lens, columns, backend)
    row = torch.tensor([tokens], device=lens.device)
    _, means = _resampled(lens, columns, resample_prompt)
    logits = []
    with progress.working(f"{len(columns)} conditions with {backend}") if backend != "torch" else nullcontext():
        engine = Engine(lens, backend=backend, means=means, progress=False)  # importing libraries is slow
        # what a user has put on the model may depend on the batch
        for some in [[column] for column in columns] if engine.walked().foreign else [columns]:
            rows, last = row.expand(len(some), -1), [[len(tokens) - 1]] * len(some)
            given, _ = engine.backend.forward(rows, torch.ones_like(rows), some, positions=last)
            logits += given
    probs = wide(torch.cat(logits)).softmax(-1)  # [condition, d_vocab]
    likeliest = probs.topk(min(k, probs.shape[1])).indices.flatten().unique().tolist()
    texts = pd.Series(words(lens, likeliest), index=likeliest)
    shared = texts.duplicated(keep=False)  # as of tokens that are bytes; their numbers tell them apart
    frame = pd.DataFrame(
        probs[:, likeliest].T.cpu().numpy(),
        index=pd.Index(texts.where(~shared, texts + [f" ({token})" for token in likeliest]), name="token"),
        columns=[str(c) for c in columns],
    )
    return frame.sort_values("baseline", ascending=False)


@one_thread
def generate(
    lens: Lens,
    prompts: str | Sequence[str],
    conditions: str | Sequence[str | Condition] = (),
    *,
    max_new_tokens: int = 40,
    until: Sequence[str] = (),
    resample_prompt: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """What a model writes after prompts, under several conditions side by side.

    Args:
        lens: A loaded model.
        prompts: One text, or several.
        conditions: Beside the baseline, which comes first; see `depthlens.condition_sweep`.
        max_new_tokens: Tokens of each text, at most. The likeliest token is written.
        until: Texts that end what is written.
        resample_prompt: What ``@resample`` conditions take the states of.
        progress: Whether a bar is shown.

    Returns:
        Texts: one row a prompt, one column a condition.

    Raises:
        UserError: an empty prompt, a condition that the model does not have, or one that no texts are written under.

    Example:
        >>> dl.generate(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo", ["L2", "L3"], max_new_tokens=1).T
        prompt   Ada Ben SEP Cleo Dora SEP QA Cleo
        baseline                              Dora
        L2                                     ...
        L3                                    Dora
    """
    texts = [prompts] if isinstance(prompts, str) else [*prompts]
    limit = arguments.whole("max_new_tokens", max_new_tokens, 1)
    under = expand(conditions, lens.dims) if conditions else [BASELINE]
    requests = [GenerateRequest(tokens_of(lens, text), tuple(until), limit) for text in texts]
    _, means = _resampled(lens, under, resample_prompt)
    engine = Engine(lens, means=means, progress=progress)
    written = engine.generate_until(requests, under)
    columns = {str(condition): [str(text) for text in column] for condition, column in zip(under, written, strict=True)}
    return pd.DataFrame(columns, index=pd.Index(texts, name="prompt"))


@contextmanager
def ablated(lens: Lens, condition: str | Condition | AnyHead, *, resample_prompt: str | None = None) -> Iterator[Any]:
    """Within the context a model runs under a condition, whatever calls it; after it the model is whole again.

    It holds for ``lens.model`` and for what this package asks of the model, such as `generate` or a sweep, whose
    conditions come on top of it. Contexts may be nested, and left in any order: all conditions that have not been left
    hold. They belong to the thread, or the task of an event loop, that entered them; others have the whole model.
    `Lens.bridge` and `Lens.nnsight` have modules of their own over the same weights, and stay whole. Positions, as in
    ``L12[7]``, count from the start of a row; padding on the left counts.

    Args:
        lens: A loaded model.
        condition: Such as ``L11+L9.H3``, or a head.
        resample_prompt: What ``@resample`` takes the states of.

    Yields:
        ``lens.model``.

    Raises:
        UserError: a condition that the model does not have, or ``@mean``, which needs a set of texts.

    Example:
        >>> inputs = lens.tokenizer("The capital of Denmark is", return_tensors="pt")
        >>> with dl.ablated(lens, "L2"):
        ...     written = lens.model.generate(inputs.input_ids, max_new_tokens=4)
    """
    arguments.loaded(lens)
    lens.needs_weights("ablated")
    named = Head(*condition) if isinstance(condition, tuple) else condition
    chosen = parse_condition(str(named)).validate(lens.dims)
    pairs.require(lens, [chosen], "torch")
    prompt, means = _resampled(lens, [chosen], resample_prompt)
    with entered(in_force.Entered(lens, chosen, means, prompt)):
        yield lens.model


@dataclass(frozen=True, eq=False)
class LogitLens(Drawable):
    """What each layer would say next, by `logit_lens`.

    Attributes:
        tokens: Text of each token of the prompt. Shape [pos].
        says: Text of the likeliest next token. Shape [depth, pos]; depth 0 is the embedding, and the last is the model.
        probability: Of that token. Shape [depth, pos].
        entropy: Of the whole distribution, in nats. Shape [depth, pos].
    """

    tokens: tuple[str, ...]
    says: np.ndarray
    probability: np.ndarray
    entropy: np.ndarray

    @property
    def table(self) -> pd.DataFrame:
        """One row a depth and position: ``depth``, ``position``, ``token``, ``says``, ``probability``, ``entropy``."""
        shape = self.says.shape
        depth, position = (at.ravel() for at in np.indices(shape))
        columns = {name: getattr(self, name).ravel() for name in ("says", "probability", "entropy")}
        return pd.DataFrame({"depth": depth, "position": position, "token": np.tile(self.tokens, shape[0])} | columns)

    def __repr__(self) -> str:
        last = [f"{text!r} {p:.2f}" for text, p in zip(self.says[:, -1], self.probability[:, -1], strict=True)]
        return f"LogitLens of {len(self.tokens)} tokens; after the last one, by depth: {', '.join(last)}"


@one_thread
@torch.no_grad()
def logit_lens(lens: Lens, text: str) -> LogitLens:
    """What a model would say next if it ended after each layer (nostalgebraist 2020).

    The final norm and the unembedding read the residual stream after every layer. Early layers do not write for the
    unembedding, so that the lens understates what they hold.

    Args:
        lens: A loaded model.
        text: Any.

    Raises:
        UserError: an empty text, or a model whose layers cannot be walked.

    Example:
        >>> found = dl.logit_lens(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo")
        >>> found.says.shape, found.says[-1, -1]
        ((7, 9), 'Dora')
        >>> figure = found.plot()
    """
    tokens = tokens_of(lens, text)
    states = torch.stack(residual_streams(lens, tokens))  # [depth, pos, d_model]
    says, probability, _, entropy = unembedded(lens, states.flatten(0, 1)).unflatten(1, states.shape[:2])
    texts = np.array(words(lens, says.long().ravel().tolist()), dtype=object).reshape(says.shape)
    return LogitLens(words(lens, tokens), texts, probability.numpy(), entropy.numpy())


@dataclass(frozen=True, eq=False)
class States:
    """What `residual` found.

    Attributes:
        values: The residual stream, float32. Shape [text, depth, d_model].
        depths: How many layers each state has passed: 0 is the embedding, and layer L reads depth L. Shape [depth].
        texts: Those that were given. Shape [text].
        tokens: Text of the token that is read. Shape [text].
    """

    values: Float[np.ndarray, "text depth d_model"]
    depths: tuple[int, ...]
    texts: tuple[str, ...]
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        return f"States {[*self.values.shape]} [text, depth, d_model] at depths {[*self.depths]}"


@one_thread
@torch.no_grad()
def residual(
    lens: Lens, texts: str | Sequence[str], depths: Sequence[int] | None = None, position: int | Sequence[int] = -1
) -> States:
    """The residual stream of texts at one token of each, before layers; inside `dl.ablated` that of the model there.

    Args:
        lens: A loaded model.
        texts: Any.
        depths: How many layers the states have passed, such as 12 for what layer 12 reads; None: 0 to all.
        position: Of the token, in all texts or in each; negative counts from the end.

    Raises:
        UserError: no texts, a depth or a token that there is not, or a model whose layers cannot be walked.

    Example:
        >>> found = dl.residual(lens, ["Ada Ben SEP Cleo Dora SEP QA Cleo", "Ada Ben SEP QA Ada"])
        >>> found.values.shape, found.tokens
        ((2, 7, 256), ('Cleo', 'Ada'))
    """
    given = [texts] if isinstance(texts, str) else [*texts]
    every = range(lens.dims.n_layers + 1)
    chosen = [*every] if depths is None else arguments.layers("depths", [*depths], len(every))
    at = [position] * len(given) if isinstance(position, int) else [*position]
    if len(at) != len(given) or not given:
        raise UserError(f"position: {len(at)} for {len(given)} texts; give some texts, and one number or one for each")
    found: list[np.ndarray] = []
    tokens: list[str] = []
    for text, place in zip(given, at, strict=True):
        ids = tokens_of(lens, text)
        if not -len(ids) <= place < len(ids):
            fault = f"position {place}: {text!r} has {len(ids)} tokens"
            raise UserError(f"{fault}; give a number from {-len(ids)} to {len(ids) - 1}")
        streams = residual_streams(lens, ids)
        found.append(torch.stack([streams[depth][place].float() for depth in chosen]).numpy())
        tokens += words(lens, [ids[place]])
    return States(np.stack(found), tuple(chosen), tuple(given), tuple(tokens))


@dataclass(frozen=True, eq=False, repr=False)
class Attention(View):
    """Where heads look, by `attention`: in Jupyter one token is chosen, and each head shades what it looks at.

    Attributes:
        tokens: Text of each token. Shape [pos].
        heads: Those that are shown. Shape [head].
        pattern: Share of a token's attention that goes to each token, after the softmax: a row sums to 1, or to less
            where the model has a sink outside the text. Shape [head, query, key].
        query: The token that is chosen first.
    """

    title: ClassVar[str] = "Where heads look"

    tokens: tuple[str, ...]
    heads: tuple[Head, ...]
    pattern: np.ndarray
    query: int

    @cached_property
    def data(self) -> dict[str, Any]:
        """What the script reads; weights are thousandths, of each token those of the tokens up to itself."""
        weights = self.pattern[:, *np.tril_indices(len(self.tokens))]
        return {
            "tokens": self.tokens,
            "heads": list(map(str, self.heads)),
            "weights": np.round(1000 * weights).astype(int).tolist(),
            "start": {"query": self.query},
        }

    @property
    def largest(self) -> pd.DataFrame:
        """Of each head the tokens that ``query`` looks at most: ``head``, ``token``, ``position``, ``weight``."""
        rows = []
        for head, weights in zip(self.heads, self.pattern[:, self.query], strict=True):
            for key in np.argsort(-weights, kind="stable")[:N_MOST]:
                rows.append({"head": str(head), "token": self.tokens[key], "position": key, "weight": weights[key]})
        return pd.DataFrame(rows)

    def table(self) -> str:
        """What stands where no script runs: `largest`."""
        token = escape(self.tokens[self.query])
        return f"<p>Token {self.query} {token} looks at:</p>{self.largest.round(3).to_html(index=False)}"

    def __repr__(self) -> str:
        return (
            f"Attention of {len(self.heads)} heads over {len(self.tokens)} tokens; token {self.query} looks at\n"
            f"{self.largest.head(20).round(3).to_string(index=False)}"
        )


@one_thread
def attention(
    lens: Lens, text: str | Sequence[int], heads: AnyHead | Sequence[AnyHead] | None = None, *, query: int = -1
) -> Attention:
    """Where heads look in a text: a layer's, some, or all.

    Args:
        lens: A loaded model.
        text: Any; or its token ids.
        heads: A layer such as ``L17``, a head such as ``L17.H3`` or ``(17, 3)``, or a list of heads; None: all.
        query: The token that is chosen first where it is shown; negative counts from the end.

    Raises:
        UserError: an empty text, or a head or layer that the model does not have.
        IndexError: a query that the text does not have.

    Example:
        >>> found = dl.attention(lens, "Ada Ben SEP Cleo Dora SEP QA Cleo", "L2.H1")
        >>> found.largest[["head", "token", "position"]].head(1)
            head token  position
        0  L2.H1  Dora         5
    """
    tokens = tokens_of(lens, text)
    query = range(len(tokens))[query]
    if heads is None:
        heads = [f"L{layer}" for layer in range(lens.dims.n_layers)]
    one = isinstance(heads, str) or (len(heads) > 0 and isinstance(heads[0], int))
    asked: Sequence[Any] = [heads] if one else heads
    chosen = list(dict.fromkeys(head for part in asked for head in _heads(lens, part)))
    places = {head: i for i, head in enumerate(chosen)}
    pattern = np.zeros((len(chosen), len(tokens), len(tokens)), dtype=np.float32)

    def see(layer: int, of_layer: torch.Tensor, _: torch.Tensor) -> None:
        for head, values in enumerate(of_layer):
            if (at := places.get(Head(layer, head))) is not None:
                pattern[at] = values.cpu()

    attention_patterns.read(lens, tokens, range(len(tokens)), see)
    return Attention(words(lens, tokens), tuple(chosen), pattern, query)


def _heads(lens: Lens, asked: AnyHead) -> list[Head]:
    """The heads of a layer, or one head."""
    text = asked if isinstance(asked, str) else str(Head(*asked))
    part, *more = parse_condition(text).validate(lens.dims).ablations or [None]
    if part is None or more or part.suffix or part.site not in ("layer", "head"):
        raise UserError(f"{text} is no layer or head; write L17 or L17.H3")
    numbers = [part.index] if part.site == "head" else lens.dims.indices("head", part.layer)
    return [Head(part.layer, number) for number in numbers]


def words(lens: Lens, tokens: Sequence[int]) -> tuple[str, ...]:
    """The text of each token."""
    return tuple(str(lens.tokenizer.decode([token])) for token in tokens)


def _resampled(
    lens: Lens, conditions: Sequence[Condition], prompt: str | None
) -> tuple[tuple[int, ...] | None, Means | None]:
    """The prompt whose states ``@resample`` conditions take, and these, if there are any."""
    given = [] if prompt is None else [prompt]
    found = prompts_of_resample(lens, conditions, given, "resample_prompt")
    return (found[0], states_of(lens, found[0], conditions)) if found else (None, None)


def states_of(lens: Lens, tokens: Sequence[int], conditions: Sequence[Condition]) -> Means:
    """What a prompt has at the sites that ``@resample`` conditions ask for."""
    (reference,) = Reference("another prompt", ()).with_prompts([tokens], conditions)
    return reference.measure(lens)
