"""The choice of documents by number: the same documents and prompts as in a run of all, under their own numbers."""

from __future__ import annotations

import pytest
from mini_tasks import DOCUMENTS

from depthlens.experiments.sweep import condition_sweep
from depthlens.tasks import harness

N = len(DOCUMENTS)
ALL = list(range(N))


@pytest.mark.parametrize(
    ("samples", "wanted"),
    [
        (range(0, N, 2), ALL[0:N:2]),
        ([3, 1], [1, 3]),
        ("1::2", ALL[1::2]),
        ("-2:", ALL[-2:]),
        (":99", ALL),
        ({"mini_shots": "2:4"}, ALL[2:4]),
        ({"mini_choice": [0]}, ALL),  # a task that is not named keeps all
        (None, ALL),
    ],
)
def test_documents_keep_their_numbers_prompts_and_answers(lens, load, samples, wanted):
    tasks = ("mini_shots", "mini_choice")
    (whole, _), (some, _) = (
        harness.prepare(lens, load(*tasks, num_fewshot=1, samples=s), samples=s) for s in (None, samples)
    )
    assert list(some.docs) == wanted
    assert {i: some.docs[i] for i in wanted} == {i: whole.docs[i] for i in wanted}
    ends = [
        {(i.doc_id, i.idx): i.args[0][-len(DOCUMENTS[i.doc_id]["q"]) - 3 :] for i in p.task.instances}
        for p in (whole, some)
    ]
    assert ends[1] == {key: text for key, text in ends[0].items() if key[0] in wanted}
    assert some.asked["doc_id"].tolist() == wanted


def test_a_sweep_of_both_halves_is_the_sweep_of_all(lens, load):
    def run(samples):
        return condition_sweep(lens, load("mini_choice"), "L2", samples=samples, progress=False)

    whole, even, odd = (run(s) for s in (None, "::2", range(1, N, 2)))
    assert (even.record["samples"], odd.record["samples"], whole.record["samples"]) == ("::2", f"1:{N}:2", None)
    scores = whole.scores("mini_choice", "acc")
    for half, ids in ((even, ALL[::2]), (odd, ALL[1::2])):
        part = half.scores("mini_choice", "acc")
        assert part.index.tolist() == ids and part.equals(scores.loc[ids])
