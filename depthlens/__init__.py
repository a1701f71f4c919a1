"""depthlens: remove parts of a language model, many at a time, and measure exactly what each removal costs.

Heavy modules are imported on first use, so that ``import depthlens`` and the command line stay quick.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import warnings
from typing import Any

__version__ = "0.1.0"

# without ipywidgets tqdm writes plain bars in notebooks, which is what pages made headlessly can show
warnings.filterwarnings("ignore", message="IProgress not found")

# what torch and its like made lives until the end; taking it apart piece by piece would delay that by a second
atexit.register(gc.freeze)

_LAZY = {
    "load": "models",
    "Lens": "models",
    "layer_sweep": "sweep",
    "condition_sweep": "sweep",
    "head_sweep": "sweep",
    "block_sweep": "blocks",
    "greedy_removal": "blocks",
    "retrieval_scores": "heads",
    "reasoning_scores": "heads",
    "HeadScores": "head_scores",
    "removal_curve": "removal",
    "critical": "criticality",
    "transplant": "distill",
    "start": "session",
    "next_token": "engine",
    "Result": "results",
    "UserError": "errors",
    "Condition": "ablations",
    "Ablation": "ablations",
    "parse": "ablations",
}
_MODULES = (
    *("ablations", "architectures", "backends", "blocks", "claims", "criticality", "depth", "depth_comparison"),
    *("distill", "engine", "geometry", "harness", "head_effects", "head_scores", "heads", "mistakes", "models"),
    *("needles", "organism_tasks", "organisms", "patterns", "plots", "profiles", "reasoning", "recovery"),
    *("removal", "result_attention", "results", "retrieval", "runner", "solutions", "stats", "store", "subsets"),
    "sweep",
)

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(_module(_LAZY[name]), name)
    if name in _MODULES:
        return _module(name)
    raise AttributeError(f"module 'depthlens' has no attribute {name!r}")


def _module(name: str) -> Any:
    """Import a module without looking for garbage meanwhile: there is none, and that takes a quarter of the time."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"depthlens.{name}")
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted([*__all__, *_MODULES])
