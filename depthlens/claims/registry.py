"""The seven claims of the study, each with its test stated before any result was seen, and the evidence they take.

The arithmetic is in `depthlens.claims.layers`, `depthlens.claims.heads` and `depthlens.claims.distilled`, the verdicts
in `depthlens.claims.verdicts`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from statistics import median
from typing import Any

from depthlens import arguments
from depthlens.analysis.head_scores import HeadScores
from depthlens.analysis.layer_profiles import profiles
from depthlens.analysis.recovery import transplant_recovery
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result
from depthlens.claims import distilled, heads, layers
from depthlens.claims.decision import SEED_VIEWS, Estimate, Part, Spec, beside
from depthlens.claims.estimates import Source, Sweeps, of_tasks
from depthlens.errors import UserError, unknown

SWEEPS = {
    "letters": "a sweep of a task whose options are lettered, e.g. mmlu",
    "continuation": "a sweep of a knowledge task scored by its answers' text, e.g. mmlu_continuation",
    "generation": "a sweep of the prompts of letters with written letters, e.g. mmlu_generative",
    "retrieval": "a sweep of a retrieval task with options, e.g. kv_retrieval_4_continuation",
    "text": "a sweep of plain text with options, as long as the prompts of continuation, e.g. plain_text_continuation",
    "long_text": "the same, as long as the prompts of retrieval, e.g. plain_text_long_continuation",
    "reasoning": "a sweep of a reasoning task with written solutions, e.g. gsm8k",
    "copying": "a sweep of a task that asks to copy such a solution, e.g. solution_copy",
    "reasoning_choice": "a sweep of a reasoning task with options, e.g. arithmetic_step_continuation",
    "tokens": "a sweep of the tasks with options, but for letters, with measure='token_logprob'",
    "heads": "depthlens.claim_curves with a list of retrieval heads and one of reasoning heads (in 09_claims: draws)",
    "control": "sweeps of a control model on the tasks of continuation and reasoning_choice (in 09_claims: control)",
    "transplants": "depthlens.condition_sweep of the base over transplants, e.g. L0-11@donor, on the reasoning task "
    "(in 09_claims: base)",
}
TIMES_AS_LONG = 2  # a control may be so many times as long, or as short
Seeds = Result | Sequence[Result] | None  # one result a few-shot seed
MODEL_FIELDS = tuple(SWEEPS)[:10]  # sweeps of the model that is judged


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results that the claims are judged by; what is missing leaves its claims unjudged.

    Every sweep is ``condition_sweep(lens, tasks, ["layers", "layers[1:]", "layers@mean"])``: the views of
    `depthlens.claims.decision`. A field takes one result, or a sequence of results of several few-shot seeds. Of a task
    with several metrics the first is used.

    Attributes:
        letters: Tasks whose options are lettered; the likeliest letter is the answer.
        continuation: Knowledge tasks; the likeliest answer text is the answer.
        generation: The prompts of ``letters``; the model writes the letter.
        retrieval: Retrieval tasks with options.
        text: Plain text with options, as long as the prompts of ``continuation``; their control.
        long_text: Plain text with options, as long as the prompts of ``retrieval``; their control.
        reasoning: Reasoning tasks with written solutions.
        copying: Solutions of equal length to be copied, the control of ``reasoning``.
        reasoning_choice: Reasoning tasks with options.
        tokens: The tasks of ``continuation``, ``retrieval``, ``text``, ``long_text`` and ``reasoning_choice``, in nats
            per answer token.
        heads: What `depthlens.claim_curves` returns: the curve that decides, then those under other views.
        head_tasks: The task that each list of ``heads`` is for, by the list's name.
        head_scores: What chose the heads of each list.
        control: Sweeps of a model that was fine-tuned from the same base with the same budget, but not on reasoning.
        transplants: Sweep of the base over conditions with ``@donor``; the donor is the model that is judged, with the
            few-shot seeds of ``reasoning``.

    Raises:
        UserError: sweeps of different models, or ``head_tasks`` that do not fit ``heads``.
    """

    letters: Seeds = None
    continuation: Seeds = None
    generation: Seeds = None
    retrieval: Seeds = None
    text: Seeds = None
    long_text: Seeds = None
    reasoning: Seeds = None
    copying: Seeds = None
    reasoning_choice: Seeds = None
    tokens: Seeds = None
    heads: RemovalCurve | Sequence[RemovalCurve] | None = None
    head_tasks: dict[str, str] | None = None
    head_scores: dict[str, HeadScores] | None = None
    control: Seeds = None
    transplants: Seeds = None

    def __post_init__(self) -> None:
        for name in (*MODEL_FIELDS, "control", "transplants"):
            for sweep in self.results(name):
                arguments.result(sweep, name)
        models = sorted({m for name in MODEL_FIELDS for r in self.results(name) for m in r.docs["model"].unique()})
        if len(models) > 1:
            raise UserError(f"the sweeps are of models {', '.join(models)}; judge one model at a time")
        if self.heads is None:
            return
        for curve in self.curves:
            arguments.made_by(curve, "tests", "what depthlens.removal_curve returned", "heads")
        pairs = list(zip(self.curves[0].tests["list"], self.curves[0].tests["task"], strict=True))
        if self.head_tasks is None:
            known = ", ".join(f"{heads!r}" for heads in dict.fromkeys(heads for heads, _ in pairs))
            raise UserError(f"heads without head_tasks; say the task that each list is for, by its name ({known})")
        for name, task in self.head_tasks.items():
            if (name, task) not in pairs:
                raise unknown("list and task", f"{name}: {task}", [f"{a}: {b}" for a, b in pairs])

    @property
    def curves(self) -> list[RemovalCurve]:
        """The removal curves, that which decides first; none where they were not given."""
        return _several(self.heads)

    def results(self, name: str) -> list[Result]:
        """The results of a field, one a few-shot seed or curve of heads; none where the field was not given."""
        return [curve.result for curve in self.curves] if name == "heads" else _several(getattr(self, name))

    def same_examples(self, names: Sequence[str]) -> bool:
        """Whether a field has several seeds of a task whose examples are the same under every seed, as mmlu's are."""
        several = [result for name in names for result in self.results(name) if len(self.results(name)) > 1]
        return any(e.get("examples_by_seed") is False for result in several for e in result.record["tasks"].values())

    def sweeps(self, name: str, like: str | None = None) -> Sweeps:
        """The profiles of a field, of the tasks of the field ``like``."""
        sweeps = [_profiles_of(result) for result in self.results(name)]
        if like is None:
            return sweeps
        return of_tasks(sweeps, {str(task) for result in self.results(like) for task in result.docs["task"].unique()})

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        names = (*MODEL_FIELDS, "control", "transplants")
        return sorted({str(m) for name in names for sweep in self.results(name) for m in sweep.docs["model"].unique()})


