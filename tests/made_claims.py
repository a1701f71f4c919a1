"""Synthetic profiles for the study's claims: under every view and few-shot seed, of models whose truth is known.

A document is broken by the removal of a layer with a stated probability. What is broken is broken under every protocol:
a choice becomes a guess, and what is written becomes wrong, often so that no answer can be parsed; a written letter
that can be parsed is a guess, too. Formats are lost apart from that. Nats fall by what a broken answer costs, token by
token. The last part simulates the removal of heads: they are chosen on documents by an attribution, and removed on
the same or on others.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import made_results
import numpy as np
import pandas as pd
from scipy.stats import norm

from depthlens.analysis import stats
from depthlens.analysis.layer_profiles import Profile
from depthlens.analysis.removal_contrasts import Costs, interaction_table, ratio_table
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.claims import distilled, layers
from depthlens.claims.estimates import Sweeps
from depthlens.metrics import ANSWER_LOGPROB

N_LAYERS = 18
LAYERS = np.arange(N_LAYERS)
THIRD = LAYERS * 3 // N_LAYERS
CHANCE, UNPARSED = 0.25, 0.7  # of a guess among four options; of what a broken model writes
SUFFIXES = ("", "[1:]", "@mean")
MODEL, CONTROL = "model", "control"


@dataclass(frozen=True)
class Task:
    """What the removal of each layer does to one task.

    Attributes:
        name: Of the task.
        broken: Probability that a document breaks, by layer. Shape [layer].
        protocol: ``choice``, ``letter`` (written), ``written`` or ``nats`` (per answer token).
        base: Score of the whole model.
        formats: Probability that a written answer loses its format though it is right. Shape [layer] or a number.
        questions: Tasks with the same questions have the same name here.
    """

    name: str
    broken: np.ndarray
    protocol: str
    base: float
    formats: np.ndarray | float
    questions: str


@dataclass
class World:
    """Draws of documents; tasks of the same questions share what makes a document hard, and what makes it fragile.

    Attributes:
        rng: Of all draws.
        n: Documents of each task.
        seed_sd: Standard deviation between few-shot seeds, of the latent score.
        fragility: Share of the variance of what breaks a document that is common to all layers and tasks.
        alike: Share of the scores (document by document and layer by layer) that are the same under every view.
    """

    rng: np.random.Generator
    n: int
    seed_sd: float
    fragility: float = 0.4
    alike: float = 0.0
    hard: dict[str, np.ndarray] = field(default_factory=dict)
    fragile: dict[str, np.ndarray] = field(default_factory=dict)

    def sweeps(self, *tasks: Task, model: str = MODEL, seeds: int = 3) -> Sweeps:
        """Profiles by view, one a few-shot seed."""
        return [self._sweep(tasks, model).__getitem__ for _ in range(seeds)]

    def _sweep(self, tasks: tuple[Task, ...], model: str) -> dict[str, list[Profile]]:
        by_view: dict[str, list[Profile]] = {suffix: [] for suffix in SUFFIXES}
        for task in tasks:
            base, *scores = self._scores(task)
            first = tuple(x[:, :N_LAYERS] for x in scores)
            by_view[SUFFIXES[0]].append(profile := self._profile(task, model, base, *first))
            for i, suffix in enumerate(SUFFIXES[1:], 1):
                if self.alike < 1:  # else all views have one and the same profile
                    own = tuple(x[:, i * N_LAYERS : (i + 1) * N_LAYERS] for x in scores)
                    profile = self._profile(task, model, base, *self._mixed(first, own))
                by_view[suffix].append(profile)
        return by_view

    def _mixed(self, first: tuple[np.ndarray, ...], own: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        """Scores of a view, of which a share is that of the first view."""
        if not self.alike:
            return own
        same = self.rng.random(own[0].shape) < self.alike
        return tuple(np.where(same, a, b) for a, b in zip(first, own, strict=True))

    def _profile(self, task: Task, model: str, base: np.ndarray, values: np.ndarray, parsed: np.ndarray) -> Profile:
        floor = {"choice": CHANCE, "letter": 0.0, "written": 0.0, "nats": None}[task.protocol]
        about = {"model": model, "task": task.name, "label": task.name, "parsed": None if parsed.all() else parsed}
        about["documents"] = tuple(f"{task.questions}:{i}" for i in range(self.n))
        about["at_chance"] = floor is not None and not stats.above_chance(base, float(floor)) < stats.ALPHA
        metric = "token_logprob" if floor is None else "acc"
        return made_results.profile(base, values, floor, metric=metric, binary=floor is not None, **about)

    def _scores(self, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Scores of the whole model [document], without layers, and whether these were parsed [document, condition]."""
        rng, n = self.rng, self.n
        hard = self.hard.setdefault(task.questions, rng.standard_normal(n))
        fragile = self.fragile.setdefault(task.questions, rng.standard_normal((n, 1)))
        shift = self.seed_sd * rng.standard_normal(2)
        latent = np.sqrt(0.8) * hard + np.sqrt(0.2) * rng.standard_normal(n)  # a seed decides a part of each document
        right = norm.cdf(latent) < norm.cdf(norm.ppf(task.base) + shift[0])
        m = len(SUFFIXES) * N_LAYERS
        rate = np.tile(np.clip(task.broken, 1e-9, 1 - 1e-9), len(SUFFIXES))
        noise = np.sqrt(self.fragility) * fragile + np.sqrt(1 - self.fragility) * rng.standard_normal((n, m))
        broken = norm.cdf(noise) < norm.cdf(norm.ppf(rate) + shift[1])
        parsed = np.ones((n, m), dtype=bool)
        if task.protocol == "nats":
            whole = -np.exp(0.5 * latent)  # skewed, as surprisals are
            return whole, whole[:, None] - broken * np.exp(0.5 * rng.standard_normal((n, m))), parsed
        if task.protocol == "choice":
            after = np.where(broken, rng.random((n, m)) < CHANCE, right[:, None])
        else:
            lost = rng.random((n, m)) < np.tile(np.broadcast_to(task.formats, N_LAYERS), len(SUFFIXES))
            parsed = ~lost & ~(broken & (rng.random((n, m)) < UNPARSED))
            guess = rng.random((n, m)) < CHANCE if task.protocol == "letter" else False
            after = parsed & np.where(broken, guess, right[:, None])
        return right.astype(float), after.astype(float), parsed


