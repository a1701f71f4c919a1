"""The study's eight claims, each as parts that can fail and can hold.

Every claim has two rows, which answer different questions. *As the study says it*: absolute losses of all layers, in
its own words. *Controlled*: relative losses, without what else could explain them. Losses of accuracy are relative to
what the whole model scores above a broken one; losses in depth are of the log-odds of the right answer per token, on
documents that are weighted to be equally easy (`depthlens.claims.measures`). The rules are fixed before they meet a new
model; docs/results.md lists those that were changed after results were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from depthlens.claims import answers, heads, in_depth
from depthlens.claims.evidence import Evidence
from depthlens.claims.measures import not_measured
from depthlens.claims.parts import Part, Question, missing, named


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim of the study and how it is put to the test.

    Attributes:
        id: ``C1`` to ``C8``.
        statement: The claim, in our words.
        of: From the evidence to the parts; its docstring is the test in plain words.
        needs: The fields of `Evidence` it takes; a part of which some are missing says so.
        questions: Of the parts; they are named where all evidence is missing.

    Example:
        >>> claim = dl.claims.CLAIMS[2]
        >>> claim
        C3: Knowledge and retrieval depend mostly on shallow layers.
        >>> claim.needs
        ('continuation', 'retrieval', 'open_book', 'text', 'long_text', 'tokens', 'margins')
    """

    id: str
    statement: str
    of: Callable[[Evidence], Iterator[Part]]
    needs: tuple[str, ...]
    questions: tuple[Question, ...]

    def __repr__(self) -> str:
        return f"{self.id}: {self.statement}"

    @property
    def test(self) -> str:
        """What the parts compare, in plain words."""
        return " ".join((self.of.__doc__ or "").split())

    def parts(self, evidence: Evidence) -> list[Part]:
        """What the evidence says of each part."""
        if not any(evidence.results(name) for name in self.needs):
            return [missing(named(question, "..."), not_measured(self.needs)) for question in self.questions]
        return list(self.of(evidence))


CLAIMS = (
    Claim(
        "C1",
        "Under likelihood metrics most single layers can be removed with little loss; only the first few are critical.",
        answers.c1, ("letters", "continuation"), (*answers.HARMLESS, *answers.CRITICAL),
    ),
    Claim(
        "C2",
        "Under generation middle and deep layers become indispensable: the metric decides which layers look important.",
        answers.c2, ("letters", "generation", "reasoning", "reasoning_continuation", "texts"),
        (*answers.WRITTEN, *answers.LOOPS),
    ),
    Claim(
        "C3",
        "Knowledge and retrieval depend mostly on shallow layers.",
        in_depth.c3, ("continuation", "retrieval", "open_book", "text", "long_text", "tokens", "margins"),
        (in_depth.SHALLOW, in_depth.SHALLOWER),
    ),
    Claim(
        "C4",
        "Reasoning accuracy depends mostly on middle and deep layers, more than knowledge does.",
        in_depth.c4, ("continuation", "reasoning", "copying", "reasoning_choice", "tokens", "margins"),
        (in_depth.DEEP, in_depth.DEEPER_THAN),
    ),
    Claim(
        "C5",
        "A few attention heads carry retrieval and a few carry reasoning: removing those hurts far more than others.",
        heads.parts, ("heads",), (heads.EXCESS, heads.TIMES_RANDOM),
    ),
    Claim(
        "C6",
        "Distillation reshapes where reasoning lives in depth; transplanting distilled parts moves reasoning accuracy.",
        in_depth.c6,
        ("continuation", "reasoning", "reasoning_choice", "tokens", "margins", "base", "control", "transplants"),
        (in_depth.RESHAPED, in_depth.SHIFT, in_depth.GAINED, in_depth.RECOVERED),
    ),
    Claim(
        "C7",
        "Very deep layers are on the whole less effective than early ones.",
        answers.c7, (*answers.TASKS, "tokens"), (answers.TREND, answers.SLOPE),
    ),
    Claim(
        "C8",
        "Depth usage is heterogeneous: which layers matter varies by task and by protocol.",
        answers.c8, (*answers.TASKS, "tokens"), (answers.VARIES, answers.VARIES_MORE, answers.VARIES_RELATIVE),
    ),
)  # fmt: skip
