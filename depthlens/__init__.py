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
    "load": "models.loading",
    "Lens": "models.loading",
    "layer_sweep": "experiments.sweep",
    "condition_sweep": "experiments.sweep",
    "head_sweep": "experiments.sweep",
    "block_sweep": "experiments.block_removal",
    "greedy_removal": "experiments.block_removal",
    "retrieval_scores": "experiments.head_roles",
    "reasoning_scores": "experiments.head_roles",
    "HeadScores": "analysis.head_scores",
    "removal_curve": "experiments.head_removal",
    "critical": "analysis.stability",
    "transplant": "experiments.distillation",
    "start": "runner.session",
    "next_token": "engine.engine",
    "Result": "analysis.results",
    "UserError": "errors",
    "Condition": "ablations",
    "Ablation": "ablations",
    "parse": "ablations",
}
_MODULES = {
    "ablations": "ablations",
    "architectures": "models.architectures",
    "backends": "backends",
    "blocks": "experiments.block_removal",
    "claims": "claims.verdicts",
    "criticality": "analysis.stability",
    "depth": "analysis.depth",
    "depth_comparison": "analysis.model_comparison",
    "distill": "experiments.distillation",
    "engine": "engine.engine",
    "geometry": "experiments.geometry",
    "harness": "tasks.harness",
    "head_effects": "analysis.head_effects",
    "head_scores": "analysis.head_scores",
    "heads": "experiments.head_roles",
    "mistakes": "analysis.solution_errors",
    "models": "models.loading",
    "needles": "tasks.needles",
    "organism_tasks": "organisms.language",
    "organisms": "organisms.builder",
    "patterns": "experiments.attention_patterns",
    "plots": "plots",
    "profiles": "analysis.layer_profiles",
    "reasoning": "claims.depth_contrasts",
    "recovery": "analysis.recovery",
    "removal": "experiments.head_removal",
    "result_attention": "experiments.result_attention",
    "results": "analysis.results",
    "retrieval": "analysis.open_book",
    "runner": "runner.execute",
    "solutions": "experiments.worked_solutions",
    "stats": "analysis.stats",
    "store": "store.parts",
    "subsets": "analysis.subgroups",
    "sweep": "experiments.sweep",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(_module(_LAZY[name]), name)
    if name in _MODULES:
        return _module(_MODULES[name])
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