# probability that a document breaks, by layer
EARLY = np.where(LAYERS < 2, 0.9, np.where(THIRD == 0, 0.4, 0.03))
LATE = np.where(LAYERS < 2, 0.9, np.where(THIRD == 0, 0.03, 0.3))
FLAT = np.where(LAYERS < 2, 0.9, 0.15)
FEW = np.where(LAYERS < 2, 0.9, 0.01)
NONE = np.zeros(N_LAYERS)
# task, protocol and questions of each role
ROLES = {
    "letters": ("facts_letters", "choice", "facts"),
    "generation": ("facts_written", "letter", "facts"),
    "continuation": ("facts", "choice", "facts"),
    "retrieval": ("kv", "choice", "kv"),
    "text": ("text", "choice", "text"),
    "reasoning": ("sums", "written", "sums"),
    "copying": ("copies", "written", "sums"),
    "reasoning_choice": ("sums_choice", "choice", "sums"),
    "reasoning_tokens": ("sums_choice", "nats", "sums"),
    "knowledge_tokens": ("facts", "nats", "facts"),
    "retrieval_tokens": ("kv", "nats", "kv"),
    "text_tokens": ("text", "nats", "text"),
    "control_reasoning": ("sums_choice", "choice", "sums"),
    "control_knowledge": ("facts", "choice", "facts"),
}

# what breaks in nats where nothing else is said
IN_NATS = {"retrieval_tokens": "retrieval", "text_tokens": "text"}


