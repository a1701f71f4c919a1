"""What the parts of the claims ask, with what matters: fixed before a model is judged."""

from __future__ import annotations

from depthlens.analysis.heads.curves import TIMES
from depthlens.claims.parts import ANSWERS, APART, AT_LEAST, CONTROLLED, GRAMS, MOVED, SCORE, UNDER, Question

LAYER = "times the mean loss of a layer"
EVEN, DEPTH, GAP = "times an even share", "of depth", "of the gap"
PROTOCOLS = "protocols of the same questions"


def _both(what: str, matters: float, claim: str = AT_LEAST) -> tuple[Question, Question]:
    """A question in answers as the study asks it, and in shares of what there is to lose."""
    return Question(what, ANSWERS, matters, claim), Question(what, SCORE, matters, claim, CONTROLLED)


HARMLESS = _both("Scored by {name}, three quarters of the layers after L1 cost no more than {effect} each", 0.10, UNDER)
CRITICAL = _both("Scored by {name}, L0 or L1 costs {effect} more than a later layer on average", 0.10)
WRITTEN = _both("A layer beyond the first third costs {effect} more if {name} is written, not chosen", 0.10)
LOOPS = (
    Question("A text that is written without a layer beyond the first third repeats {effect} more", GRAMS, 0.10),
    Question("Of what was new, a text without such a layer repeats {effect}", GRAMS, 0.10, row=CONTROLLED),
)
TREND = Question("A layer of the first third costs {effect} more than one of the last third", ANSWERS, 0.05)
SLOPE = TREND._replace(of=LAYER, matters=0.25, row=CONTROLLED)
VARIES = Question(
    "What the first third costs beyond the last differs between two {name} by {effect}", ANSWERS, 0.10, APART
)
VARIES_MORE = VARIES._replace(of=LAYER, matters=0.5, row=CONTROLLED)
VARIES_RELATIVE = VARIES._replace(of=SCORE, row=CONTROLLED)
SHALLOW = Question("The first third holds more of the loss for {name} than an even share, by {effect}", EVEN, 0.5)
SHALLOWER = Question(
    "The first third holds more of the loss for {name} than for plain text, by {effect}", EVEN, 0.5, row=CONTROLLED
)
DEEP = Question("The first third holds less of the loss for reasoning than for {name}, by {effect}", EVEN, 0.5)
DEEPER_THAN = DEEP._replace(row=CONTROLLED)
RESHAPED = Question("The centre of the losses on reasoning moved from that of the base by {effect}", DEPTH, 0.05, MOVED)
SHIFT = Question(
    "Beyond knowledge and the control, the losses on reasoning moved by {effect}", DEPTH, 0.05, MOVED, CONTROLLED
)
TRANSPLANTS = (
    Question("The best transplant, chosen on other documents, gains {effect}", ANSWERS, 0.10),
    Question("The best transplant, chosen on other documents, recovers {effect}", GAP, 0.25, row=CONTROLLED),
)
HEADS = (
    Question("Removing the {name} heads costs {effect} more than random heads of their layers", ANSWERS, 0.10),
    Question(
        "The {name} heads cost {effect} more, beyond the cost of random heads of their layers",
        "times their cost", TIMES - 1.0, row=CONTROLLED,
    ),
)  # fmt: skip
