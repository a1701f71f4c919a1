"""Blocks of layers, and layers removed one after another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import tiny

import depthlens as dl
from depthlens.analysis import block_losses
from depthlens.analysis.block_removal import follow
from depthlens.errors import UserError
from depthlens.plots.blocks import block_map, greedy_curve

CHOICE = "organism_one_hop"
LIMIT = 16


@pytest.fixture(scope="module")
def lens():
    return dl.load("organism")


@pytest.fixture(scope="module")
def swept(lens):
    return dl.block_sweep(lens, [CHOICE, "organism_two_hop"], max_size=3, limit=LIMIT, progress=False)


@pytest.fixture(scope="module")
def greedy(lens):
    return dl.greedy_removal(lens, CHOICE, tolerance=0.3, limit=LIMIT, progress=False)


class TestBlockSweep:
    def test_every_contiguous_block_once(self, swept):
        expected = {"baseline", *(f"L{i}" for i in range(6)), *(f"L{i}-{i + 1}" for i in range(5))}
        expected |= {f"L{i}-{i + 2}" for i in range(4)}
        assert set(swept.docs["condition"]) == expected

    def test_single_layers_are_those_of_a_layer_sweep(self, lens, swept):
        layers = dl.layer_sweep(lens, [CHOICE, "organism_two_hop"], limit=LIMIT, progress=False)
        single = swept.docs[swept.docs["condition"].isin(set(layers.docs["condition"]))]
        order = ["task", "metric", "condition", "doc_id"]
        pd.testing.assert_frame_equal(
            single.sort_values(order, ignore_index=True), layers.docs.sort_values(order, ignore_index=True)
        )

    def test_a_block_is_what_removing_its_layers_does(self, lens, swept):
        two = dl.condition_sweep(lens, CHOICE, ["L1+L2", "L3-5"], limit=LIMIT, progress=False)
        for mine, its in (("L1-2", "L1-2"), ("L3-5", "L3-5")):
            a = two.docs[two.docs["condition"] == mine]["value"].to_numpy()
            b = swept.docs[(swept.docs["condition"] == its) & (swept.docs["task"] == CHOICE)]["value"].to_numpy()
            assert np.array_equal(a, b)

    @pytest.mark.parametrize("size", [0, -1, True])
    def test_sizes_that_do_not_exist(self, lens, size):
        with pytest.raises(UserError, match=f"max_size {size!r}: give a whole number of layers, at least 1"):
            dl.block_sweep(lens, CHOICE, max_size=size, limit=1)

    def test_table_and_findings(self, swept):
        table = block_losses.block_table(swept)
        assert len(table) == 2 * (6 + 5 + 4)
        row = table[(table["condition"] == "L3-5") & (table["task"] == CHOICE)].iloc[0]
        assert (row["start"], row["size"]) == (3, 3) and row["loss"] == pytest.approx(-row["delta"])
        # the one-hop circuit ends in layer 2; what lies after it costs under a half
        one_hop = next(line for line in block_losses.describe_blocks(swept, margin=0.5) if line.startswith(CHOICE))
        assert "**L3-5** (3 layers; up to 3 were tried)" in one_hop
        found = block_losses.largest_sparable(swept, margin=0.05).set_index("task").loc[CHOICE]
        assert pd.isna(found["condition"]) and found["proven"] > 0, "16 documents cannot show a loss under 0.05"
        assert block_losses.largest_sparable(swept, margin=0.5).set_index("task").loc[CHOICE, "p_adjusted"] < 0.05

    def test_where_nothing_is_proven_no_block_is_said_to_be_free(self, lens):
        few = dl.block_sweep(lens, CHOICE, max_size=2, limit=4, progress=False)
        assert not few.summary["p_adjusted"].lt(0.05).any()
        (line,) = (found for found in block_losses.describe_blocks(few) if "(acc)" in found)
        assert line.endswith(
            "none of 11 blocks of up to 2 layers is shown to cost less than 0.05 of the score above chance, and none "
            "to cost anything (n = 4)."
        )

    def test_a_result_without_blocks(self, lens):
        heads = dl.condition_sweep(lens, CHOICE, ["L1.H1"], limit=4, progress=False)
        with pytest.raises(UserError, match="the result has no blocks of layers"):
            block_losses.block_table(heads)

    def test_the_figure(self, swept):
        fig = block_map(swept)
        maps = [ax for ax in fig.axes if ax.get_xlabel() == "first layer of the block"]
        assert len(maps) == 2 and maps[0].get_title(loc="left").startswith(CHOICE)
        grid = next(m for m in maps[0].collections if m.get_gid() == "blocks").get_array()
        assert grid.shape == (3, 6) and grid.mask.sum() == 0 + 1 + 2


class TestGreedy:
    def test_each_step_is_the_cheapest_on_the_choosing_half(self, lens, greedy):
        gone: list[int] = []
        for step in greedy.steps.iloc[1:].itertuples():
            left = [layer for layer in range(6) if layer not in gone]
            tried = ["+".join(f"L{layer}" for layer in sorted([*gone, layer])) for layer in left]
            result = dl.condition_sweep(lens, CHOICE, tried, limit=LIMIT, progress=False).select(metrics="acc")
            names = list(dict.fromkeys(result.docs["condition"]))[1:]
            scores = []
            for name in names:
                values = result.docs[result.docs["condition"] == name].sort_values("doc_id")["value"].to_numpy()
                scores.append((values[::2].mean(), values[1::2].mean()))
            best = int(np.argmax([choose for choose, _ in scores]))
            assert step.layer == left[best] and step.removed == names[best]
            assert step.value == pytest.approx(scores[best][1])
            gone.append(step.layer)

    def test_it_ends_where_the_task_has_fallen_too_far(self, greedy):
        steps = greedy.steps
        assert steps["within"].iloc[:-1].all() and not steps["within"].iloc[-1]
        assert steps["chosen_by"].iloc[-1] < -0.3 <= steps["chosen_by"].iloc[:-1].min()
        # the circuit has its two heads in layers 1 and 2
        assert not {1, 2} & set(greedy.removed) and len(greedy.removed) >= 2
        assert f"one half of the documents lets **{len(greedy.removed)} of 6** layers go" in greedy.describe()[0]
        assert f"one more (L{steps['layer'].iloc[-1]}) costs the choosing half" in greedy.stopped
        assert greedy.verdict in ("within", "open") and steps["delta"].iloc[-2] >= -0.3

    def test_choosing_and_judging_documents_are_apart(self, greedy):
        assert (greedy.steps["n"] == LIMIT // 2).all()
        docs = greedy.result.docs
        last = docs[docs["condition"] == greedy.steps["removed"].iloc[1]].sort_values("doc_id")["value"].to_numpy()
        base = docs[docs["condition"] == "baseline"].sort_values("doc_id")["value"].to_numpy()
        assert greedy.steps["chosen_by"].iloc[1] == pytest.approx((last - base)[::2].mean())
        assert greedy.steps["delta"].iloc[1] == pytest.approx((last - base)[1::2].mean())

    @pytest.mark.parametrize(("cost", "most"), [(0.0, 0.0), (0.06, 0.05)])
    def test_the_judging_half_is_not_flattered(self, swept, cost, most):
        """Layers whose true losses add up beyond the tolerance are hardly ever said to be within it."""
        rng = np.random.default_rng(0)
        false = mean_judged = n = 0
        for _ in range(200):
            values: dict[str, np.ndarray] = {}

            def tried(gone, values=values):
                base = values.setdefault("", rng.normal(size=80))
                scores = {
                    layer: values.setdefault(
                        str([*gone, layer]), base - cost * (len(gone) + 1) + 0.2 * rng.normal(size=80)
                    )
                    for layer in range(8)
                    if layer not in gone
                }
                return base, scores

            rows, stopped = follow(tried, tolerance=0.1, max_removed=5)
            steps = pd.DataFrame(rows).astype({"layer": "Int64"})
            found = dl.Greedy(steps, swept, stopped, {"task": "t", "metric": "m", "tolerance": 0.1, "n_layers": 8})
            if found.removed:
                true = cost * len(found.removed)
                false += found.verdict == "within" and true > 0.1
                mean_judged += steps[steps["within"]].iloc[-1]["delta"] + true
                n += 1
        assert false / 200 <= most and n > 100
        assert abs(mean_judged / n) < 0.01, "the choice has not changed the mean on the judging half"

    def test_so_many_layers_at_the_most(self, lens):
        found = dl.greedy_removal(lens, CHOICE, tolerance=1.0, max_layers=2, limit=8, progress=False)
        assert len(found.removed) == 2 and found.stopped == "max_layers is 2"

    def test_no_layer_can_go(self, lens):
        found = dl.greedy_removal(
            lens, CHOICE, tolerance=0.0, metric="answer_logprob", measure="answer_logprob", limit=8, progress=False
        )
        assert found.removed == [] or found.steps["chosen_by"].iloc[1] >= 0
        assert "layer" in found.describe()[0]

    def test_a_store_keeps_the_steps(self, lens, tmp_path):
        options = {"tolerance": 0.3, "max_layers": 2, "limit": 8, "store": str(tmp_path), "progress": False}
        first = dl.greedy_removal(lens, CHOICE, **options)
        second = dl.greedy_removal(lens, CHOICE, **options)
        pd.testing.assert_frame_equal(first.steps, second.steps)
        assert second.result.record["parts"][0]["store"]["rows_computed"] == 0

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"tolerance": -0.1}, "tolerance -0.1: give a number, at least 0"),
            ({"tolerance": float("nan")}, "tolerance nan"),
            ({"max_layers": 0}, "max_layers 0: give a whole number, at least 1"),
            ({"metric": "f1"}, "unknown metric 'f1'"),
            ({"limit": 3}, "3 documents cannot be halved"),
        ],
    )
    def test_mistakes(self, lens, options, message):
        with pytest.raises(UserError, match=message):
            dl.greedy_removal(lens, CHOICE, **{"limit": 8, "progress": False} | options)

    def test_a_task_at_chance(self):
        with pytest.raises(UserError, match="is at chance with every layer in place"):
            dl.greedy_removal(
                tiny.lens("llama-gqa", max_position_embeddings=4096), "capitals_continuation", limit=8, progress=False
            )

    def test_the_figure(self, greedy):
        (ax,) = greedy_curve(greedy).axes
        judge, choose = (next(line for line in ax.lines if line.get_gid() == gid) for gid in ("judge", "choose"))
        assert np.allclose(judge.get_ydata(), greedy.steps["delta"])
        assert np.allclose(choose.get_ydata(), greedy.steps["chosen_by"])
        assert [t.get_text() for t in ax.get_xticklabels()][0] == "none"
        assert ax.get_ylabel() == "change of acc from the whole model"