def sweeps(broken, *, n=150, seed=0, seeds=3, formats=0.0, base=0.85, seed_sd=0.15, fragility=0.4, alike=0.0):
    """Sweeps of every role, by its name.

    Args:
        broken: How often documents break by layer, for all roles or by role ("rest": all others).
        n: Documents of each task.
        seed: Of the draws.
        seeds: Few-shot seeds.
        formats: Share of written answers that lose their format, by layer.
        base: Score of the whole model, for all roles or by role.
        seed_sd: See `World`.
        fragility: See `World`.
        alike: See `World`; 1 is the hardest case for a claim that is not true, because no view can then disagree.
    """
    world = World(np.random.default_rng(seed), n, seed_sd, fragility, alike)

    def of(values, role):
        return (
            values.get(role, values.get(IN_NATS.get(role), values.get("rest"))) if isinstance(values, dict) else values
        )

    return {
        role: world.sweeps(
            Task(name, of(broken, role), protocol, of(base, role), formats, questions),
            model=CONTROL if role.startswith("control") else MODEL,
            seeds=seeds,
        )
        for role, (name, protocol, questions) in ROLES.items()
    }


def parts(claim: str, of: dict[str, Sweeps], **options):
    """The parts of a claim on layers, or of the shift of C6."""
    if claim == "C1":
        return layers.few_harmful({name: of[name] for name in ("letters", "continuation")}, **options)
    if claim == "C2":
        return layers.generation_costs_more(of["letters"], of["generation"], **options)
    if claim == "C3":
        guard = [sweep for role in ("continuation", "retrieval", "text") for sweep in of[role]]
        shallow = ((name, of[f"{name}_tokens"]) for name in ("knowledge", "retrieval"))
        return [layers.shallow(name, own, of["text_tokens"], guard=guard, **options) for name, own in shallow]
    if claim == "C4":
        names = ("reasoning", "copying", "reasoning_tokens", "knowledge_tokens")
        guard = [*of["reasoning_choice"], *of["continuation"]]
        return layers.reasoning_deeper(*(of[name] for name in names), guard, **options)
    if claim == "C6":
        names = ("reasoning_choice", "continuation", "control_reasoning", "control_knowledge")
        return [distilled.shifted(*(of[name] for name in names), **options)]
    assert claim == "C7", claim
    names = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")
    return layers.depth_trend([of[name] for name in names], **options)


# -- heads ---------------------------------------------------------------------------------------------------------

TASKS = {"retrieval": "kv", "reasoning": "sums"}
TOP, DRAWS = 4, 40
FOUND = 10.0  # nats that an attribution gives to heads for the format
ACCURACY = "acc"


