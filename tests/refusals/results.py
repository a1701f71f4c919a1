"""Mistakes with results, figures, claims and runs of notebooks: what is called, a part of the line.

A call gets ``e``: ``e.result`` (layers), ``e.heads`` (one layer's heads), ``e.scores`` (copy-paste scores), ``e.tmp``.
"""

from __future__ import annotations

import depthlens as dl
from depthlens.analysis import head_effects
from depthlens.analysis.block_losses import block_table
from depthlens.analysis.head_lists import head_roles
from depthlens.analysis.recovery import transplant_recovery
from depthlens.store.parts import open_store

Evidence = dl.claims.Evidence
KIND = "is a str, not the result of a sweep; give what a sweep returned"

RESULTS = [
    (lambda e: e.result.select(tasks="x"), "unknown task 'x'; allowed: organism_one_hop"),
    (lambda e: e.result.select(tasks=3), "task 3: give a name or a list of names out of: organism_one_hop"),
    (lambda e: e.result.select(tasks=[]), "task []: give a name or a list of names out of"),
    (lambda e: e.result.select(metrics="f1"), "unknown metric 'f1'; "),
    (lambda e: e.result.select(models="x"), "unknown model 'x'; "),
    (lambda e: e.result.select(conditions=["L99"]), "unknown condition 'L99'; "),
    (lambda e: e.result.select(conditions=[3]), "unknown condition 3; "),
    (lambda e: e.result.select(conditions=[]), "condition []: give a name or a list of names"),
    (lambda e: e.result.describe("baseline"), "the baseline is what the others are compared with; name another"),
    (lambda e: e.result.describe("L99"), "unknown condition 'L99'; "),
    (lambda e: e.result.describe(3), "condition 3: give a name or a list of names out of: baseline, L0"),
    (lambda e: e.result.describe([]), "condition []: give a name or a list of names"),
    (
        lambda e: e.result.describe(["L1", "baseline"]),
        "the baseline is what the others are compared with; name another",
    ),
    (lambda e: e.result.describe("L1", tasks="x"), "unknown task 'x'; "),
    (lambda e: e.result.describe("L1", metrics="f1"), "unknown metric 'f1'; "),
    *(
        (lambda e, x=x: e.result.critical(x), f"alpha {x!r} is not between 0 and 1; 0.05 is usual")
        for x in (-1, 2, "x", None, float("nan"), True)
    ),
    (lambda e: e.result.critical(0), "alpha 0 is not between 0 and 1; 0.05 is usual"),
    (lambda e: dl.critical_stability("x"), f"result {KIND}"),
    (lambda e: dl.critical_stability(e.result, n_boot=0), "n_boot 0: give a whole number, at least 1; 500 is usual"),
    (lambda e: dl.critical_stability(e.result, n_boot="x"), "n_boot 'x': give a whole number"),
    (lambda e: dl.critical_stability(e.result, seed=-1), "seed -1: give a whole number from 0"),
    (lambda e: dl.Result.load("/nowhere"), "'/nowhere' holds no docs.parquet; give a folder that Result.save wrote"),
    (lambda e: dl.Result.load(3), "folder 3: give the folder that Result.save wrote"),
    (lambda e: dl.Result(3, {}), "a result is made of a table of documents and a record, not of int and dict; give"),
    (lambda e: dl.Result(e.result.docs, 3), "not of DataFrame and int; give these two"),
    (lambda e: dl.Result(e.result.docs.drop(columns="value"), {}), "lacks column value; it needs exactly"),
    (lambda e: dl.Result(e.result.docs, {"a": float("nan")}), "the record cannot be written as JSON: Out of range"),
    (lambda e: dl.concat([]), "no results to join; give at least one"),
    (lambda e: dl.concat(e.result), "no results to join; give at least one, in a list"),
    (lambda e: dl.concat(["x"]), f"result {KIND}"),
    (lambda e: e.result.save(""), "folder '': the name of a folder is empty; name one"),
    (lambda e: e.result.save(None), "folder None: give the path of a folder, such as runs/mine"),
    (lambda e: e.result.save("a\0b"), "folder 'a\\x00b': give the path of a folder"),
    (lambda e: e.result.save("/proc/depthlens"), "cannot write to '/proc/depthlens': "),
    *(
        (lambda e, k=k: e.scores.top(k), f"k {k!r}: give a whole number of heads from 1 to 24")
        for k in (0, -1, 99, None, "3", True, 1.5)
    ),
    (lambda e: dl.HeadScores.load("/nowhere"), "'/nowhere' holds no heads.parquet; give a folder that HeadScores"),
    (lambda e: e.result.head_losses(), "conditions that are not one head each; give the result of a head"),
    (lambda e: head_effects.head_agreement(e.result, e.heads), "has conditions that are not one head each; give"),
    (lambda e: head_effects.auroc(e.scores, [(99, 0)]), "head L99.H0 does not exist; scored are 6 x 4"),
    (lambda e: head_roles(e.scores, e.scores), "was not tested; give losses, e.g. method='exact'"),
    (lambda e: block_table(e.heads), "the result has no blocks of layers; make it with block_sweep"),
    (lambda e: dl.analysis.loss_by_third(e.result, scale="x"), "unknown scale 'x'; allowed: score, above_chance"),
    (lambda e: dl.analysis.loss_by_third("x"), f"result {KIND}"),
    (
        lambda e: transplant_recovery(e.result, e.result),
        "no condition takes a part from a donor; sweep some",
    ),
]

