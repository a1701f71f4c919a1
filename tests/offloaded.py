"""Requests for offloaded tiny models, and which of their layers are in memory."""

from __future__ import annotations

import torch

from depthlens.engine.engine import Engine
from depthlens.requests import LoglikelihoodRequest

# the same arithmetic on the same weights; only where they lie in memory differs, and with it the order of some sums
SAME = 1e-5
TASK = "capitals_continuation"


def requests(n=5, seed=0):
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 250, (n, 12), generator=draw).tolist()
    return [LoglikelihoodRequest((1, 2, 3, *row[: 4 + i]), tuple(row[9:])) for i, row in enumerate(tokens)]


def scores(lens, conditions, **options):
    answers = Engine(lens, progress=False, **options).loglikelihood(requests(), conditions)
    return torch.tensor([[a.logprob for a in row] for row in answers], dtype=torch.float64)


def layers_in_memory(lens):
    held = []
    for i, layer in enumerate(lens.arch.layers):
        places = {t.is_meta for t in layer.parameters()}
        assert len(places) == 1, "a layer is either there or not"
        held += [i] if places == {False} else []
    return held
