"""Organisms on which the study's claims are true or false by construction, and sweeps of them as evidence.

`evidence` is for the claims on layers and for that on distillation; `tests/planted_heads.py` has the one on heads.

`organism_name` chooses where circuits are planted, `planted_losses` says what each layer then costs each role of the
evidence, and `true_values` puts the claims to these losses.
"""

from __future__ import annotations

import numpy as np

import depthlens as dl

N_LAYERS = 12
THIRD = np.arange(N_LAYERS) * 3 // N_LAYERS
N_FIRST = 2  # layers of the first tenth

# role of the evidence: task, ability of the organism, and whether the answer is written
ROLES = {
    "likelihood": ("organism_letters", "letters", False),
    "generation": ("organism_letters_generative", "letters", True),
    "knowledge": ("organism_knowledge", "knowledge", False),
    "retrieval": ("organism_retrieval", "one_hop", False),
    "text": ("organism_text", "text", False),
    "reasoning": ("organism_reasoning_generative", "two_hop", True),
    "copying": ("organism_copying_generative", "copying", True),
}
# the fields of the evidence that take a role under another name
FIELDS = {role: role for role in ("generation", "retrieval", "text", "reasoning", "copying")}
FIELDS |= {"letters": "likelihood", "continuation": "knowledge"}
CLAIMS = ("C1", "C2", "C3", "C4", "C7")
ALL_TRUE = dict.fromkeys(CLAIMS, True)
# of these, each claim is false in one, and the others are true where they can be
FALSE = {claim: ALL_TRUE | {claim: False} for claim in CLAIMS} | {"C7": ALL_TRUE | {"C3": False, "C7": False}}
COMMON = {"n_layers": N_LAYERS, "previous_layer": 0, "sharpness": 9.0}
MIDDLE = {"letters": 6, "retrieval": 5, "reasoning": 5, "writing": "6-7"}
LATE = {"letters": 10, "retrieval": 10, "reasoning": 8, "writing": "8-11"}
DOCUMENTS, WHERE_TRUE = 200, {"C1": {"knowledge_layers": "1"}}
# in nats, the head that retrieval builds on counts as much as the one that retrieves: it stands where plain text is, so
# that retrieval is deeper under the view of all layers as well
WHERE_FALSE = {
    "C3": {"previous_layer": 3, "text_layers": "3", "knowledge_layers": "3", "letter_layers": None, "copying_layer": 6}
}
NOISE = 0.6  # every task is solved, and noise decides some documents where a layer is missing
JUDGED_BY_TREND = ("likelihood", "generation", "knowledge", "retrieval", "reasoning")


def organism_name(truth: dict[str, bool], seed: int, **options) -> str:
    """The organism on which claims are true or false.

    What is not in the first third is in the middle one where deep layers matter less (C7), else in the last.

    Args:
        truth: Whether each claim is true; those that are not named are.
        seed: Of the organism.
        options: More options of the organism, e.g. ``noise=0.55`` for scores below 1.
    """
    true = ALL_TRUE | truth
    assert set(true) == set(CLAIMS), truth
    deep = MIDDLE if true["C7"] else LATE
    given = COMMON | {
        "seed": seed,
        # C1: one layer beyond the first tenth that the likelihood task cannot do without contradicts it
        "letter_layers": "1" if true["C1"] else str(deep["letters"]),
        # C2: a layer that only a written answer needs
        "writing_layers": deep["writing"] if true["C2"] else None,
        # C3: plain text needs every layer a little; false where it is as shallow as knowledge, and retrieval is deep
        "knowledge_layers": "2-3",
        "retrieval_layer": 2 if true["C3"] else deep["retrieval"],
        "text_layers": f"0-{N_LAYERS - 1}" if true["C3"] else "0-3",
        # C4: false where the control of equal length is deeper than reasoning
        "reasoning_layer": deep["reasoning"] if true["C4"] else 2,
        "copying_layer": 2 if true["C4"] else 6,
    }
    return dl.organisms.Options(**given | options).name


def planted_losses(name: str) -> dict[str, np.ndarray]:
    """Relative loss of each role at each layer: the share of prompts that fail without it. Shape of each [layer]."""
    truth = dl.organisms.truth(name)
    return {role: np.array(truth.layer_losses(ability, written=w)) for role, (_, ability, w) in ROLES.items()}


def true_values(name: str, n_spared: int = 2) -> dict[str, dict[str, float]]:
    """What the claims are about, from the planted losses instead of measured ones.

    Args:
        name: Of an organism of `organism_name`.
        n_spared: First layers that shares and trends leave out, as the view without L0 and L1 does.
    """
    loss = planted_losses(name)
    kept = np.arange(N_LAYERS) >= n_spared
    beyond = {role: x[kept & (THIRD > 0)].sum() / x[kept].sum() for role, x in loss.items() if x[kept].sum()}
    trend = {r: x[THIRD == 2].mean() - x[kept & (THIRD == 0)].mean() for r, x in loss.items()}
    early, deeper = loss["likelihood"][:N_FIRST], loss["likelihood"][N_FIRST:]
    return {
        "C1": {
            "share of layers under 0.10": float((deeper < 0.1).mean()),
            "largest beyond the first tenth minus half its mean": deeper.max() - early.mean() / 2,
        },
        "C2": {"generation minus likelihood": (loss["generation"] - loss["likelihood"])[THIRD > 0].mean()},
        "C3": {
            "knowledge minus text": beyond["text"] - beyond["knowledge"],
            "retrieval minus text": beyond["text"] - beyond["retrieval"],
        },
        "C4": {
            "reasoning minus copying": beyond["reasoning"] - beyond["copying"],
            "reasoning minus knowledge": beyond["reasoning"] - beyond["knowledge"],
            "reasoning": beyond["reasoning"],
        },
        "C7": {"trend": np.mean([trend[role] for role in JUDGED_BY_TREND])},
    }


