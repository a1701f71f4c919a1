r"""What goes wrong first in a written solution: is it the copying, the computing, or something else?

A solution is read as its equations in order (``53 - 12 = 41``, also GSM8K's ``53-12=<<53-12=41>>41``). The first that
fails decides:

``right``        the task scores the answer as right
``miscopied``    an operand is neither in the question (as digits or as a word) nor earlier in the solution
``miscomputed``  every operand is known, but the equation is false
``otherwise``    every equation holds, and the answer is wrong: steps are missing, needless or of the wrong kind, or the
                 answer is not the last result
``no steps``     no equation was written

Losses are counted on the documents that the whole model solves: the share of these that end as each mistake when a
layer is removed.

Limits: a number that is not in the question (7 days a week, 100 for per cent) counts as miscopied in a wrong solution.
Calculations in words are not recognised. A wrong plan that is carried out well is ``otherwise``, whatever led to it.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal, DivisionByZero, InvalidOperation
from typing import TYPE_CHECKING

import pandas as pd

from depthlens.analysis.findings import DescribedTable
from depthlens.analysis.questions import units
from depthlens.analysis.scores import THIRDS, layer_third
from depthlens.analysis.stats import BASELINE
from depthlens.analysis.words import WORDS, numbers
from depthlens.analysis.written_answers import headline

if TYPE_CHECKING:
    from depthlens.analysis.results import Result

RIGHT = "right"
MISTAKES = ("miscopied", "miscomputed", "otherwise", "no steps")
# read token by token: one pattern for a whole equation can backtrack for hours on the text of a broken model
_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\s\d$%]")
_SIGNS = {"+": "+", "-": "-", "*": "*", "/": "/", "x": "*", "×": "*", "÷": "/", "(": "(", ")": ")"}
_LONGEST = 99  # numbers and signs of an equation; more is no step, and too deep for Python's parser
_OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
_ROUNDING = Decimal("0.01")  # results may be rounded to cents


def first_mistake(written: str, question: str) -> str:
    """What goes wrong first in a solution that does not reach the right answer: one of `MISTAKES`.

    Args:
        written: The solution.
        question: The problem, without examples.
    """
    known = {value for _, _, value in numbers(question)}
    words = re.findall(r"[a-z]+", question.lower())
    known |= {WORDS[word] for word in words if word in WORDS}
    n_equations = 0
    for operands, value, result in equations(written):
        n_equations += 1
        if not operands <= known:
            return "miscopied"
        if value is None or abs(value - result) > _ROUNDING:
            return "miscomputed"
        known.add(result)
    return "otherwise" if n_equations else "no steps"


def equations(written: str) -> Iterator[tuple[set[Decimal], Decimal | None, Decimal]]:
    """Operands, value (None: cannot be calculated) and stated result of every equation with two operands or more."""
    for line in written.splitlines():
        left: list[str] = []  # numbers and signs since the last other character
        equated: list[str] | None = None  # the left side, once "=" was read
        for token in _TOKEN.findall(line):
            if token[0].isdigit():
                number = token.replace(",", "")
                if equated is not None:
                    operands = {Decimal(t) for t in equated if t[0].isdigit()}
                    if sum(t[0].isdigit() for t in equated) > 1:
                        yield operands, _value(equated), Decimal(number) * (-1 if left == ["-"] else 1)
                    equated, left = None, []
                left.append(number)
            elif token in _SIGNS and (left or token in "(-" or equated is not None):
                left.append(_SIGNS[token])
            elif token == "=" and left:
                equated, left = left, []
            else:
                equated, left = None, []


def _value(tokens: list[str]) -> Decimal | None:
    if len(tokens) > _LONGEST:
        return None
    if tokens[0] == "-":
        tokens = tokens[1:]  # of a list: no step of a word problem begins with a debt
    if tokens.count("(") != tokens.count(")"):
        tokens = [t for t in tokens if t not in "()"]  # a bracket of the sentence
    numbers_plain = (str(Decimal(t)) if t[0].isdigit() else t for t in tokens)  # Python refuses 08
    try:
        return _calculate(ast.parse(" ".join(numbers_plain), mode="eval").body)
    except (SyntaxError, ValueError, DivisionByZero, InvalidOperation):
        return None


def _calculate(node: ast.expr) -> Decimal:
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Decimal(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_calculate(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
        return _OPERATIONS[type(node.op)](_calculate(node.left), _calculate(node.right))
    raise ValueError(f"{ast.unparse(node)} is not a sum")


def classify_solutions(result: Result, task: str, questions: Sequence[str]) -> DescribedTable:
    """What every written solution of a task is: right, or its first mistake.

    Args:
        result: A sweep that has the task, scored as the task says; the metric that stands for it decides what is
            right (`depthlens.analysis.written_answers.headline`).
        task: Name of the task.
        questions: Its problems as text, by document id.

    Returns:
        One row a condition and document: condition, layer, doc_id, unit (`depthlens.analysis.questions.units`), kind,
        solved (right with nothing removed), response. It is described by one sentence a depth third: how many solved
        problems stay solved, and what goes wrong first in the others.

    Raises:
        UserError: the result does not have that task.
    """
    result = result.select(tasks=task)
    table = result.select(metrics=headline(task, list(result.docs["metric"].unique()))).docs
    table["kind"] = [
        RIGHT if row.value == 1 else first_mistake(row.response, questions[row.doc_id]) for row in table.itertuples()
    ]
    right = table[table["condition"] == BASELINE].set_index("doc_id")["kind"] == RIGHT
    table["solved"] = table["doc_id"].map(right)
    table["unit"] = table["doc_id"].map(units(result, task))
    columns = ["condition", "layer", "doc_id", "unit", "kind", "solved", "response"]
    lines = sentences(table, result.n_layers)
    return DescribedTable.of("classify_solutions", result, rows=table, columns=columns, lines=lines, task=task)


def by_layer(table: pd.DataFrame) -> pd.DataFrame:
    """Share of the problems solved with nothing removed that end as each kind, by removed layer (rows).

    Args:
        table: Of `classify_solutions`.

    Returns:
        Columns ``right`` and `MISTAKES`; without rows where no problem is solved or no single layer was removed.
    """
    single = table[table["solved"] & table["layer"].notna()]
    counts = pd.crosstab(single["layer"].astype(int), single["kind"]).reindex(columns=[RIGHT, *MISTAKES], fill_value=0)
    return counts.div(counts.sum(axis=1), axis=0)


def sentences(table: pd.DataFrame, n_layers: int) -> list[str]:
    """One sentence a depth third: how many solved problems stay solved, and what goes wrong first in the others.

    Args:
        table: Of `classify_solutions`.
        n_layers: Of the model.
    """
    shares, n = by_layer(table), table.loc[table["solved"], "doc_id"].nunique()
    if shares.empty:
        return ["The whole model solves none of the problems, or no single layer was removed."]
    thirds = shares.groupby(layer_third(shares.index, n_layers)).mean().rename(index=dict(enumerate(THIRDS)))
    lines = []
    for third, row in thirds.iterrows():
        wrong = ", ".join(f"{row[kind]:.0%} {kind}" for kind in MISTAKES)
        kept = f"{row[RIGHT]:.0%} of the {n} problems that the whole model solves stay solved"
        lines.append(f"Without one layer of the {third}, {kept}; by their first mistake, {wrong}.")
    return lines
