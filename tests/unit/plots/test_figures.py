"""Every figure by one table: how many panels, which series with which numbers, what is marked, and what is written.

A number is that of the table or result that the figure is drawn from. `check` draws each without warnings or cut edges.
"""

import geometries
import made_results
import numpy as np
import pandas as pd
import pytest
from drawn import Case, by_gid, holds, nothing_leaks  # noqa: F401 (a fixture for all of them)
from made_results import EARLY, LATE, nats, steps, sweep, two_scorecards

import depthlens as dl
from depthlens import plots
from depthlens.analysis import depth, differences, head_lists
from depthlens.analysis.races import CRITICAL, SPARED, UNDECIDED
from depthlens.analysis.results import Result, concat
from depthlens.analysis.run_comparison import ABOVE_FLOOR, CENTRE, SCORE

N, N_LAYERS = 120, 6


def layers(task="capitals", metric="acc", site="", *, base=0.9, scale=1.0, gain=None, flip=False, model="tiny", **info):
    """A deterministic sweep: without layer 0 all is lost, without layer 3 a share of 0.3 is kept; others do nothing."""
    kept = {"baseline": 1.0} | {f"L{i}{site}": {0: 0.0, 3: 0.3, gain: 1.0 / base}.get(i, 1.0) for i in range(N_LAYERS)}
    scores = {c: scale * (np.arange(N) < round(share * base * N)) for c, share in kept.items()}
    scores = {c: 1 - s for c, s in scores.items()} if flip else scores
    told = {"higher_is_better": not flip} | ({"chance": None} if flip else {}) | info
    return made_results.result({task: scores}, metric=metric, model=model, n_layers=N_LAYERS, info=told)


def delta(result, task=None):
    """Change by layer."""
    return (result.select(tasks=task) if task else result).summary["delta"].iloc[1:].to_numpy()


GUESS = layers("guess", base=0.25)
PROTOCOLS = concat([layers("continuation"), GUESS, layers("written", "exact_match", base=0.8, chance=None)])
BOTH = layers(model="a"), layers(model="b", base=0.6)


def centres(*results):
    return [[depth.centre_of_mass(r).table["centre"].item() * (N_LAYERS - 1)] for r in results]


