"""The seven claims of the study, each with its test stated before any result was seen, and the evidence they take.

The arithmetic is in `depthlens.claims.estimates`, the verdicts in `depthlens.claims`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from depthlens import arguments
from depthlens.analysis.layer_profiles import Profile, paired_profiles, profiles
from depthlens.analysis.recovery import transplant_recovery
from depthlens.analysis.removal_curve import RemovalCurve
from depthlens.analysis.results import Result
from depthlens.claims import estimates as tests
from depthlens.claims.decision import Part, Spec
from depthlens.errors import UserError, unknown

SWEEPS = {
    "likelihood": "a layer sweep of a task scored by likelihood, e.g. mmlu_continuation",
    "generation": "a layer sweep of the same questions with generated answers, e.g. mmlu_generative",
    "knowledge": "a layer sweep of a knowledge task, e.g. mmlu",
    "retrieval": "a layer sweep of a retrieval task, e.g. kv_retrieval",
    "reasoning": "a layer sweep of a reasoning task, e.g. gsm8k",
    "heads": "depthlens.removal_curve with a list of retrieval heads and one of reasoning heads, n_draws=40",
    "pairs": "the same layer sweep of a base model and of its distilled one, on a reasoning task",
    "transplants": "depthlens.condition_sweep of the base over transplants, e.g. L0-11@donor, on the same task",
}
SWEEP_FIELDS = ("likelihood", "generation", "knowledge", "retrieval", "reasoning")  # of the model that is judged


@dataclass(frozen=True, eq=False)
class Evidence:
    """Results that the claims are judged by; what is missing leaves its claims unjudged. One model throughout.

    Of a task with several metrics the first is used.

    Attributes:
        likelihood: Layer sweep of tasks scored by likelihood.
        generation: Layer sweep of the same questions (or of reasoning) with generated answers.
        knowledge: Layer sweep of knowledge tasks.
        retrieval: Layer sweep of retrieval tasks.
        reasoning: Layer sweep of reasoning tasks.
        heads: A `depthlens.RemovalCurve`.
        head_tasks: The task that each list of ``heads`` is for, by the list's name.
        pairs: Layer sweeps of a base model and of its distilled one, alike in all else.
        transplants: Sweep of the base over conditions with ``@donor``, see `depthlens.analysis.recovery`.

    Raises:
        UserError: sweeps of different models, or ``head_tasks`` that do not fit ``heads``.
    """

    likelihood: Result | None = None
    generation: Result | None = None
    knowledge: Result | None = None
    retrieval: Result | None = None
    reasoning: Result | None = None
    heads: RemovalCurve | None = None
    head_tasks: dict[str, str] | None = None
    pairs: tuple[Result, Result] | None = None
    transplants: Result | None = None

    def __post_init__(self) -> None:
        for name in (*SWEEP_FIELDS, "transplants"):
            if (sweep := getattr(self, name)) is not None:
                arguments.result(sweep, name)
        if self.pairs is not None:
            if not isinstance(self.pairs, tuple | list) or len(self.pairs) != 2:
                kind = type(self.pairs).__name__
                raise UserError(f"pairs is a {kind}; give two layer sweeps, of the base and of its distilled model")
            for sweep in self.pairs:
                arguments.result(sweep, "one of pairs")
        models = sorted({m for r in self.sweeps for m in r.docs["model"].unique()})
        if len(models) > 1:
            raise UserError(f"the sweeps are of models {', '.join(models)}; judge one model at a time")
        if self.heads is None:
            return
        arguments.made_by(self.heads, "tests", "what depthlens.removal_curve returned", "heads")
        pairs = list(zip(self.heads.tests["list"], self.heads.tests["task"], strict=True))
        if self.head_tasks is None:
            known = ", ".join(f"{heads!r}" for heads in dict.fromkeys(heads for heads, _ in pairs))
            raise UserError(f"heads without head_tasks; say the task that each list is for, by its name ({known})")
        for heads, task in self.head_tasks.items():
            if (heads, task) not in pairs:
                raise unknown("list and task", f"{heads}: {task}", [f"{a}: {b}" for a, b in pairs])

    @property
    def sweeps(self) -> list[Result]:
        """The layer sweeps of the model that is judged."""
        return [sweep for name in SWEEP_FIELDS if (sweep := getattr(self, name)) is not None]

    def all_profiles(self) -> list[Profile]:
        """Profiles of every sweep of the model, each task and metric once."""
        return list({(p.task, p.metric): p for r in self.sweeps for p in _profiles(r)}.values())


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim of the study and how it is put to the test.

    Attributes:
        id: ``C1`` to ``C7``.
        statement: The claim, in our words.
        test: Documents, statistic, threshold and correction, in plain words.
        parts: The test: evidence, seed and n_boot to estimates; None where evidence is missing.
        needs: The fields of `Evidence` it takes; one of them is enough where ``any_of``.
        any_of: See ``needs``.
        specs: Of the parts; they are named where evidence is missing.
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


def _profiles(result: Result | None) -> list[Profile]:
    return [] if result is None else profiles(result.primary())


def _c1(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    return tests.few_harmful(_profiles(evidence.likelihood), seed=seed, n_boot=n_boot)


def _c2(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    likelihood, generation = _profiles(evidence.likelihood), _profiles(evidence.generation)
    return tests.generation_costs_more(likelihood, generation, seed=seed, n_boot=n_boot)


def _c3(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    return [
        tests.shallow(spec, _profiles(getattr(evidence, name)), seed=seed, n_boot=n_boot)
        for name, spec in tests.SHALLOW.items()
    ]


def _c4(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    knowledge, reasoning = _profiles(evidence.knowledge), _profiles(evidence.reasoning)
    return tests.reasoning_deeper(knowledge, reasoning, seed=seed, n_boot=n_boot)


def _c5(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    curve, task_of_list = evidence.heads, evidence.head_tasks or {}
    if curve is None or len(task_of_list) < 2:
        name = next(iter(task_of_list), "no list")
        return [Part(tests.HEADS, why=f"{name} is alone; give a list for retrieval and one for reasoning")]
    return tests.separate(curve.tests, curve.excess, int(curve.record["n_draws"]), task_of_list)


def _c6(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    if evidence.pairs is None or evidence.transplants is None:
        return [
            Part(spec, why="no sweeps of a base and of its distilled model") for spec in (tests.SHIFT, tests.RECOVERED)
        ]
    base, distilled = (sweep.primary() for sweep in evidence.pairs)
    pairs = paired_profiles(base, distilled)
    transplants = evidence.transplants.primary()
    donor = distilled.select(tasks=list(transplants.docs["task"].unique()))
    recovery = transplant_recovery(transplants, donor, seed=seed, n_boot=n_boot).table
    moved = tests.moved([a for a, _ in pairs], [b for _, b in pairs], seed=seed, n_boot=n_boot)
    return [moved, tests.recovered(recovery, base.n_layers)]


def _c7(evidence: Evidence, seed: int, n_boot: int) -> list[Part]:
    return tests.depth_trend(evidence.all_profiles(), seed=seed, n_boot=n_boot)


_BOOT = "Documents are drawn with replacement, jointly for tasks that share them, and tasks combined by their mean."
_TWO = "Both have to hold; their intervals have level 97.5% (Bonferroni)."
_WIDE = "No verdict below 30 documents, nor where the interval contains the threshold and half its width exceeds"

CLAIMS = (
    Claim(
        "C1",
        "Under likelihood metrics most single layers can be removed with little loss; only the first few are critical.",
        f"{_BOOT} Relative loss is loss / (baseline - chance). (a) Its median over layers beyond the first tenth (at "
        "least 2 layers) is below 0.10. (b) Its mean over the first tenth minus that over the others is above 0. "
        f"{_TWO} {_WIDE} 0.10 or 0.20.",
        _c1,
        ("likelihood",),
        (tests.MEDIAN, tests.FIRST),
    ),
    Claim(
        "C2",
        "Under generation middle and deep layers become indispensable: the metric decides which layers look important.",
        f"{_BOOT} The mean relative loss of layers of the middle and last third under generation, minus that under "
        f"likelihood, is above 0 (95% interval). {_WIDE} 0.10.",
        _c2,
        ("likelihood", "generation"),
        (tests.PROTOCOL,),
    ),
    Claim(
        "C3",
        "Knowledge and retrieval depend mostly on shallow layers.",
        f"{_BOOT} The first third's share of the summed loss of all layers is above 1/2, (a) for knowledge and (b) for "
        f"retrieval. Tasks without a proven summed loss are left out. {_TWO} {_WIDE} 0.15.",
        _c3,
        ("knowledge", "retrieval"),
        tuple(tests.SHALLOW.values()),
    ),
    Claim(
        "C4",
        "Reasoning accuracy depends mostly on middle and deep layers, more than knowledge does.",
        f"{_BOOT} The middle and last thirds' share of the summed loss of all layers, reasoning minus knowledge, is "
        f"above 0 (95% interval). Tasks without a proven summed loss are left out. {_WIDE} 0.15.",
        _c4,
        ("knowledge", "reasoning"),
        (tests.DEEPER,),
    ),
    Claim(
        "C5",
        "A few attention heads carry retrieval and a few carry reasoning: removing those hurts far more than others.",
        "For each list of heads on its own task, per document: the mean score over random heads of the same layers "
        "minus the score without the list, mean over k. It is above 0 (t interval over documents, Bonferroni over "
        "lists), and the list's curve ranks below its random draws with p < 0.05 (Holm over lists). All lists have to. "
        f"{_WIDE} 0.10.",
        _c5,
        ("heads",),
        (tests.HEADS,),
    ),
    Claim(
        "C6",
        "Distillation reshapes where reasoning lives in depth; transplanting distilled parts moves reasoning accuracy.",
        f"{_BOOT} (a) The centre of mass of the losses, distilled minus base, is not 0; contradicted where the "
        "interval contains 0 and is within 0.05 of depth. (b) The most that any transplant short of all layers "
        "recovers of the gap between base and distilled, which has to be proven, is above 0 (simultaneous intervals). "
        f"{_TWO} {_WIDE} 0.05 of depth or 0.25 of the gap.",
        _c6,
        ("pairs", "transplants"),
        (tests.SHIFT, tests.RECOVERED),
    ),
    Claim(
        "C7",
        "Very deep layers are on the whole less effective than early ones; how much varies by task, metric and model.",
        f"{_BOOT} The mean relative loss of layers of the last third minus that of the first third is below 0 (95% "
        "interval), over every task given that is not at chance. How much tasks differ is a question of its own. "
        f"{_WIDE} 0.10.",
        _c7,
        ("likelihood", "generation", "knowledge", "retrieval", "reasoning"),
        (tests.TREND,),
        any_of=True,
    ),
)
