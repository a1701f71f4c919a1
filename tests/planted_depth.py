"""Organisms on which the study's claims on layers hold or fail by construction, and sweeps of them as evidence.

`organism` says where circuits stand, `planted` puts what each layer then costs to the claims, and `evidence` sweeps the
organism's own tasks. `tests/planted_heads.py` has the claim on heads. An organism takes no examples, so there is one
few-shot seed.
"""

import numpy as np

import depthlens as dl
from depthlens.analysis.result.losses import broken_condition, layer_third
from depthlens.analysis.result.profiles import third_conditions
from depthlens.claims.answers import NEAR, TASKS
from depthlens.claims.measures import FIRST
from depthlens.claims.parts import STUDY, Estimate, Part
from depthlens.claims.questions import CRITICAL, DEEPER_THAN, HARMLESS, SHALLOWER, TREND, WRITTEN
from depthlens.metrics import TOKEN_LOGPROB

LAYERS = 30
CLAIMS = ("C1", "C2", "C3", "C4", "C7")
ROW = {"C7": STUDY}  # of the claim whose effect is planted; of the others the controlled one
# field of the evidence: task, ability of the organism, and whether the answer is written
FIELDS = {
    "letters": ("organism_letters", "letters", False),
    "continuation": ("organism_knowledge", "knowledge", False),
    "generation": ("organism_letters_generative", "letters", True),
    "retrieval": ("organism_retrieval", "one_hop", False),
    "text": ("organism_text", "text", False),
    "long_text": ("organism_text", "text", False),  # all prompts of organisms are of one length
    "reasoning": ("organism_reasoning_generative", "two_hop", True),
    "reasoning_continuation": ("organism_reasoning", "two_hop", False),
    "copying": ("organism_copying_generative", "copying", True),
    "reasoning_choice": ("organism_reasoning", "two_hop", False),
}
NEEDS = {known.id: known.needs for known in dl.claims.CLAIMS} | {"C7": TASKS}
DOCUMENTS, WEIGHTED = 120, 200  # questions of a task; where they are weighted to be equally easy
OPTIONS = {"num_fewshot": 0, "progress": False}


def organism(claim: str, *, true: bool, seed: int = 0, n_layers: int = LAYERS) -> str:
    """The organism on which a claim of `CLAIMS` holds or fails.

    Args:
        claim: The claim. The organism on which C3, C4 and C7 hold is one.
        true: Whether it holds.
        seed: Of the organism.
        n_layers: At least 18; 9 for C2 and C7, as few layers are not harmless on average.
    """
    third, late = n_layers // 3, f"{n_layers // 3 * 2}-{n_layers - 1}"
    early, middle, last = f"{FIRST}-{third - 1}", third + 1, 2 * third
    planted = {
        "n_layers": n_layers, "seed": seed, "sharpness": 9.0, "previous_layer": 0,
        "letter_layers": early, "knowledge_layers": early, "text_layers": f"0-{n_layers - 1}",
        "retrieval_layer": FIRST, "copying_layer": FIRST, "reasoning_layer": third,
        "reasoning_strength": 1.05,  # so that its log-odds are between those of knowledge and of copying
    }  # fmt: skip
    changes = {
        ("C1", True): {"letter_layers": f"{FIRST}-{FIRST + 1}", "knowledge_layers": f"{FIRST}-{FIRST + 1}"},
        # no answer needs the first two layers
        ("C1", False): {
            "previous_layer": third, "letter_layers": str(middle), "knowledge_layers": str(middle), "text_layers": late,
            "retrieval_layer": middle, "copying_layer": middle, "reasoning_layer": middle,
        },
        # early reasoning leaves the middle third to the layers that only a written answer needs, also where it is short
        ("C2", True): {"reasoning_layer": FIRST, "writing_layers": f"{third + 1}-{min(third + 4, last - 1)}"},
        ("C3", False): {"knowledge_layers": late, "retrieval_layer": last, "text_layers": early},
        ("C4", False): {"knowledge_layers": late, "copying_layer": last, "reasoning_layer": FIRST},
        ("C7", False): dict.fromkeys(("letter_layers", "knowledge_layers"), late)
        | dict.fromkeys(("retrieval_layer", "reasoning_layer"), last),
    }  # fmt: skip
    return dl.organisms.Options(**planted | changes.get((claim, true), {})).name