def profiles(_):
    one = layers()
    yield Case(
        plots.depth_profile(one),
        1,
        y={"series": [one.summary["value"].iloc[1:]], "baseline": [[0.9, 0.9]], "chance": [[0.25, 0.25]]},
        x={"series": [range(N_LAYERS)], "critical": [[0, 3]]},
        words=("tiny, capitals: one layer removed at a time, n = 120 documents", "95% interval", "critical"),
    )
    yield Case(
        plots.depth_profile(one, value="delta", title="T"),
        1,
        y={"series": [delta(one)], "baseline": [[0, 0]]},
        count={"chance": 0},
        words=("T", "change of accuracy from baseline"),
    )
    few = Result(one.docs[one.docs["doc_id"] < 4], one.record)
    yield Case(plots.depth_profile(few), 1, count={"critical": 0}, words=("n = 4 documents",))
    yield Case(plots.depth_profile(PROTOCOLS), 1, count={"series": 3, "critical": 2}, cannot_judge=1)
    many = concat([PROTOCOLS, *(layers(f"kv_{i}") for i in range(4))])
    yield Case(plots.depth_profile(many), 7, count={"series": 7, "critical": 6}, cannot_judge=1)
    graded = layers("summaries", "rouge", scale=37.5, chance=None)
    yield Case(plots.depth_profile(concat([one, graded])), 2, words=("accuracy", "rouge"))
    sites = concat([one, layers(site=".attn"), layers(site="@donor")])
    said = ("attention", "donor", "one layer or part of it removed or replaced at a time")
    yield Case(plots.depth_profile(sites), 1, count={"series": 3}, words=said)
    for site, done in (("@mean", "replaced by the mean of what it adds"), ("@donor", "replaced by the donor's")):
        yield Case(plots.depth_profile(layers(site=site)), 1, words=(f"one layer {done} at a time",))
    yield Case(plots.depth_profile(layers(metric="error", flip=True)), 1, x={"critical": [[0, 3]]})
    gaps = one.select(conditions=["L0", "L3", "L4"])
    yield Case(plots.depth_profile(gaps), 1, y={"series": [[0, np.nan, np.nan, 32 / 120, 0.9, np.nan]]})
    masked = np.where(
        [[False], [True], [False]], np.nan, [delta(PROTOCOLS, t) for t in ("continuation", "guess", "written")]
    )
    yield Case(
        plots.protocol_comparison(PROTOCOLS),
        2,
        y={"changes": [masked]},
        x={"critical": [[0], [3], [0], [3]]},
        words=("continuation", "guess", "baseline 0.90"),
        cannot_judge=1,
    )
    yield Case(plots.protocol_comparison(layers(base=0.6, gain=5)), 2, x={"gain": [[5]]}, words=("significant gain",))
    shares = np.stack([delta(one) / delta(one).sum(), np.full(N_LAYERS, np.nan)])
    yield Case(
        plots.loss_shares(concat([one, GUESS])),
        2,
        y={"shares": [shares]},
        x={"centre": centres(one)},
        cannot_judge=1,
        words=("thirds of the depth", "share of the row's summed loss (red: loss)"),
    )
    yield Case(
        plots.profile_comparison(*BOTH),
        1,
        y={"series": [-delta(r) for r in BOTH]},
        cannot_judge=0,
        x={"critical": [[0, 3]] * 2, "centre": centres(*BOTH)},
        words=("a, b: loss by removed layer, n = 120 documents", "centre of mass, 95% interval"),
    )
    yield Case(plots.profile_comparison(concat([one, GUESS])), 2, count={"centre": 1}, cannot_judge=1)
    base, late = sweep(EARLY), sweep(LATE, model="late", seed=1)
    table = differences.layer_differences(base, late)
    proven = table[table["p_adjusted"] < 0.05]
    yield Case(
        plots.loss_difference(base, late),
        1,
        y={"difference": [table["difference"]]},
        x={"proven": [proven.loc[s * proven["difference"] > 0, "layer"] for s in (1, -1)]},
        words=("base loses more (proven", "late loses more (proven"),
    )
    at_chance = sweep(EARLY, accuracy=0.2, chance=0.25), sweep(LATE, chance=0.25, model="d")
    yield Case(plots.loss_difference(*at_chance), 1, count={"proven": 0, "difference": 1}, cannot_judge=1)


def transplants(_):
    """The last two layers hold what the donor knows more; each condition with its share of the gap."""
    order, last = np.arange(N) / N, N_LAYERS - 1
    shares = {f"L{k}@donor": 0 for k in range(N_LAYERS)} | {f"L0-{k}@donor": max(0, k - 3) / 2 for k in range(1, 6)}
    shares |= {f"L{k}-{last}@donor": min(1, (6 - k) / 2) for k in range(1, last)}
    scores = {c: order < 0.2 + 0.7 * s for c, s in ({"baseline": 0} | shares).items()}
    result = made_results.result({"t": scores}, model="base", info={"chance": 0.0})
    donor = made_results.result({"t": {"baseline": order < 0.9}}, model="donor", info={"chance": 0.0})
    low, high = [0.2] * 4 + [0.55, 0.9], [0.9] * 5 + [0.2]
    yield Case(
        plots.recovery_curve(result, donor),
        1,
        words=("share of the gap", "base with layers of donor, n = 120 documents"),
        y={"of one layer": [[0.2] * 6], "from the bottom": [low], "from the top": [high], "base": [[0.2] * 2]},
    )
    moved = [(la, m, 0.01 * la + 0.1 * i, 1 - 0.001 * la) for la in range(6) for i, m in enumerate("qkv")]
    moved += [(None, "embed.weight", np.inf, np.nan), (None, "unembed.weight", 0.0, 1.0)]
    weights = pd.DataFrame(moved, columns=["layer", "matrix", "relative", "cosine"]).astype({"layer": "Int64"})
    by_matrix = weights.iloc[:18].pivot(index="matrix", columns="layer", values="relative").loc[list("qkv")]
    outside = [[[np.nan], [0.0]]]  # an infinite change has no colour
    yield Case(plots.weight_deltas(weights), 3, y={"weights": [by_matrix], "outside": outside}, words=("unembed",))
    parts = pd.MultiIndex.from_product([("attn_out", "mlp_out"), range(5)], names=["part", "layer"])
    acts = pd.DataFrame({"relative": 0.1 * parts.get_level_values(1)}, index=parts).reset_index()
    ends = {"relative_low": 0.0, "relative_high": 0.5, "cosine": 0.99, "cosine_low": 0.9, "cosine_high": 1.0, "n": 8}
    y = {"relative": [0.1 * np.arange(5)] * 2, "cosine": [[0.99] * 5] * 2}
    yield Case(plots.activation_deltas(acts.assign(**ends)), 2, y=y, words=("n = 8 shared prompts",))


