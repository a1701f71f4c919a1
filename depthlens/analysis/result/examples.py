"""A saved sweep that comes with depthlens: something to look at before a model is downloaded."""

from __future__ import annotations

from depthlens import paths
from depthlens.analysis.result.results import Result


def examples() -> Result:
    """A sweep to look at: every layer of the embedded ``smollm2-135m-cot`` removed in turn. No model is loaded.

    It asks 60 questions about capitals in three ways, without worked examples: the model chooses a letter
    (``capitals_default``), chooses a text (``capitals_continuation``), or writes (``capitals_generative``).
    ``data/README.md`` has the command that made it.

    Example:
        >>> dl.examples().answers("L23", task="capitals_generative")["answer"].head(2).tolist()
        ['Kolkuru', 'Calcutta']
    """
    return Result.load(paths.data_dir() / "example")
