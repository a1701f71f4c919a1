"""Operand swaps: texts that stay true, and scores against patching by hand."""

from __future__ import annotations

import operator
import re

import numpy as np
import pytest
import tiny
import torch

import depthlens as dl
from depthlens.experiments import operand_swaps as texts
from depthlens.experiments.worked_solutions import take_apart
from depthlens.tasks.token_spans import align

DIFFERENCE_TOLERANCE = 1e-4  # nats; differences of float32 logits, computed in another batch layout
OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
OPTIONS = {"limit": 80, "num_fewshot": 0, "store": None, "progress": False}
WILD = {"max_position_embeddings": 4096, "initializer_range": 0.5}  # weights with which one digit can turn an answer


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-mha", **WILD)


@pytest.fixture(scope="module")
def swaps(lens):
    return texts.operand_swaps(lens, dl.worked_solutions(lens, "arithmetic_cot", limit=24, num_fewshot=2))


def test_a_swap_is_the_same_problem_with_another_number(lens, swaps):
    assert len(swaps) > 20
    for swap in swaps:
        assert len(swap.prompt) == len(swap.swapped) and swap.answers[0] != swap.answers[1]
        before, after = (lens.tokenizer.decode(t) for t in (swap.prompt, swap.swapped))
        examples = before.rindex("Question:")
        assert before[:examples] == after[:examples]
        assert re.sub(r"\d+", "N", before) == re.sub(r"\d+", "N", after)
        told = (re.findall(r"\d+", text[examples:].rpartition("=")[0]) for text in (before, after))
        pairs = set(zip(*told, strict=True))
        assert swap.operand in pairs and [new for old, new in pairs if old == swap.operand[0]] == [swap.operand[1]]
        for text, result in ((before, swap.result[0]), (after, swap.result[1])):
            calculation = text.rpartition("=")[0].rpartition("\n")[2]
            a, sign, b = re.search(r"(\d+) ([-+*/]) (\d+) $", calculation).groups()
            assert OPERATIONS[sign](int(a), int(b)) == int(result)
        written = before.rpartition("=")[2].strip()
        assert all(r.startswith(written) for r in swap.result)  # up to the digit in which they differ


def test_results_before_follow_and_their_copies_too(lens):
    question = "Ann has 53, sells 12, buys 17. Answer:"
    text = align(lens, "text", question, " 53 - 12 = 41.\n41 + 17 = 58.")
    for seed in range(8):
        first, last = texts.operand_swaps(lens, [take_apart(seed, text, question)])
        assert [s.result[0] for s in (first, last)] == ["41", "58"]
        written = lens.tokenizer.decode(last.swapped)
        start, less, more = (int(n) for n in re.findall(r"\d+", written)[:3])
        steps = re.search(r"(\d+) - (\d+) = (\d+)\.\n(\d+) \+ (\d+) =", written)
        assert [int(n) for n in steps.groups()] == [start, less, start - less, start - less, more]
        assert int(last.result[1]) == start - less + more


def test_what_cannot_be_swapped_is_left_out(lens):
    words = ("Ann has five clips and buys two.", " 5 + 2 = 7")
    wrong = ("Ann has 5 clips and buys 2.", " 5 + 2 = 8")
    for question, solution in (words, wrong, ("Ann has 5 clips.", " 3 + 4 = 7")):
        assert texts.operand_swaps(lens, [take_apart(0, align(lens, "text", question, solution), question)]) == []


def difference(lens, tokens, answers, head=None, other=None):
    """Logit difference at the last position, with the z of a head there from another text."""
    kept = {}

    def hook(layer):
        def see(module, args):
            kept[layer] = args[0]
            if head is not None and layer == head[0]:
                z, part = args[0].clone(), slice(head[1] * lens.dims.d_head, (head[1] + 1) * lens.dims.d_head)
                z[0, -1, part] = other[layer][0, -1, part]
                return (z, *args[1:])

        return see

    handles = [o.register_forward_pre_hook(hook(layer)) for layer, o in enumerate(lens.arch.o_proj)]
    with torch.no_grad():
        logits = lens.model(torch.tensor([tokens])).logits[0, -1].double()
    for handle in handles:
        handle.remove()
    return (logits[answers[0]] - logits[answers[1]]).item(), kept


@pytest.mark.parametrize("family", ["llama-mha", pytest.param("deepseek-v2", marks=pytest.mark.nightly)])
def test_scores_are_those_of_patching_by_hand(family):
    lens = tiny.lens(family, **WILD)
    found = dl.operand_swap_scores(lens, **OPTIONS)
    made = texts.operand_swaps(lens, dl.worked_solutions(lens, "arithmetic_cot", limit=80, num_fewshot=0))
    by_document = {}
    for swap in made:
        text, _ = difference(lens, swap.prompt, swap.answers)
        swapped, other = difference(lens, swap.swapped, swap.answers)
        if text > 0 > swapped:
            heads = [(0, 1), (2, 3), (lens.dims.n_layers - 1, 0)]
            falls = [text - difference(lens, swap.prompt, swap.answers, head, other)[0] for head in heads]
            by_document.setdefault(swap.doc_id, []).append((*falls, text, swapped))
    cases = np.array([np.mean(rows, axis=0) for rows in by_document.values()])
    for i, head in enumerate(heads):
        assert found.values[head] == pytest.approx(cases[:, i].mean(), abs=DIFFERENCE_TOLERANCE)
    assert found.n == len(cases) and np.abs(found.values).max() > 100 * DIFFERENCE_TOLERANCE
    rows = [row for rows in by_document.values() for row in rows]
    counts = found.record["swaps"]
    assert (counts["asked"], counts["followed"]) == (len(made), len(rows))
    assert counts["text"] == pytest.approx(np.mean([r[3] for r in rows]), abs=DIFFERENCE_TOLERANCE)
    assert counts["swapped"] < 0 < counts["text"]
    assert not any(m._forward_pre_hooks for m in lens.model.modules())
