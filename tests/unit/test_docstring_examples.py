"""Every public docstring has an example, and every example runs and prints what it says.

All examples share the names of `names`; what one assigns, no other sees.
"""

import doctest
import inspect
import re
import types
from pathlib import Path

import made_results
import notebook_suite
import pytest
import transplants

import depthlens as dl
from depthlens import paths
from depthlens.plots import figures

SPACES = ("claims", "organisms", "runner", "tasks")
PLACES = {"dl": dl} | {f"dl.{space}": getattr(dl, space) for space in SPACES}
NAMED = {f"{place}.{name}": getattr(of, name) for place, of in PLACES.items() for name in of.__all__}
NAMED |= {f"plot({of.__name__!r})": of for several in figures.FIGURES.values() for of in several}
# what has a docstring: no packages, and no constants such as `dl.claims.CLAIMS`; some have two names
PUBLIC = {id(of): (name, of) for name, of in NAMED.items() if callable(of) and not inspect.ismodule(of)}
CASES = [pytest.param(of, id=name) for name, of in sorted(PUBLIC.values(), key=lambda case: case[0])]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
ONE, TWO = "organism_one_hop", "organism_two_hop"


def examples_of(public, names=None) -> list[doctest.DocTest]:
    """The examples of a docstring, then those of methods, its own and its bases', each with names of its own."""
    bases = [of for of in getattr(public, "__mro__", ())[1:] if of.__module__.startswith("depthlens.")]
    found = (doctest.DocTestFinder().find(of, of.__name__, globs=names or {}) for of in (public, *bases))
    return [test for tests in found for test in tests]


@pytest.fixture(scope="module")
def names(tmp_path_factory, unchecked):
    """The objects that examples use: small ones of an organism, and made-up ones where real ones take long."""
    lens, quiet = dl.load("organism", device="cpu"), {"progress": False}
    both = dl.layer_sweep(lens, [ONE, TWO], limit=12, **quiet)
    heads = dl.head_sweep(lens, [ONE, TWO], limit=8, **quiet)
    base, donor = transplants.two("llama-gqa", max_position_embeddings=4096)
    needles = dl.tasks.task_needles(lens, ONE, limit=4)
    one, other = made_results.steps(2)
    letters, facts = (made_results.viewed(made_results.FEW, task) for task in ("letters", "facts"))
    subjects = made_results.same_documents(made_results.exact({"mmlu": (0.6, [0.3, 0.6])}, n=4))
    asked = subjects.asked.assign(subtask=["mmlu_anatomy", "mmlu_anatomy", "mmlu_virology", "mmlu_virology"])
    folder = tmp_path_factory.mktemp("examples")
    suite = notebook_suite.make(folder / "notebooks")
    notebook_suite.write(suite, "00_tour", notebook_suite.code(notebook_suite.PARAMETERS, "parameters"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(paths, "notebooks_dir", lambda: suite)
        yield {
            "dl": dl,
            **{"lens": lens, "base": base, "donor": donor, "needles": needles},
            **{"both": both, "result": both.select(tasks=ONE), "heads": heads, "scores": heads.head_losses(ONE, "acc")},
            "copying": dl.retrieval_scores(lens, ONE, limit=4, **quiet),
            "estimated": dl.head_sweep(lens, [ONE, TWO], method="attribution", limit=8, **quiet),
            "reasoning": dl.reasoning_scores(base, method="attribution", limit=2, **quiet),
            "blocks": dl.block_sweep(lens, ONE, max_size=3, limit=12, **quiet),
            "pairs": dl.pair_sweep(dl.load("organism:backup"), ONE, "heads", n_heads=3, limit=12, **quiet),
            "geometry": dl.depth_geometry(lens, limit=2, **quiet),
            "moved": dl.condition_sweep(base, ONE, "bottom@donor", donor=donor, limit=8, **quiet),
            "whole": dl.condition_sweep(donor, ONE, ["baseline"], limit=8, **quiet),
            **{"curve": made_results.removal_curve(), "greedy": made_results.greedy()},
            "race": made_results.race(["critical", "spared", "undecided"]),
            **{"one": one, "other": other, "comparison": dl.compare(one, other)},
            **{"letters": letters, "facts": facts},
            "verdicts": made_results.verdicts(made_results.FEW, "m"),
            "subjects": dl.Result(subjects.docs, subjects.record, asked),
            "report": dl.runner.run("02_plain", out="runs/tour", **quiet),
        }


@pytest.mark.parametrize("public", CASES)
def test_every_public_docstring_has_an_example(public):
    assert "Example:\n" in public.__doc__ and examples_of(public)[0].examples


def test_no_example_is_skipped():
    skipped = [path.name for path in Path(dl.__file__).parent.rglob("*.py") if "doctest: +SKIP" in path.read_text()]
    assert skipped == []


@pytest.mark.slow
@pytest.mark.parametrize("public", CASES)
def test_an_example_prints_what_it_says(public, names):
    told: list[str] = []
    for test in examples_of(public, names):
        doctest.DocTestRunner(optionflags=FLAGS, verbose=False).run(test, out=told.append)
    assert not told, "".join(told)


@pytest.mark.slow
def test_the_experiment_of_the_architecture_page_is_complete(names):
    page = (paths.data_dir().parent / "docs" / "architecture.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    module = types.ModuleType("cost_of_examples")
    exec(code, vars(module))
    test_an_example_prints_what_it_says(module.cost_of_examples, names | vars(module))
    assert len(code.splitlines()) < 50