def holds(values: dict[str, dict[str, float]]) -> dict[str, bool]:
    """Whether each claim is true of the values of `true_values`."""
    c1, c3, c4 = values["C1"], values["C3"], values["C4"]
    found = {
        "C1": c1["share of layers under 0.10"] > 0.5 and c1["largest beyond the first tenth minus half its mean"] < 0,
        "C2": values["C2"]["generation minus likelihood"] > 0,
        "C3": min(c3.values()) > 0,
        "C4": min(c4["reasoning minus copying"], c4["reasoning minus knowledge"], c4["reasoning"] - 0.5) > 0,
        "C7": values["C7"]["trend"] < 0,
    }
    return {claim: bool(true) for claim, true in found.items()}


def evidence(claim: str, *, true: bool, seed: int, limit: int | None = None) -> dl.claims.Evidence:
    """What a claim takes, under every view, of an organism on which it is true or false.

    An organism takes no examples, so there is one few-shot seed.

    Args:
        claim: One of `CLAIMS`, or C6.
        true: Whether it is true.
        seed: Of the organism.
        limit: Documents of each task; None: so many that the claim is decided.
    """
    options = {"limit": limit or DOCUMENTS, "num_fewshot": 0, "progress": False}
    if claim == "C6":
        return _of_distillation(distillation_names(seed, moved=true), options)
    truth, planted = (ALL_TRUE, WHERE_TRUE.get(claim, {})) if true else (FALSE[claim], WHERE_FALSE.get(claim, {}))
    name = organism_name(truth, seed, noise=NOISE, **planted)
    roles = {field: ROLES[role][0] for field, role in FIELDS.items()} | {"reasoning_choice": "organism_reasoning"}
    roles["long_text"] = roles["text"]  # all prompts of organisms are of one length
    roles["reasoning_continuation"] = roles["reasoning_choice"]  # the questions of the written task
    in_nats = ("continuation", "retrieval", "text", "long_text", "reasoning_choice", "reasoning", "copying")
    roles["tokens"] = list(dict.fromkeys(roles[field] for field in in_nats))
    (needs,) = [known.needs for known in dl.claims.CLAIMS if known.id == claim]
    more = ("reasoning", "reasoning_continuation") if claim == "C2" else ()
    wanted = {field: roles[field] for field in (*needs, *more)}
    found = dl.claim_sweeps(dl.load(name, device="cpu"), wanted, seeds=[0], **options)
    return dl.claims.Evidence(**found)


def _of_distillation(names: dict[str, str], options: dict) -> dl.claims.Evidence:
    base, distilled, control = (dl.load(names[who], device="cpu") for who in ("base", "distilled", "control"))
    roles = {"continuation": ROLES["knowledge"][0], "reasoning_choice": "organism_reasoning"}
    found, of_control = (dl.claim_sweeps(lens, roles, seeds=[0], **options) for lens in (distilled, control))
    written = ROLES["reasoning"][0]
    found["reasoning"] = [dl.condition_sweep(distilled, written, "L0", **options)]  # only the whole model is read
    found["control"] = [dl.concat([result for (result,) in of_control.values()])]
    thirds = [f"{third}@donor" for third in dl.analysis.third_conditions(N_LAYERS)]
    found["transplants"] = [dl.condition_sweep(base, written, thirds, donor=distilled, **options)]
    return dl.claims.Evidence(**found)


def distillation_names(seed: int, *, moved: bool) -> dict[str, str]:
    """A base model, its distilled one, and a fine-tuned control that did not learn to reason.

    The base does the two-hop task in layers 3 and 4, too weakly to answer most questions. The distilled model does it
    well, in layers 8 and 9 if it ``moved``, else where the base does. Knowledge stays where it is. The control has
    less noise and nothing else, so that no layer of noise decides where its losses are.
    """
    # little noise: a circuit at the edge of failing would else answer more questions where a layer of noise is missing
    planted = COMMON | {"seed": seed, "noise": 0.1, "reasoning_strength": 0.27, "reasoning_layer": 3}
    planted |= {"letter_layers": "1", "knowledge_layers": "2-3", "text_layers": f"0-{N_LAYERS - 1}", "copying_layer": 2}
    changes = {
        "base": {},
        "distilled": {"reasoning_layer": 8 if moved else 3, "reasoning_strength": 1.0},
        "control": {"noise": 0.02},
    }
    return {who: dl.organisms.Options(**planted | change).name for who, change in changes.items()}
