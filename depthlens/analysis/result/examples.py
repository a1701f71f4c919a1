"""Saved sweeps that come with depthlens: something to look at, and to compare with one's own."""

from __future__ import annotations

from depthlens import paths
from depthlens.analysis.result.results import Result
from depthlens.errors import unknown


def examples(name: str = "smollm2-135m-cot") -> Result:
    """A sweep over all layers of a model, from the package: no model is loaded.

    ``smollm2-135m-cot`` was asked 60 questions about capitals, without worked examples: in ``capitals_generative`` it
    writes the answer, in ``capitals_continuation`` it chooses among four. The others are models of the atlas
    (``docs/atlas.md``) on published benchmarks: scores by the number of the document, without any text of these.
    ``dl.compare(mine, dl.examples(name))`` puts one's own sweep beside one of them.

    Raises:
        UserError: an unknown name; the message lists all.

    Example:
        >>> dl.examples().answers("L23", task="capitals_generative")["answer"].head(2).tolist()
        [' Kolkuru', ' Calcutta']
    """
    folder = paths.data_dir() / "examples"
    if name not in (names := sorted(path.name for path in folder.iterdir())):
        raise unknown("example", name, names)
    return Result.load(folder / name)
