"""The store works with every feature and with their combinations: asked twice, the second time nothing is computed."""

import functools
import random

import edits
import pandas as pd
import pytest
import torch
from stores import CHOICE, WRITTEN, run
from torch import nn

import depthlens as dl

TEXTS = ["one text", "another one"]


def adapted(folder) -> dl.Lens:
    lens = dl.load(folder)
    edits.adapted(lens.model, random.Random(0))
    return lens


offloaded, remote = functools.partial(dl.load, offload="disk"), functools.partial(dl.load, remote="local")
MODELS = {"in memory": dl.load, "offloaded": offloaded, "remote": remote, "adapted": adapted}
DONORS = {"donor folder": str, "donor in memory": dl.load, "donor offloaded": offloaded}


def swept(*ablate, task=CHOICE, **options):
    """A sweep of two documents; with the donor, if a condition takes one."""

    def ask(lens, store, donor) -> pd.DataFrame:
        more = {"donor": donor} if "@donor" in str(ablate) else {}
        more |= {"resample_prompts": ["a reference prompt"]} if "@resample" in str(ablate) else {}
        return run(lens, store, [*ablate], [task], **{"limit": 2} | options | more).docs

    return ask


def attributed(lens, store, donor) -> pd.DataFrame:
    return dl.head_sweep(lens, CHOICE, store=store, method="attribution", limit=2, progress=False).docs


def geometry(lens, store, donor) -> pd.DataFrame:
    found = dl.depth_geometry(lens, TEXTS, store=store, progress=False)
    return pd.concat([found.distances, found.influences, found.logit_lens])


organism = functools.cache(lambda: dl.load("organism"))


def copying(method):
    """Of an organism, which has heads that copy, whatever the model."""
    options = {"limit": 4, "progress": False, "method": method}
    return lambda lens, store, donor: dl.retrieval_scores(organism(), "organism_one_hop", store=store, **options).frame


EXPERIMENTS = {
    "layers": swept("layers"),
    "mean": swept("L1@mean", "L2.attn@mean"),
    "resample": swept("L1.H0@resample"),
    "mean by TransformerLens": swept("L1@mean", limit=1, backend="transformer_lens"),
    "resample by nnsight": swept("L1.H0@resample", limit=1, backend="nnsight"),
    "written": swept("layers", task=WRITTEN),
    "written with means": swept("L1@mean", task=WRITTEN),
    "attribution": attributed,
    **{f"copying, {method}": copying(method) for method in ("copy_paste", "exact", "attribution")},
    "geometry": geometry,
    "donor": swept("L1@donor", "L2.H1@donor"),
    "donor, mean and resample": swept("L1@donor+L2@mean", "L3.H0@resample+L4.mlp@donor"),
    "written with a donor": swept("L1@donor", task=WRITTEN),
}
WITH_DONOR = [name for name in EXPERIMENTS if "donor" in name]
# each model meets the experiments that it takes, each experiment with a donor meets another kind of donor
CASES = [("in memory", name, None) for name in EXPERIMENTS if name not in WITH_DONOR]
CASES += [("in memory", name, donor) for name, donor in zip(WITH_DONOR, [*DONORS, *DONORS], strict=False)]
CASES += [("offloaded", "mean", None), ("offloaded", "donor, mean and resample", "donor offloaded")]
CASES += [("remote", "mean", None), ("remote", "written", None)]
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
