"""What the claims are judged by: sweeps of layers and curves of heads, made as they are needed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import numpy as np
import pandas as pd

from depthlens import arguments
from depthlens.ablations import BASELINE, WORDS, AnyHead
from depthlens.analysis.result.concat import concat
from depthlens.analysis.result.losses import broken_condition
from depthlens.analysis.result.profiles import third_conditions
from depthlens.analysis.result.results import Result
from depthlens.arguments import EvalOptions
from depthlens.claims.claims import Claim, chosen_claims
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import NOT_MEASURED, odds
from depthlens.claims.parts import OPEN, ROWS, Part, missing, worst
from depthlens.claims.verdicts import Verdicts
from depthlens.errors import UserError
from depthlens.experiments.condition_runs import load_tasks, settled
from depthlens.experiments.head_curves import removal_curve
from depthlens.experiments.reasoning_heads import reasoning_scores
from depthlens.experiments.retrieval_heads import retrieval_scores
from depthlens.experiments.sweep import OF_FREE_TEXT, condition_sweep, free_text
from depthlens.metrics import TOKEN_LOGPROB
from depthlens.models.lens import Lens, one_thread

EMBEDDED = {
    "letters": ["capitals_default", "elements_default"],
    "generation": ["capitals_letters_generative", "elements_letters_generative"],
    "continuation": ["capitals_continuation", "elements_continuation"],
    "retrieval": ["kv_retrieval_4_continuation", "kv_retrieval_words_16_continuation"],
    "open_book": ["capitals_open_book", "elements_open_book"],
    "text": ["plain_text_many_continuation"],
    "long_text": ["plain_text_many_long_continuation"],
    "reasoning": ["arithmetic_cot"],
    "reasoning_continuation": ["arithmetic_continuation"],
    "copying": ["solution_copy"],
    "reasoning_choice": ["arithmetic_step_continuation"],
    "written_retrieval": ["kv_retrieval_4"],
}
_SAID = arguments.described(Evidence)
ROLES = {role: _SAID[role][1] for role in EMBEDDED if role in _SAID}
ROLES["written_retrieval"] = (
    "Retrieval tasks with written answers, such as kv_retrieval_4; heads are found on the first."
)
# roles whose tasks are also measured in nats per answer token
NATS = ("continuation", "retrieval", "text", "long_text", "reasoning", "copying", "reasoning_choice")
# roles whose answers are long enough that options of writing are for them
WRITTEN, WRITING = ("reasoning", "copying"), ("gen_kwargs", "think_end_token")
LOOKS = (25, 50, 100, 200, 400)  # documents; `depthlens.claims.parts.LEVEL` is for as many looks
OF_SCORES = ("num_fewshot", "include_path", "seed", "store")  # options of scores of heads
# by claim and role, the role that it is compared with in depth
RIVALS = {
    ("C3", "continuation"): "text", ("C3", "text"): "continuation",
    ("C3", "retrieval"): "long_text", ("C3", "long_text"): "retrieval",
    ("C4", "reasoning"): "copying", ("C4", "copying"): "reasoning",
    ("C4", "reasoning_choice"): "continuation", ("C4", "continuation"): "reasoning_choice",
}  # fmt: skip
POOL = 400  # documents that the whole model scores, to choose from
EDGE = 0.05  # the share of them at either end that is not chosen
_TIMES = {"margins": 0, "heads": 10, "texts": 10, "generation": 4}  # how much longer than others a piece takes, about
DRAWS = 40  # random lists that each list of heads is compared with
Tasks = Mapping[str, str | Sequence[str]]


def roles_of(tasks: Tasks) -> dict[str, list[str]]:
    """Tasks by role, as lists.

    Raises:
        UserError: no mapping, or an unknown role.
    """
    if not isinstance(tasks, Mapping):
        raise UserError(f"tasks {tasks!r}: give tasks by role, as {{'letters': ['mmlu']}}")
    for role in tasks:
        arguments.one_of(*ROLES)("role of tasks", role)
    return {role: [names] if isinstance(names, str) else list(names) for role, names in tasks.items() if names}


class Piece(NamedTuple):
    """A sweep that evidence is made of.

    Attributes:
        field: Of `Evidence`.
        role: Of its tasks.
        of: ``model``, ``base`` or ``control``.
        rival: The role whose documents its own should be as easy as; without tasks of it all documents count.
    """

    field: str
    role: str
    of: str = "model"
    rival: str = ""


class Sweeps:
    """Sweeps of a model and its kin, each made when it is first asked for with so many documents.

    The documents of a task come in a random order that is fixed, so that more documents are those before and others.

    Args:
        models: The model that is judged, and ``base`` and ``control`` where they are given.
        tasks: Tasks by role.
        top: Heads of each list.
        options: `EvalOptions`.

    Raises:
        UserError: a task that cannot be loaded.
    """

    def __init__(self, models: Mapping[str, Lens], tasks: dict[str, list[str]], top: int, options: EvalOptions) -> None:
        self.models, self.tasks = models, tasks
        self.top, self.options = min(top, len(models["model"].dims.head_names) - 1), options
        self._made: dict[tuple[Piece, int], Any] = {}
        self._seconds: dict[Piece, tuple[int, float]] = {}  # documents of the latest, and all that it took
        every = list(dict.fromkeys(name for names in tasks.values() for name in names))
        loading: Any = {name: value for name, value in options.items() if name not in WRITING}
        self._loaded = load_tasks(every, settled(loading))
        groups = [self._group(leaf) for leaf in self._loaded]
        self._members = {leaf: groups.count(self._group(leaf)) for leaf in self._loaded}

    def _group(self, leaf: str) -> str:
        member = self._loaded[leaf].depthlens_group
        return member.group if member else leaf

    def pieces(self, claim: Claim) -> list[Piece]:
        """What a claim is judged by, as far as there are tasks and models for it."""
        roles = [role for role in claim.needs if role in self.tasks]
        nats = [role for role in roles if role in NATS and "tokens" in claim.needs]
        if "control" in claim.needs:  # what moved in depth is asked of steps, not of whole solutions
            nats = [role for role in nats if role != "reasoning"]
        found = [Piece(role, role) for role in roles]
        found += [Piece("tokens", role, rival=RIVALS.get((claim.id, role), "")) for role in nats]
        found += [Piece("margins", role) for role in nats if "margins" in claim.needs]
        found += [Piece("texts", "")] * ("texts" in claim.needs and bool(roles))
        if "base" in claim.needs and "base" in self.models:
            found += [Piece("base", role, "base") for role in nats]
            found += [Piece("transplants", "reasoning", "base")] * ("reasoning" in self.tasks)
        if "control" in claim.needs and "control" in self.models:
            found += [Piece(field, role, "control") for role in nats for field in ("control", "margins")]
        if "heads" in claim.needs and {"written_retrieval", "reasoning"} <= {*self.tasks}:
            found.append(Piece("heads", "written_retrieval"))
        return found

    def evidence(self, claim: Claim, n: int) -> Evidence:
        """What a claim is judged by, with so many documents of each task."""
        made: dict[str, list[Any]] = {}
        for piece in self.pieces(claim):
            made.setdefault(piece.field, []).append(self._one(piece, n))
        heads = made.pop("heads", [{}])[0]
        several: dict[str, Any] = {name: of if name == "margins" else _joined(of) for name, of in made.items()}
        return Evidence(**several | heads)

    def parts(self, claim: Claim, n: int) -> list[Part]:
        """The parts of a claim, with how long it takes to decide those that are open."""
        found = claim.parts(self.evidence(claim, n))
        return [replace(of, minutes=self.predicted(claim, of.needed)[0] / 60) if of.needed else of for of in found]

    def predicted(self, claim: Claim, n: int) -> tuple[float, float]:
        """Seconds that evidence on a claim would take, by what fewer documents took; and those of what was never made.

        These are guessed from the mean of what was.
        """
        missing = [piece for piece in self.pieces(claim) if _key(piece, n) not in self._made]
        known = [self._seconds[piece] for piece in missing if piece in self._seconds]
        new = sum(_TIMES.get(piece.field, 1) for piece in missing if piece not in self._seconds)
        mean = np.mean([n * seconds / before for before, seconds in self._seconds.values()] or [1.0])
        return sum(seconds * max(n / before - 1, 0) for before, seconds in known), float(new * mean)

    def has_more(self, claim: Claim, looks: int) -> bool:
        """Whether another look would have other documents than so many had."""
        names = {name for piece in self.pieces(claim) if piece.role for name in self.tasks[piece.role]}
        chosen = [leaf for leaf in self._loaded if {leaf, self._group(leaf)} & names]
        sizes = [len(self._loaded[leaf].eval_docs) * self._members[leaf] for leaf in chosen]
        return looks < len(LOOKS) and max(sizes, default=0) > LOOKS[looks - 1]

    def _one(self, piece: Piece, n: int) -> Any:
        """A piece with so many documents; its answers on fewer are read from the store."""
        key = _key(piece, n)
        if key not in self._made:
            start = time.monotonic()
            self._made[key] = self._make(*key)
            spent = self._seconds.get(piece, (0, 0.0))[1]
            self._seconds[piece] = key[1], spent + time.monotonic() - start
        return self._made[key]

    def _make(self, piece: Piece, n: int) -> Any:
        if piece.field == "heads":
            return self._heads(n)
        if piece.field == "texts":
            own: Any = {name: value for name, value in self.options.items() if name in OF_FREE_TEXT}
            return free_text(self.models["model"], n_prompts=n, **own)
        lens, names = self.models[piece.of], self.tasks[piece.role]
        unused = () if piece.role in WRITTEN else WRITING
        kept: Any = {name: value for name, value in self.options.items() if name not in unused}
        easy = self._as_easy(piece) if piece.rival in self.tasks else {}
        options: EvalOptions = {**kept, "samples": self._samples(names, n, easy=easy)}
        ablate = [WORDS["layer"], broken_condition(lens.dims.n_layers)]
        if piece.field == "margins":
            shots = self.options.get("num_fewshot")
            options |= {"seed": self.options.get("seed", 0) + 1, "num_fewshot": 1 if shots == 0 else shots}
            ablate = [str(BASELINE)]
        if piece.field == "transplants":
            thirds = [f"{third}@donor" for third in third_conditions(lens.dims.n_layers)]
            options |= {"samples": self._samples(names[:1], n), "donor": self.models["model"]}
            return condition_sweep(lens, names[:1], thirds, **options)
        if piece.field != piece.role:
            options["measure"] = TOKEN_LOGPROB
        return condition_sweep(lens, names, ablate, **options)

    def _samples(
        self, names: Sequence[str], n: int, *, turn: int | None = None, easy: Mapping[str, set[int]] | None = None
    ) -> dict[str, list[int]]:
        """So many documents of tasks, of a group as many as of a task; tasks of equal size have the same ones.

        Args:
            names: Of tasks and groups.
            n: Documents.
            turn: Every other document, from the first or the second on; None: all of them in turn.
            easy: By task, the documents that may be chosen; of a task without, and of a group, all may be.
        """
        found = {}
        for leaf in (leaf for leaf in self._loaded if {leaf, self._group(leaf)} & {*names}):
            random = np.random.default_rng(self.options.get("seed", 0))
            order = [int(i) for i in random.permutation(len(self._loaded[leaf].eval_docs))]
            if may := (easy or {}).get(leaf):
                order = [i for i in order if i in may]
            some = order if turn is None else order[turn::2]
            found[leaf] = some[: -(-n // self._members[leaf])]
        return found

    def _as_easy(self, piece: Piece) -> dict[str, set[int]]:
        """By task, documents of a piece whose log-odds are within those of its role and of its rival."""
        pools = [self._one(Piece("margins", role, piece.of), POOL).docs for role in (piece.role, piece.rival)]
        scores = [odds(pool["value"].to_numpy(dtype=float)) for pool in pools]
        ends = np.quantile(scores[0], [EDGE, 1 - EDGE]), np.quantile(scores[1], [EDGE, 1 - EDGE])
        low, high = np.max(ends, axis=0)[0], np.min(ends, axis=0)[1]
        kept = pools[0][(low <= scores[0]) & (scores[0] <= high)]
        return {str(task): set(of["doc_id"]) for task, of in kept.groupby("task") if task in self._loaded}

    def _heads(self, n: int) -> dict[str, Any]:
        """Lists of heads that every other document chooses, and their removal on those between them."""
        lens, written, solved = self.models["model"], self.tasks["written_retrieval"][0], self.tasks["reasoning"][0]
        copied, computed = ({"samples": self._samples([name], n, turn=0)} for name in (written, solved))
        testing = self._samples([written, solved], n, turn=1)
        scoring: Any = {name: value for name, value in self.options.items() if name in OF_SCORES} | {"progress": False}
        try:
            scores = {
                "retrieval": retrieval_scores(lens, written, method="integrated_gradients", **scoring | copied),
                "reasoning": reasoning_scores(lens, solved, method="attribution", **scoring | computed)["contrast"],
            }
        except UserError as error:  # such as a model that recalls no answer
            print(f"no heads are found: {error}")
            return {}
        lists: dict[str, Sequence[AnyHead]] = {name: heads.top(self.top) for name, heads in scores.items()}
        asked: Any = {**self.options, "samples": testing, "k": self.top}
        curve = removal_curve(lens, [written, solved], lists, n_draws=DRAWS, **asked)
        tasks = {"retrieval": written, "reasoning": solved}
        return {"heads": curve, "head_tasks": tasks, "head_scores": scores}


def _key(piece: Piece, n: int) -> tuple[Piece, int]:
    """A piece and its documents: the whole model scores the pool, however many are removed from."""
    return piece, POOL if piece.field == "margins" else n


def _joined(results: Sequence[Result]) -> Result:
    """The results as one; of a task that has two roles, each document is that of the first."""
    kept: list[Result] = []
    known = pd.MultiIndex.from_arrays([[], []])
    for result in results:
        of_document = pd.MultiIndex.from_frame(result.docs[["task", "doc_id"]])
        if len(docs := result.docs[~of_document.isin(known)]):
            kept.append(replace(result, docs=docs))
        known = known.append(of_document)
    return concat(kept)


@one_thread
def ask(
    lens: Lens,
    *,
    base: Lens | None = None,
    control: Lens | None = None,
    tasks: Tasks | None = None,
    claims: str | Sequence[str] | None = None,
    minutes: float = 60.0,
    top: int = 4,
    **options: Unpack[EvalOptions],
) -> Verdicts:
    """Ask a model which claims hold for it, from as few documents as that takes.

    The cheapest open claim is asked next: of all with 25 documents of each of its tasks, then of those that are open
    with 50, 100, 200 and 400, until each is decided as the study says it and controlled, or the time is over. Those
    that are guessed to take longer than what is left come after the others.
    Intervals hold at all of these looks together. Answers are kept in the store: another call goes on from there, and
    so does one that was interrupted.

    Args:
        lens: A loaded model.
        base: What it was distilled or fine-tuned from; None: C6 is not judged.
        control: What was fine-tuned from the same base, but not on reasoning; None: C6 is judged as the study says it.
        tasks: Tasks by role (`depthlens.claims.ROLES`); None: the embedded ones. Claims whose roles lack say so.
        claims: Which claims, e.g. ``["C2", "C4"]``; None asks all.
        minutes: The time after which no further sweep begins.
        top: Heads of each list that are removed together.
        options: `EvalOptions` but for ``limit``, ``samples`` and ``measure``; ``num_fewshot`` is 2 by default.

    Returns:
        The verdicts; they say of each open part at how many documents its present estimate would be decided.

    Raises:
        UserError: an unknown claim or role, or see `condition_sweep`.

    Example:
        >>> roles = {"letters": "organism_one_hop", "continuation": "organism_two_hop"}
        >>> verdicts = dl.claims.ask(lens, tasks=roles, claims="C1", minutes=1, num_fewshot=0, progress=False)
        >>> sorted(verdicts.states)
        ['C1']
    """
    chosen = chosen_claims(claims)
    arguments.number("minutes", minutes, 0)
    top = arguments.whole("top", top, 1, of=" of heads")
    if refused := {"limit", "samples", "measure"} & {*options}:
        raise UserError(f"{min(refused)}: claims choose their documents and metrics; leave it out")
    models = {name: model for name, model in (("model", lens), ("base", base), ("control", control)) if model}
    settings: EvalOptions = {"num_fewshot": 2, **options}
    sweeps = Sweeps(models, roles_of(EMBEDDED if tasks is None else tasks), top, settings)
    asked = {claim: claim.parts(Evidence()) for claim in chosen}
    looks, end = dict.fromkeys(asked, 0), time.monotonic() + 60 * minutes
    try:
        while todo := [c for c in asked if not looks[c] or _may_decide(asked[c]) and sweeps.has_more(c, looks[c])]:
            left, guessed = end - time.monotonic(), {c: sum(sweeps.predicted(c, LOOKS[looks[c]])) for c in todo}
            claim = min(todo, key=lambda c: (guessed[c] > left, looks[c], guessed[c]))
            n = LOOKS[looks[claim]]
            if left < sweeps.predicted(claim, n)[0]:
                break
            if settings.get("progress", True):
                done = sum(not _open(parts) for parts in asked.values())
                print(f"decided {done} of {len(asked)}, next {claim.id} with {n} documents, {left / 60:.0f} min left")
            asked[claim] = sweeps.parts(claim, n)
            looks[claim] += 1
    except KeyboardInterrupt:
        print("stopped; the store has what was computed, and the same call goes on from there")
    late = f"{NOT_MEASURED} in {minutes:g} minutes; the same call with more goes on from there"
    for claim in (c for c, n in looks.items() if not n):
        asked[claim] = [missing(part.question, late) for part in asked[claim]]
    return Verdicts.of({claim.id: parts for claim, parts in asked.items()}, [m.name for m in models.values()])


def _open(parts: Sequence[Part]) -> list[Part]:
    """The open parts of the rows of a claim that are open."""
    rows = [[part for part in parts if part.question.row == row] for row in ROWS]
    return [part for of in rows if of and worst(of).state == OPEN for part in of if part.state == OPEN]


def _may_decide(parts: Sequence[Part]) -> bool:
    """Whether more documents may decide an open row: a part of it was measured, and one that is reversed decides."""
    return any(not part.main.why.startswith(NOT_MEASURED) for part in _open(parts))