def head_figures(_):
    own, random = [[1, 0.1], [1, 0.95], [1, 0.95], [1, 0.15]], [[0.925] * 2] * 4
    yield Case(
        plots.removal_curve(made_results.removal_curve(("copy", "sums"))),
        2,
        words=("m: first k heads of a list removed, 2 random draws", "retrieval p = 0.04"),
        y={"list": own, "random": random, "outside": [[0.1], [0.15]]},
        count={"band": 4},
    )
    lower = plots.removal_curve(made_results.removal_curve(("copy",), better=False))
    yield Case(lower, 1, y={"outside": [[0.9]]})
    guess = plots.removal_curve(made_results.removal_curve(("guess",)))
    yield Case(guess, 1, count={"outside": 0, "list": 2}, cannot_judge=1)
    rng = np.random.default_rng(0)
    values = rng.beta(0.3, 9, (2, 12, 6))
    values[:, 3, 2] = 0.9, 2.5
    values[1, 6:] = np.nan  # only heads with both scores can be on both lists
    a, b = (made_results.head_scores(v, who) for who, v in zip(("copying", "loss"), values, strict=True))
    common = head_lists.head_overlap(a, b, k=5)
    yield Case(
        plots.head_overlap(a, b, k=5),
        1,
        x={"both": [[a.values[la, h] for la, h in common.heads]]},
        words=(
            f"m: {common.n} of the top 5 heads",
            f"{common.expected:.2g} expected of lists",
            f"p = {common.p_value:.2g} (36 heads)",
        ),
    )
    noise = rng.normal(size=(4, 12, 6)) + 4 * np.array([1, 1, 0, 0])[:, None, None] * rng.normal(size=(12, 6))
    found = dl.detector_agreement(
        {f"d{i}": made_results.head_scores(v) for i, v in enumerate(noise)},
        k=5,
        n_permutations=999,
    )
    adjusted = found.table[["p_spearman_adjusted", "p_shared_adjusted"]]
    agrees = int((adjusted < 0.05).sum(axis=None))
    said = (f"{found.table['spearman'][0]:.2f}", "agreement of 4 detectors over 72 heads")
    yield Case(plots.detector_agreement(found), 2, count={"number": 12, "agrees": agrees}, words=said)


def geometry_figures(_):
    g, effects, cheap = geometries.measured()
    single = g.distances[g.distances["size"] == 1]["distance"]
    sizes = g.distances.pivot(index="size", columns="layer", values="distance").to_numpy()
    best = [np.nanargmin(sizes, axis=1)]
    yield Case(
        plots.angular_map(g),
        2,
        y={"distances": [sizes]},
        x={"best": best},
        words=("layers in the block", "n = 3 texts"),
    )
    y = {"influence": [g.influences["influence"]], "distance": [single]}
    yield Case(plots.influence_profile(g), 2, y=y, count={"influence band": 1, "distance band": 1})
    y = {name: [g.logit_lens[name]] for name in ("probability", "entropy")}
    yield Case(plots.logit_lens(g, title="My lens"), 2, y=y, words=("My lens", "entropy (nats)", "final top-1 token"))
    grids = {w: t.pivot(index="layer", columns="later", values="effect") for w, t in effects.groupby("where")}
    every = range(geometries.N_LAYERS)
    y = {where: [grid.reindex(index=every, columns=every)] for where, grid in grids.items()}
    yield Case(plots.effect_map(effects), 3, y=y, words=("skipped layer", "later layer"))
    result = made_results.exact(geometries.ACCURACIES)
    scatter = plots.predictor_scatter(cheap, result)
    yield Case(scatter, 6, count={"layers": 6}, words=("loss (accuracy)", "ρ = ", "(noise allows "), cannot_judge=3)


