r"""Operand swaps: worked solutions in which one number of the question is another, so that a computed result changes.

``Jack had 23 marbles and lost 2 ... 23 - 2 = 21`` becomes ``Jack had 27 marbles and lost 2 ... 27 - 2 = 25``. Both have
the same tokens but for the numbers, so that what a head writes at the position that predicts the result can be moved
from one to the other: a counterfactual in the sense of activation patching (Vig et al. 2020, arXiv 2004.12265; Stolfo,
Belinkov, Sachan 2023, arXiv 2305.15054, swap operands to find the path of arithmetic).

A swap replaces every occurrence of the operand's value in the question and in the solution before the result. Results
in between that depend on it are calculated anew, and their later occurrences follow. It is made only where

* the result is computed (`depthlens.experiments.worked_solutions`) and written after its calculation, which is true,
* an operand of this calculation occurs in the question in digits,
* every number keeps its number of digits, the new operand occurs nowhere else, and both texts have equally many tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from random import Random
from typing import TYPE_CHECKING

from depthlens.analysis.solution_errors import calculate
from depthlens.analysis.text_numbers import numbers
from depthlens.errors import UserError
from depthlens.experiments import worked_solutions
from depthlens.experiments.worked_solutions import Solution
from depthlens.models.lens import Lens
from depthlens.tasks import token_spans

if TYPE_CHECKING:  # slow to import
    from depthlens.tasks.encoding import Encoder

_CALCULATION = re.compile(r"[\d.,$%()\s+\-*/x×÷]+$")


@dataclass(frozen=True)
class Swap:
    """One result, and the same text with another operand and therefore another result.

    Attributes:
        doc_id: Document of the task.
        operand: The number that is replaced, and what replaces it.
        result: The result in both texts.
        prompt: Token ids up to the first token in which the results differ, which is not among them.
        swapped: The same of the other text, of the same length.
        answers: Token ids of the next token in both texts.
    """

    doc_id: int
    operand: tuple[str, str]
    result: tuple[str, str]
    prompt: tuple[int, ...]
    swapped: tuple[int, ...]
    answers: tuple[int, int]


def operand_swaps(lens: Lens, solved: Sequence[Solution], *, seed: int = 0) -> list[Swap]:
    """Every result of worked solutions for which a swap can be made, with one swap each.

    Args:
        lens: The model that reads them.
        solved: From `depthlens.worked_solutions`.
        seed: Of the choice of operand and replacement.
    """
    from depthlens.tasks.encoding import Encoder  # slow to import

    encoder = Encoder(lens)
    return [swap for solution in solved for swap in _of_solution(lens, solution, encoder, seed)]


def _of_solution(lens: Lens, solution: Solution, encoder: Encoder, seed: int) -> Iterator[Swap]:
    text = solution.text
    begin = text.offsets[solution.question[0]][0] if solution.question else 0
    examples, question = text.context[:begin], text.context[begin:]
    asked = {value for _, _, value in numbers(question)}
    for start, end, kind in worked_solutions.kinds(text.continuation, question, examples):
        if kind != "computed" or (calculation := _calculation(text.continuation[:start])) is None:
            continue
        if calculate(calculation) != (value := Decimal(text.continuation[start:end].replace(",", ""))):
            continue
        random = Random(f"swap {seed} {solution.doc_id} {start}")
        operands = sorted({v for _, _, v in numbers(calculation)} & asked)
        written = text.continuation[:start]
        taken = asked | {v for _, _, v in numbers(written)} | {value}
        choices = [(old, new) for old in operands for new in _replacements(old) if new not in taken]
        for old, new in random.sample(choices, len(choices)):
            if swap := _swap(lens, solution.doc_id, (examples, question, text.continuation[:end]), old, new, encoder):
                yield swap
                break


def _calculation(before: str) -> str | None:
    """The calculation whose result follows, if one does: ``53 - 12`` of ``She has 53 - 12 =``."""
    left = before.rstrip(" $-")
    found = _CALCULATION.search(left[:-1].rpartition("=")[2].rpartition("\n")[2]) if left.endswith("=") else None
    return found.group().strip(" .,x") if found and calculate(found.group().strip(" .,x")) is not None else None


def _replacements(value: Decimal) -> list[Decimal]:
    """Whole numbers from 2 on with as many digits."""
    if value != int(value) or value < 1:
        return []
    digits = len(str(int(value)))
    return [Decimal(n) for n in range(max(2, 10 ** (digits - 1)), 10**digits)] if digits < 4 else []


def _swap(
    lens: Lens, doc_id: int, parts: tuple[str, str, str], old: Decimal, new: Decimal, encoder: Encoder
) -> Swap | None:
    """The swap of one value for another, if it fits.

    Args:
        lens: The model.
        doc_id: Document of the task.
        parts: Examples, question, and the solution with the result, which ends it.
        old: The operand.
        new: What replaces it.
        encoder: Of the model.
    """
    examples, question, written = parts
    becomes = {old: new}
    other_question = _rewritten(question, becomes, results=False)
    other_written = _rewritten(written, becomes, results=True)
    if other_question is None or other_written is None:
        return None
    (*_, (start, end, value)), (*_, other) = numbers(written), numbers(other_written)
    if other[2] == value:
        return None
    texts = []
    for asked, solution in ((question, written), (other_question, other_written)):
        text = token_spans.align(lens, f"document {doc_id}", examples + asked, solution, encoder)
        texts.append((text.tokens, text.positions(len(examples + asked) + start, len(examples + asked) + end)))
    (tokens, places), (others, other_places) = texts
    if len(tokens) != len(others) or places != other_places:
        return None
    differs = next((p for p in places if tokens[p] != others[p]), None)
    if differs is None:
        return None
    answers = tokens[differs], others[differs]
    results = written[start:end], other_written[start:end]
    return Swap(doc_id, (str(old), str(new)), results, tokens[:differs], others[:differs], answers)


def _rewritten(text: str, becomes: dict[Decimal, Decimal], *, results: bool) -> str | None:
    """A text whose numbers follow from replaced ones; None where a number would change its length.

    Args:
        text: Its numbers are read in order.
        becomes: What replaces a value; results that change are added.
        results: Whether numbers after a calculation are its result.
    """
    made, at = "", 0
    for start, end, value in numbers(text):
        made += text[at:start]
        new: Decimal | None = becomes.get(value, value)
        before = _calculation(text[:start]) if results else None
        if before is not None and calculate(before) == value:
            calculated = _calculation(made)
            new = calculate(calculated) if calculated is not None else None
            if new is not None:
                becomes[value] = new
        written = None if new is None or new != int(new) or new < 0 else str(int(new))
        if written is None or len(written) != end - start:
            if new != value:
                return None
            written = text[start:end]
        made, at = made + written, end
    return made + text[at:]


def enough(swaps: Sequence[Swap], tasks: Sequence[str], n_solutions: int) -> None:
    """Refuse tasks without swaps.

    Raises:
        UserError: there are none.
    """
    if not swaps:
        fix = "operands must be in the question in digits, and results after their calculation; take more documents"
        raise UserError(f"tasks {', '.join(tasks)}: no operand of {n_solutions} solutions can be swapped: {fix}")