def planted(name: str) -> dict[str, list[Part]]:
    """The parts of each claim, of what is planted instead of what is measured; their intervals have no width."""
    truth = dl.organisms.truth(name)
    n_layers = truth.options.n_layers
    third, later = layer_third(np.arange(n_layers), n_layers), np.arange(n_layers) >= FIRST

    def loss(field: str, written: bool) -> np.ndarray:
        return np.array(truth.layer_losses(FIELDS[field][1], written=written))

    def excess(field: str) -> float:  # of log-odds, which a token that is held back lowers as a wrong answer does
        lost = loss(field, True)[later]
        first = third[later] == 0
        return lost[first].sum() / lost.sum() / first.mean() - 1

    own = {field: loss(field, written) for field, (_, _, written) in FIELDS.items()}
    chosen = {"generation": "letters", "reasoning": "reasoning_continuation"}
    trend = [own[f][third == 0].mean() - own[f][third == 2].mean() for f in TASKS]
    ranks = slice(*(int(np.ceil(share * later.sum())) - (share == NEAR[0]) for share in NEAR))
    most = {field: np.sort(own[field][later])[ranks].mean() for field in ("letters", "continuation")}
    first_two = {field: own[field][~later].mean() - own[field][later].mean() for field in most}
    effects = {
        "C1": [part for f in most for part in ((HARMLESS[1], most[f]), (CRITICAL[1], first_two[f]))],
        "C2": [(WRITTEN[1], (own[a] - own[b])[third > 0].mean()) for a, b in chosen.items()],
        "C3": [(SHALLOWER, excess(field) - excess("text")) for field in ("continuation", "retrieval")],
        "C4": [(DEEPER_THAN, excess(a) - excess("reasoning")) for a in ("copying", "continuation")],
        "C7": [(TREND, np.mean(trend))],
    }
    return {claim: [Part(q, Estimate(x, x, x)) for q, x in parts] for claim, parts in effects.items()}


def evidence(claim: str, *, true: bool, seed: int = 0, n_layers: int = LAYERS, fields=()) -> dl.claims.Evidence:
    """What a claim takes, of an organism on which it holds or fails. Layers are skipped, and in no other view.

    Args:
        claim: One of `CLAIMS`, or C6.
        true: Whether it holds.
        seed: Of the organism.
        n_layers: See `organism`.
        fields: What is swept, in place of all that the claim takes.
    """
    if claim == "C6":
        return _of_distillation(distillation(moved=true, seed=seed, n_layers=n_layers))
    lens = dl.load(organism(claim, true=true, seed=seed, n_layers=n_layers), device="cpu")
    return dl.claims.Evidence(**_sweeps(lens, fields or NEEDS[claim]))


def _sweeps(lens: dl.Lens, fields: tuple[str, ...]) -> dict[str, dl.Result]:
    """The sweeps of some fields; beside nats per token, only the whole model's accuracy is read."""
    tasks = {field: FIELDS[field][0] for field in fields if field in FIELDS}
    nats = "tokens" in fields
    conditions = ["L0"] if nats else ["layers", broken_condition(lens.dims.n_layers)]
    names, limit = [*dict.fromkeys(tasks.values())], WEIGHTED if nats else DOCUMENTS
    swept = dl.condition_sweep(lens, names, conditions, limit=limit, **OPTIONS)
    found = {field: swept.select(tasks=task) for field, task in tasks.items()}
    if nats:
        found["tokens"] = dl.condition_sweep(lens, names, "layers", measure=TOKEN_LOGPROB, limit=limit, **OPTIONS)
    return found


def _of_distillation(names: dict[str, str]) -> dl.claims.Evidence:
    base, distilled, control = (dl.load(names[who], device="cpu") for who in ("base", "distilled", "control"))
    fields = ("continuation", "reasoning_choice", "tokens")
    found = _sweeps(distilled, fields)
    found |= {who: _sweeps(lens, fields)["tokens"] for who, lens in (("control", control), ("base", base))}
    task, thirds = FIELDS["reasoning"][0], third_conditions(base.dims.n_layers)
    found["reasoning"] = dl.condition_sweep(distilled, task, "L0", limit=WEIGHTED, **OPTIONS)
    options = {"donor": distilled, "limit": WEIGHTED} | OPTIONS
    found["transplants"] = dl.condition_sweep(base, task, [f"{third}@donor" for third in thirds], **options)
    return dl.claims.Evidence(**found)


def distillation(*, moved: bool, seed: int = 0, n_layers: int = LAYERS) -> dict[str, str]:
    """A base model, its distilled one, and a fine-tuned control that did not learn to reason.

    The base does the two-hop task in the middle third, too weakly to answer many questions. The control does it
    better. The distilled model does it best: in the last third if it ``moved``, else where the base
    does. There is so much noise that the log-odds of the three overlap. Knowledge stays where it is.
    """
    third = n_layers // 3
    common = {"n_layers": n_layers, "seed": seed, "sharpness": 9.0, "previous_layer": 0, "noise": 0.6}
    common |= {"knowledge_layers": f"{FIRST}-{third - 1}", "reasoning_layer": third, "reasoning_strength": 0.6}
    changes = {"base": {}, "control": {"reasoning_strength": 0.72}, "distilled": {"reasoning_strength": 0.8}}
    changes["distilled"]["reasoning_layer"] = 2 * third if moved else third
    return {who: dl.organisms.Options(**common | change).name for who, change in changes.items()}