def evidence(*, seed, n=60, shape=(6, 8), likeness=1.0, effect=0.0, both=False, tokens=1, formats=0.0, reuse=False):
    """A curve, and what chose its lists.

    Args:
        seed: Of the draws.
        n: Documents that test.
        shape: Layers and heads.
        likeness: Correlation of attribution with the loss, document by document.
        effect: Mean loss of the planted heads, `TOP` for each task, on their own task, in nats; or by list.
        both: Whether the planted heads of one task cost as much on the other.
        tokens: Tokens of a solution, each of which loses what a token of a retrieved answer does.
        formats: Probability that a solution cannot be parsed without one of the planted heads of reasoning. It costs no
            nats, and the attribution finds these heads.
        reuse: Whether the documents that test also choose.
    """
    rng = np.random.default_rng(seed)
    heads = [(layer, head) for layer in range(shape[0]) for head in range(shape[1])]
    # one head a layer, so that random heads of the same layers are others
    planted = {"retrieval": [heads.index((i, 0)) for i in range(TOP)]}
    planted["reasoning"] = [heads.index((shape[0] - 1 - i, 1)) for i in range(TOP)]
    losses, chosen_by = {}, {}
    for name, task in TASKS.items():
        mean = np.zeros(len(heads))
        for other, at in planted.items():
            mean[at] += (effect[other] if isinstance(effect, dict) else effect) * (both or other == name)
        long, unread = (tokens, formats) if name == "reasoning" else (1, 0.0)
        loss, estimate = _losses(rng, n, mean, likeness, long)
        estimate[:, planted[name]] += FOUND * (unread > 0)
        losses[task] = loss[:n]
        chosen_by[name] = estimate[:n] if reuse else estimate[n:]
    lists = {name: [heads[i] for i in np.argsort(-x.mean(0))[:TOP]] for name, x in chosen_by.items()}
    draws = {name: [_draw(of, shape[1], rng) for _ in range(DRAWS)] for name, of in lists.items()}
    found, tests = [], []
    for task, loss in losses.items():
        hard = rng.standard_normal(n)
        unparsed = np.zeros(loss.shape, dtype=bool)
        if task == TASKS["reasoning"] and formats:
            unparsed[:, planted["reasoning"]] = rng.random((n, TOP)) < formats
        for metric in (ACCURACY, ANSWER_LOGPROB):

            def cost(of, loss=loss, hard=hard, unparsed=unparsed, metric=metric):
                at = [heads.index(h) for h in of]
                return _cost(loss[:, at].sum(1), hard, unparsed[:, at].any(1), metric)

            own = {name: cost(of) for name, of in lists.items()}
            rivals = {name: np.stack([cost(of) for of in orders]) for name, orders in draws.items()}
            scale = 1.0 if metric == ANSWER_LOGPROB else float((hard < 1).mean())
            means = {name: x.mean(0) for name, x in rivals.items()}
            found.append(Costs(task, metric, False, own, means, scale, (task,)))
            for name in lists:
                others = rivals[name].mean(1)
                p, cheaper = (
                    (1 + int(n)) / (1 + DRAWS)
                    for n in ((others >= own[name].mean()).sum(), (others <= own[name].mean()).sum())
                )
                tests.append((name, task, metric, p, cheaper, 1 / (1 + DRAWS), False))
    curve = _curve(found, tests, n)
    documents = range(n) if reuse else range(n, 2 * n)
    scores = {}
    for name, x in chosen_by.items():
        values, record = x.mean(0).reshape(shape), {"tasks": [TASKS[name]], "samples": list(documents)}
        made = made_results.head_scores(values, name, "nats", n=n)
        scores[name] = replace(made, low=values, high=values, record=record)
    return curve, scores


def _losses(rng, n, mean, likeness, tokens):
    """What removing each head costs each of 2 n documents, and what an attribution says it costs."""
    noise = rng.standard_normal((2 * n, len(mean))) * (1 + rng.exponential(1.0, (1, len(mean))))
    loss = mean * tokens + noise * tokens**0.5
    off = rng.standard_normal(loss.shape) * loss.std(0)
    return loss, likeness * loss + np.sqrt(1 - likeness**2) * off


def _cost(lost, hard, unparsed, metric):
    """What heads cost each document that lose it so many nats, and its format or not."""
    if metric == ANSWER_LOGPROB:
        return lost
    return (hard < 1).astype(float) - ((hard + lost / 8 < 1) & ~unparsed)


def _curve(found, tests, n):
    table = pd.DataFrame(tests, columns=["list", "task", "metric", "p_value", "p_cheaper", "smallest_p", "at_chance"])
    result = made_results.result({task: {"baseline": [1.0] * n} for task in TASKS.values()}, metric=ACCURACY)
    curve = RemovalCurve(pd.DataFrame(), pd.DataFrame(), table, result, {"n_draws": DRAWS})
    # cached properties, known here
    curve.__dict__.update(ratio=ratio_table(found), interactions=interaction_table(found))
    return curve


def _draw(of, n_heads, rng):
    order = {layer: list(rng.permutation(n_heads)) for layer in {layer for layer, _ in of}}
    return [(layer, int(order[layer].pop())) for layer, _ in of]