def _profiles_of(result: Result) -> Source:
    """The profiles of a result, made once for all claims and fields that take it."""
    kept = result.kept()
    if "profiles" not in kept:
        kept["profiles"] = lru_cache(partial(profiles, result.primary()))
    return kept["profiles"]


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim of the study and how it is put to the test.

    Attributes:
        id: ``C1`` to ``C7``.
        statement: The claim, in our words.
        test: Documents, statistic, threshold and correction, in plain words.
        parts: The test: evidence, seed and n_boot to estimates.
        needs: The fields of `Evidence` it takes; one of them is enough where ``any_of``.
        specs: Of the parts; they are named where evidence is missing.
        any_of: See ``needs``.
    """

    id: str
    statement: str
    test: str
    parts: Callable[[Evidence, int, int], list[Part]]
    needs: tuple[str, ...]
    specs: tuple[Spec, ...]
    any_of: bool = False

    def __repr__(self) -> str:
        return f"{self.id}: {self.statement}"

    def missing(self, evidence: Evidence) -> list[str]:
        """Fields of the evidence that the test lacks."""
        lacks = [name for name in self.needs if getattr(evidence, name) is None]
        return [] if self.any_of and len(lacks) < len(self.needs) else lacks


def _several(given: Any) -> list[Any]:
    """What a field of `Evidence` was given: nothing, one, or several."""
    return [] if given is None else [*given] if isinstance(given, list | tuple) else [given]


def _c1(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    protocols = {name: evidence.sweeps(name) for name in ("letters", "continuation")}
    return layers.few_harmful(protocols, seed=seed, n_boot=n_boot)


def _c2(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    letters, written = evidence.sweeps("letters"), evidence.sweeps("generation")
    return layers.generation_costs_more(letters, written, seed=seed, n_boot=n_boot)


def _c3(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    roles = {"knowledge": ("continuation", "text"), "retrieval": ("retrieval", "long_text")}
    parts = []
    for name, fields in roles.items():
        tokens = (evidence.sweeps("tokens", field) for field in fields)
        guard = [sweep for field in fields for sweep in evidence.sweeps(field)]
        part = layers.shallow(name, *tokens, guard=guard, seed=seed, n_boot=n_boot)
        parts.append(replace(part, lacks=_unlike(evidence, *fields, "question")))
    return parts


def _c4(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    beyond_copying, *others = layers.reasoning_deeper(
        evidence.sweeps("reasoning"),
        evidence.sweeps("copying"),
        evidence.sweeps("tokens", "reasoning_choice"),
        evidence.sweeps("tokens", "continuation"),
        [*evidence.sweeps("reasoning_choice"), *evidence.sweeps("continuation")],
        seed=seed,
        n_boot=n_boot,
    )
    return [replace(beyond_copying, lacks=_unlike(evidence, "reasoning", "copying", "reference")), *others]


def _unlike(evidence: Evidence, name: str, control: str, column: str) -> tuple[str, ...]:
    """What is missing where a control is not about as long as what it is for, by questions or by references."""
    own, other = (_length(evidence.results(field), column) for field in (name, control))
    if own and other and not 1 / TIMES_AS_LONG <= other / own <= TIMES_AS_LONG:
        sizes = f"its {column}s have {own:.0f} characters, those of {control} {other:.0f}"
        return (f"a control as long as {name} ({sizes})",)
    return ()


def _length(sweeps: Sequence[Result], column: str) -> float | None:
    """Characters of a question or a reference, the median over documents; None where they are not known."""
    texts = [text for sweep in sweeps if sweep.asked is not None for text in sweep.questions()[column]]
    return float(median(map(len, texts))) if texts else None


def _c5(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    own = evidence.head_tasks or {}
    if len(own) < 2:
        name = next(iter(own), "no list")
        return [Part(heads.COSTS, Estimate(why=f"{name} is alone; give a list for retrieval and one for reasoning"))]
    return heads.specific_heads(evidence.curves, own, evidence.head_scores or {})


def _c6(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    of_seed = {}
    donors = evidence.results("reasoning")
    for i, result in enumerate(evidence.results("transplants")):
        transplants = result.primary()
        donor = donors[min(i, len(donors) - 1)].primary().select(tasks=list(transplants.docs["task"].unique()))
        recovery = transplant_recovery(transplants, donor, seed=seed, n_boot=n_boot).table
        of_seed[f"few-shot seed {i + 1}"] = [distilled.recovered(recovery, transplants.n_layers)]
    shift = distilled.shifted(
        evidence.sweeps("reasoning_choice"),
        evidence.sweeps("continuation"),
        evidence.sweeps("control", "reasoning_choice"),
        evidence.sweeps("control", "continuation"),
        seed=seed,
        n_boot=n_boot,
    )
    return [shift, *beside(of_seed, SEED_VIEWS)]


_TREND = ("letters", "continuation", "generation", "retrieval", "reasoning", "reasoning_choice")


def _c7(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    roles: Sequence[Sweeps] = [evidence.sweeps(name) for name in _TREND]
    return layers.depth_trend(roles, seed=seed, n_boot=n_boot)


_BOTH = "Both have to hold."

CLAIMS = (
    Claim(
        "C1",
        "Under likelihood metrics most single layers can be removed with little loss; only the first few are critical.",
        "Under each of two likelihood protocols (letters, answer texts): (a) of the layers beyond the first tenth, "
        "more than half are shown to cost under 10% of the score above guessing (simultaneous 95% bounds). (b) Every "
        "one of them costs less than half of the mean of the first tenth (at least 2 layers). All four have to hold. "
        "One later layer that is shown to cost more contradicts.",
        _c1,
        ("letters", "continuation"),
        tuple(spec for name in ("letters", "continuation") for spec in (layers.HARMLESS[name], layers.RIVAL[name])),
    ),
    Claim(
        "C2",
        "Under generation middle and deep layers become indispensable: the metric decides which layers look important.",
        "The same prompts and documents, answered by the likeliest letter and by a written letter. The mean relative "
        "loss of the layers beyond the first third, written minus likeliest, is above 0, (a) for all answers and (b) "
        f"where the written answer can be parsed, so that a lost format does not count as a lost answer. {_BOTH} "
        "Losses are shares of the score above guessing; but in (a) those of written letters are shares of the whole "
        "score, because a broken writer can score 0. Equal answers then give an effect below 0 in (a), which "
        "contradicts only if it also does with shares above guessing for both. Part (b) contradicts nothing: of a "
        "broken writer, less can be parsed.",
        _c2,
        ("letters", "generation"),
        (layers.PROTOCOL, layers.WRONG),
    ),
    Claim(
        "C3",
        "Knowledge and retrieval depend mostly on shallow layers.",
        "Without L0 and L1, in nats per answer token: the first third's share of the summed loss is larger than for "
        f"plain text of the same length, which needs neither, (a) for knowledge and (b) for retrieval. {_BOTH}",
        _c3,
        ("continuation", "retrieval", "text", "long_text", "tokens"),
        tuple(layers.SHALLOW.values()),
    ),
    Claim(
        "C4",
        "Reasoning accuracy depends mostly on middle and deep layers, more than knowledge does.",
        "The share of the summed loss beyond the first third is (a) larger for written solutions than for copying a "
        "solution of the same length, (b) larger for reasoning than for knowledge per answer token, both with options, "
        "and (c) above 1/2 for written solutions. All three have to hold.",
        _c4,
        ("continuation", "reasoning", "copying", "reasoning_choice", "tokens"),
        (layers.BEYOND_COPYING, layers.BEYOND_KNOWLEDGE, layers.MOSTLY_DEEP),
    ),
    Claim(
        "C5",
        "A few attention heads carry retrieval and a few carry reasoning: removing those hurts far more than others.",
        "Heads are chosen on other documents than those that test them. (a) Removing a list costs more than 3 times "
        "what random lists, drawn from all heads of the same layers, cost, and more than 95% of them (the list is a "
        "possible draw). (b) Two lists together cost more on their own tasks than on each other's. In accuracy and in "
        "nats, and in sign with other few-shot seeds, with the first token spared and where the mean takes the place "
        "of what the heads give; all have to hold.",
        _c5,
        ("heads",),
        (heads.COSTS, heads.OWN_TASK),
    ),
    Claim(
        "C6",
        "Distillation reshapes where reasoning lives in depth; transplanting distilled parts moves reasoning accuracy.",
        "In accuracy: (a) the centre of mass of the losses moved by more than 0.05 of depth on reasoning, beyond its "
        "move on knowledge and beyond what a fine-tune of the same budget without reasoning causes; contradicted if it "
        "moved by less. (b) The most that a transplant short of all layers recovers of the gap between base and "
        f"distilled model is above 0 (simultaneous intervals). {_BOTH}",
        _c6,
        ("continuation", "reasoning", "reasoning_choice", "control", "transplants"),
        (distilled.SHIFT, distilled.RECOVERED),
    ),
    Claim(
        "C7",
        "Very deep layers are on the whole less effective than early ones; how much varies by task, metric and model.",
        "Without L0 and L1, over every task that is not at chance: (a) the mean relative loss of a layer of the last "
        "third is below that of a layer of the first third; (b) this difference varies between tasks by more than "
        f"sampling noise (generalised Cochran's Q; contradicted if its standard deviation is below 0.05). {_BOTH}",
        _c7,
        _TREND,
        (layers.TREND, layers.SPREAD),
        any_of=True,
    ),
)
