"""The figure of a race: a bar for each part, as long as it took, in the colour of its decision."""

from __future__ import annotations

import pandas as pd

from depthlens.analysis.races import CRITICAL, NOT_EXCLUDED, NOT_TOP, SPARED, TOP, UNDECIDED, Race
from depthlens.plots.races import MOST_ROWS, race_course


def made(n, tasks=("t",)):
    kinds = [CRITICAL, SPARED, UNDECIDED]
    rows = [
        {"task": task, "metric": "acc", "condition": f"L{i}", "layer": i, "decision": kinds[i % 3], "n": 16 + i}
        for task in tasks
        for i in range(n)
    ]
    record = {"alpha": 0.05, "margin": 0.1, "top": None, "n_documents": dict.fromkeys(tasks, 200)}
    return Race(pd.DataFrame(rows).assign(loss=0.0, ci_low=-1.0, ci_high=1.0, head=0), pd.DataFrame(), record)


def test_bars_are_documents():
    fig = race_course(made(6, ("one", "two")))
    assert len(fig.axes) == 2
    for ax, task in zip(fig.axes, ("one", "two"), strict=True):
        assert [bar.get_width() for bar in ax.patches] == [16, 17, 18, 19, 20, 21]
        assert len({bar.get_facecolor() for bar in ax.patches}) == 3
        assert [label.get_text() for label in ax.get_yticklabels()] == [f"L{i}" for i in range(6)]
        assert ax.get_title(loc="left").startswith(f"{task} (acc): 200 documents")
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "costs something",
        "costs less than 0.1",
        "undecided",
    ]


def test_of_many_those_that_took_longest():
    (ax,) = race_course(made(60)).axes
    assert [bar.get_width() for bar in ax.patches] == [16 + i for i in range(60 - MOST_ROWS, 60)]
    assert "the 40 of 60 that took longest" in ax.get_title(loc="left")


def test_the_legend_of_the_costliest_says_what_is_known():
    race = made(4)
    kinds = [TOP, NOT_EXCLUDED, NOT_TOP, NOT_TOP]
    costliest = Race(race.decisions.assign(decision=kinds), race.losses, race.record | {"top": 1})
    fig = race_course(costliest)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "among the 1 costliest, within 0.1",
        "not excluded from the 1 costliest",
        "not among the 1 costliest",
    ]
    assert len({bar.get_facecolor() for bar in fig.axes[0].patches}) == 3
