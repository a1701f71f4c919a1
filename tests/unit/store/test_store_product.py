"""The store works with every feature and with their combinations: asked twice, the second time nothing is computed."""

from __future__ import annotations

import random

import edits
import pandas as pd
import pytest
import torch
from stores import CHOICE, WRITTEN, run
from torch import nn

import depthlens as dl

TEXTS = ["one text", "another one"]
REFERENCES = ["a reference prompt"]
MIXED = ["L1@donor+L2@mean", "L3.H0@resample+L4.mlp@donor"]


def adapted(folder) -> dl.Lens:
    lens = dl.load(folder)
    edits.adapted(lens.model, random.Random(0))
    return lens


MODELS = {
    "in memory": dl.load,
    "offloaded": lambda folder: dl.load(folder, offload="disk"),
    "remote": lambda folder: dl.load(folder, remote="local"),
    "adapted": adapted,
}
DONORS = {
    "donor folder": str,
    "donor in memory": dl.load,
    "donor offloaded": lambda folder: dl.load(folder, offload="disk"),
}


def docs(*arguments, **options) -> pd.DataFrame:
    return run(*arguments, **options).docs


def heads(lens, store, **options) -> pd.DataFrame:
    options = {"method": "attribution", "limit": 2, "store": store, "progress": False} | options
    return dl.head_sweep(lens, CHOICE, **options).docs


def geometry(lens, store) -> pd.DataFrame:
    found = dl.depth_geometry(lens, TEXTS, store=store, progress=False)
    return pd.concat([found.distances, found.influences, found.logit_lens])


EXPERIMENTS = {
    "layers": lambda lens, store, donor: docs(lens, store, tasks=[CHOICE], limit=2),
    "mean": lambda lens, store, donor: docs(lens, store, ["L1@mean", "L2.attn@mean"], [CHOICE], limit=2),
    "resample": lambda lens, store, donor: docs(
        lens, store, ["L1.H0@resample"], [CHOICE], limit=2, resample_prompts=REFERENCES
    ),
    "mean by TransformerLens": lambda lens, store, donor: docs(
        lens, store, ["L1@mean"], [CHOICE], limit=1, backend="transformer_lens"
    ),
    "resample by nnsight": lambda lens, store, donor: docs(
        lens, store, ["L1.H0@resample"], [CHOICE], limit=1, resample_prompts=REFERENCES, backend="nnsight"
    ),
    "written": lambda lens, store, donor: docs(lens, store, tasks=[WRITTEN], limit=2),
    "written with means": lambda lens, store, donor: docs(lens, store, ["L1@mean"], [WRITTEN], limit=2),
    "attribution": lambda lens, store, donor: heads(lens, store),
    "attribution of means": lambda lens, store, donor: heads(lens, store, mode="mean"),
    "geometry": lambda lens, store, donor: geometry(lens, store),
    "effects": lambda lens, store, donor: dl.layer_effects(lens, TEXTS, store=store, progress=False),
    "donor": lambda lens, store, donor: docs(lens, store, ["L1@donor", "L2.H1@donor"], [CHOICE], limit=2, donor=donor),
    "donor, mean and resample": lambda lens, store, donor: docs(
        lens, store, MIXED, [CHOICE], limit=2, donor=donor, resample_prompts=REFERENCES
    ),
    "written with a donor": lambda lens, store, donor: docs(lens, store, ["L1@donor"], [WRITTEN], limit=2, donor=donor),
    "weight deltas": lambda lens, store, donor: dl.weight_deltas(lens, donor, store=store),
    "activation deltas": lambda lens, store, donor: dl.activation_deltas(lens, donor, TEXTS, store=store),
}
WITH_DONOR = [name for name in EXPERIMENTS if "donor" in name or "deltas" in name]
# each model meets the experiments that it takes, each experiment with a donor meets another kind of donor
CASES = [("in memory", name, None) for name in EXPERIMENTS if name not in WITH_DONOR]
CASES += [("in memory", name, donor) for name, donor in zip(WITH_DONOR, [*DONORS, *DONORS], strict=False)]
CASES += [("offloaded", "mean", None), ("offloaded", "donor, mean and resample", "donor offloaded")]
CASES += [("offloaded", "weight deltas", "donor in memory"), ("remote", "mean", None), ("remote", "written", None)]
CASES += [("adapted", "written with means", None), ("adapted", "attribution", None)]


@pytest.fixture(scope="module")
def models(saved):
    return {name: load(saved(max_position_embeddings=4096)) for name, load in MODELS.items()}


@pytest.fixture(scope="module")
def donors(saved):
    return {name: load(saved(moved=True, max_position_embeddings=4096)) for name, load in DONORS.items()}


@pytest.mark.parametrize(("model", "experiment", "donor"), CASES)
def test_asked_twice_it_is_computed_once(models, donors, tmp_path, monkeypatch, model, experiment, donor):
    def ask(store: str | None) -> pd.DataFrame:
        return EXPERIMENTS[experiment](models[model], store, donor and donors[donor])

    without = ask(None)
    first = ask(str(tmp_path))
    pd.testing.assert_frame_equal(first, without, rtol=0, atol=1e-5)  # remote traces round otherwise from run to run
    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "__call__", None)
        patch.setattr(torch.linalg, "vector_norm", None)
        second = ask(str(tmp_path))
    assert second.equals(first)
    assert list(tmp_path.glob("*/*/*.parquet"))
