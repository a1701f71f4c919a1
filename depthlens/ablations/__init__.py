"""Ablations and conditions as plain data: what is removed, the text that says so, and words that mean many of them."""

from depthlens.ablations.conditions import (
    BASELINE,
    ENDS,
    GRAMMAR,
    INDEXED,
    MODES,
    ROUNDED,
    SITES,
    WEIGHTS,
    WORDS,
    Ablation,
    Condition,
    Dims,
    Head,
    heads_condition,
    parse_condition,
)
from depthlens.ablations.sweep_words import expand

__all__ = [
    "BASELINE",
    "ENDS",
    "GRAMMAR",
    "INDEXED",
    "MODES",
    "ROUNDED",
    "SITES",
    "WEIGHTS",
    "WORDS",
    "Ablation",
    "Condition",
    "Dims",
    "Head",
    "expand",
    "heads_condition",
    "parse_condition",
]