def run_figures(tmp_path):
    two = dl.compare(sweep(EARLY, n=120, model="base"), sweep(LATE, n=120, model="late", seed=1))
    rows = [two.profiles[two.profiles["run"] == run] for run in ("base", "late")]
    yield Case(
        plots.run_profiles(two),
        1,
        y={"series": [r["share"] for r in rows]},
        x={"shown": [r.loc[r["critical"], "depth"] for r in rows]},
        words=("base, late: loss by removed part",),
    )
    table = two.differences
    of_scale = [table[table["scale"] == scale] for scale in (SCORE, ABOVE_FLOOR)]
    y = {"series": [r["difference"] for r in of_scale], "shown": [r.loc[r["shown"], "difference"] for r in of_scale]}
    yield Case(plots.run_differences(two), 2, y=y, words=("late minus base",))
    stages = dl.compare(*steps(5), stages=True)
    centres = stages.centres[stages.centres["measure"] == CENTRE]
    each = [(stages.baselines, "baseline"), (centres, "value")]
    y = [table.loc[table["task"] == task, column] for table, column in each for task in ("sums", "words")]
    yield Case(plots.run_centres(stages), 4, y={"series": y}, words=("step1", "step5"))
    cards = dl.compare(*two_scorecards(tmp_path))
    count = {"effect": np.isfinite(cards.verdicts["effect"]).sum()}
    yield Case(plots.scorecards(cards), 3, count=count, words=("few", "flat", "shown", "reversed"))
    alone = made_results.verdicts(made_results.FEW, "m")
    count = {"effect": np.isfinite(alone.parts[alone.parts["view"] == "decides"]["effect"]).sum()}
    yield Case(plots.scorecard(alone), 3, count=count, words=(f"m: {alone.headline}", "✓ shown", "? open"))


def other_figures(_):
    kinds = [CRITICAL, SPARED, UNDECIDED]
    fig = plots.race_course(made_results.race(kinds * 20))
    assert [bar.get_width() for bar in fig.axes[0].patches] == [20 + i for i in range(20, 60)]
    assert len({bar.get_facecolor() for bar in fig.axes[0].patches}) == 3
    yield Case(fig, 1, words=("the 40 of 60 that took longest", "costs less than 0.1", "undecided"))
    blocks = {f"L{i}-{j}" if j > i else f"L{i}": 0.2 * (j - i + 1) for i in range(4) for j in range(i, min(4, i + 3))}
    made = made_results.result(
        {"t": {c: np.arange(N) < (0.9 - x) * N for c, x in {"baseline": 0, **blocks}.items()}}, n_layers=4
    )
    yield Case(plots.block_map(made), 2, count={"blocks": 1}, words=("first layer of the block",))
    yield Case(
        plots.greedy_curve(made_results.greedy()),
        1,
        y={"judge": [[0.0, -0.02]], "choose": [[0.0, -0.01]]},
        words=("none",),
    )
    costs = {"closed": [3.0, 0.1, 2.0], "open": [3.0, 1.5, 0.1]}  # layer 2 knows, layer 1 finds
    books = concat([nats(x, task=task, seed=len(task), noise=0.2, n_layers=6) for task, x in costs.items()])
    losses = differences.open_book_losses(made_results.same_documents(books), "closed", "open")
    fig = plots.open_book_losses(losses.table)
    marks = {round(float(x)): line.get_marker() for line in by_gid(fig, "gap") for x in line.get_xdata()}
    assert (marks[1], marks[2]) == ("^", "v")
    yield Case(fig, 1, words=("layer",))
    kinds = pd.DataFrame({"condition": ["baseline", "L0", "L1"], "layer": pd.array([None, 0, 1], "Int64"), "doc_id": 0})
    kinds = kinds.assign(kind=["right", "miscopied", "right"], solved=True, response="")
    fig = plots.first_mistakes(kinds)
    assert [
        sum(b.get_height() for b in fig.axes[0].patches if b.get_x() == x)
        for x in {b.get_x() for b in fig.axes[0].patches}
    ] == [1, 1]
    yield Case(fig, 1, words=("still right", "miscopied", "no steps"))


SETS = {
    "layers": profiles,
    "donors": transplants,
    "heads": head_figures,
    "geometry": geometry_figures,
    "others": other_figures,
    "runs": run_figures,
}


@pytest.mark.parametrize("name", SETS)
def test_figures_draw_their_tables(name, tmp_path):
    for case in SETS[name](tmp_path):
        holds(case)