COMPARE = [
    (lambda e: dl.compare(), "no run: a comparison needs two runs or more; give a folder that `depthlens sweep"),
    (lambda e: dl.compare(e.result), "run 'organism' alone: a comparison needs two runs or more; give"),
    (lambda e: dl.compare([e.result, e.result], e.result), "run of type list: give a folder that `depthlens sweep"),
    (lambda e: dl.compare(3, e.result), "run of type int: give a folder that `depthlens sweep --out`"),
    (lambda e: dl.compare("/nowhere", e.result), "run '/nowhere' is not a folder; give a folder"),
    (lambda e: dl.compare("a\0b", e.result), "run 'a\\x00b': give a folder"),
    (lambda e: dl.compare(e.result, e.result, n_boot=10), "n_boot 10: give a whole number, at least 200; the tails"),
    (lambda e: dl.compare(e.result, e.result, seed=-1), "seed -1: give a whole number from 0"),
    (lambda e: dl.Comparison.load("/nowhere"), "'/nowhere' holds no settings.parquet; give a folder that"),
    (lambda e: dl.runner.write_comparison(e.result, e.tmp / "x"), "comparison is a Result; give what"),
    (lambda e: dl.plots.run_profiles(e.result), "comparison is a Result; give what depthlens.compare returned"),
    (lambda e: dl.plots.run_map("x"), "comparison is a str; give what depthlens.compare returned"),
    (lambda e: dl.plots.scorecards("x"), "comparison is a str; give what depthlens.compare returned"),
]

PLOTS = [
    (lambda e: dl.plots.depth_profile("x"), f"result {KIND}"),
    (lambda e: dl.plots.depth_profile(None), "result is a NoneType, not the result of a sweep; give"),
    (lambda e: dl.plots.depth_profile(e.result, metrics="f1"), "unknown metric 'f1'; "),
    (lambda e: dl.plots.depth_profile(e.result, tasks="x"), "unknown task 'x'; "),
    (lambda e: dl.plots.depth_profile(e.result, value="x"), "value 'x' is not known; allowed: 'value', 'delta'"),
    (lambda e: dl.plots.depth_profile(e.heads), "no condition removes a single layer "),
    (lambda e: dl.plots.protocol_comparison("x"), f"result {KIND}"),
    (lambda e: dl.plots.protocol_comparison(e.result, metrics="f1"), "unknown metric 'f1'; "),
    (lambda e: dl.plots.head_map("x"), "scores is a str; give a head sweep, or scores of heads"),
    (lambda e: dl.plots.head_map(e.heads, metrics="f1"), "unknown metric 'f1'; "),
    (lambda e: dl.plots.head_map(e.heads, top=0), "top 0: give a whole number of heads, at least 1"),
    (lambda e: dl.plots.recovery_curve("x", e.result), f"result {KIND}"),
    (lambda e: dl.plots.block_map(e.heads), "the result has no blocks of layers; make it with block_sweep"),
    (lambda e: dl.plots.removal_curve(e.result), "curve is a Result; give what depthlens.removal_curve returned"),
    (lambda e: dl.plots.greedy_curve(e.result), "greedy is a Result; give what depthlens.greedy_removal returned"),
    (lambda e: dl.plots.scorecard("x"), "no verdicts to draw; give those of depthlens.claims.judge"),
    (lambda e: dl.plots.scorecard([]), "no verdicts to draw; give those of depthlens.claims.judge"),
]


def renamed(e):
    return dl.Result(e.result.docs.assign(model="other"), e.result.record)


CLAIMS = [
    (lambda e: Evidence(letters="x"), f"letters {KIND}"),
    (lambda e: Evidence(letters=[e.result, "x"]), f"letters {KIND}"),
    (lambda e: Evidence(transplants=3), "transplants is a int, not the result of a sweep; give"),
    (lambda e: Evidence(heads=e.result), "heads is a Result; give what depthlens.removal_curve returned"),
    (lambda e: Evidence(letters=e.result, generation=renamed(e)), "the sweeps are of models organism, other; judge"),
    (lambda e: dl.claims.judge("x"), "evidence is a str; give depthlens.claims.Evidence(...)"),
    (lambda e: dl.claims.judge(Evidence(), n_boot=10), "n_boot 10: give a whole number, at least 200; the tails"),
    (lambda e: dl.claims.judge(Evidence(), n_boot="x"), "n_boot 'x': give a whole number"),
    (lambda e: dl.claims.judge(Evidence(letters=e.result), seed=-1), "seed -1: give a whole number from 0"),
]


def run(names="00_tour", **options):
    return lambda e: dl.runner.run(names, **{"out": e.tmp / "out", **options})


RUNS = [
    (run(3), "no notebook named; give 'all' or any of: 00_tour"),
    (run(None), "no notebook named; give 'all' or any of: 00_tour"),
    (run([]), "no notebook named; give 'all' or any of: 00_tour"),
    (run([3]), "no notebook named; give 'all' or any of: 00_tour"),
    (run(profile=3), "unknown profile 3; allowed: "),
    (run(parameters=3), "parameters 3: give values by name, e.g. {'limit': 10}"),
    (run(parameters={"limit": "many"}), "parameter limit = 'many' of notebook 00_tour must be a whole number"),
    (run(out=None), "out None: give the path of a folder"),
    (run(out=""), "out '': give the path of a folder"),
    (lambda e: open_store(3), "store 3: give a folder or URL"),
]

CALLS = [*RESULTS, *COMPARE, *PLOTS, *CLAIMS, *RUNS]
