"""The study's eight claims, each as parts that can fail and can hold.

Every claim has two rows, which answer different questions. *As the study says it*: absolute losses of all layers, in
its own words. *Controlled*: relative losses, without what else could explain them. Losses of accuracy are relative to
what the whole model scores above a broken one; losses in depth are of the log-odds of the right answer per token, on
documents that are weighted to be equally easy (`depthlens.claims.measures`). The rules are fixed before they meet a new
model; docs/results.md lists those that were changed after results were seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from depthlens import arguments
from depthlens.claims import answers, heads, in_depth
from depthlens.claims.evidence import Evidence
from depthlens.claims.parts import Part


@dataclass(frozen=True, repr=False)
class Claim:
    """A claim of the study and how it is put to the test.

    Attributes:
        id: ``C1`` to ``C8``.
        statement: The claim, in our words.
        of: From the evidence to the parts; its docstring is the test in plain words.
        needs: The fields of `Evidence` it takes; a part of which some are missing says so.

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

    def __repr__(self) -> str:
        return f"{self.id}: {self.statement}"

    @property
    def test(self) -> str:
        """What the parts compare, in plain words."""
        return " ".join((self.of.__doc__ or "").split())

    def parts(self, evidence: Evidence) -> list[Part]:
        """What the evidence says of each part."""
        return list(self.of(evidence))


CLAIMS = (
    Claim(
        "C1",
        "Under likelihood metrics most single layers can be removed with little loss; only the first few are critical.",
        answers.c1, ("letters", "continuation"),
    ),
    Claim(
        "C2",
        "Under generation middle and deep layers become indispensable: the metric decides which layers look important.",
        answers.c2, ("letters", "generation", "reasoning", "reasoning_continuation", "texts"),
    ),
    Claim(
        "C3",
        "Knowledge and retrieval depend mostly on shallow layers.",
        in_depth.c3, ("continuation", "retrieval", "open_book", "text", "long_text", "tokens", "margins"),
    ),
    Claim(
        "C4",
        "Reasoning accuracy depends mostly on middle and deep layers, more than knowledge does.",
        in_depth.c4, ("continuation", "reasoning", "copying", "reasoning_choice", "tokens", "margins"),
    ),
    Claim(
        "C5",
        "A few attention heads carry retrieval and a few carry reasoning: removing those hurts far more than others.",
        heads.parts, ("heads",),
    ),
    Claim(
        "C6",
        "Distillation reshapes where reasoning lives in depth; transplanting distilled parts moves reasoning accuracy.",
        in_depth.c6,
        ("continuation", "reasoning", "reasoning_choice", "tokens", "margins", "base", "control", "transplants"),
    ),
    Claim(
        "C7",
        "Very deep layers are on the whole less effective than early ones.",
        answers.c7, (*answers.TASKS, "tokens"),
    ),
    Claim(
        "C8",
        "Depth usage is heterogeneous: which layers matter varies by task and by protocol.",
        answers.c8, (*answers.TASKS, "tokens"),
    ),
)  # fmt: skip


def chosen_claims(claims: str | Sequence[str] | None) -> list[Claim]:
    """The claims of some ids, in order; None: all.

    Raises:
        UserError: an unknown claim.
    """
    ids = [claim.id for claim in CLAIMS]
    wanted = ids if claims is None else arguments.chosen("claim", claims, ids)
    return [claim for claim in CLAIMS if claim.id in wanted]
