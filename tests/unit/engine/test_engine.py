"""The engine where memory runs out, and what its bar says; `test_token_places` has its answers."""

import numpy as np
import pytest
import tiny
import torch
from by_hand import patched, random_tokens
from refusals import refused

from depthlens.ablations import expand, parse_condition
from depthlens.engine import work
from depthlens.engine.engine import PATHS, Engine
from depthlens.requests import GenerateRequest, LoglikelihoodRequest

# float32 sums of about ten log-probabilities in another batch layout
LOGPROB_TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def requests():
    made = [(n, random_tokens(n + m, n)) for n, m in ((5, 1), (17, 3), (2, 2), (9, 6), (1, 1), (16, 2), (30, 4))]
    return [LoglikelihoodRequest(tokens[:n], tokens[n:]) for n, tokens in made]


def same(answers, wanted):
    found, wanted = ([[a.logprob for a in row] for row in rows] for rows in (answers, wanted))
    return np.allclose(found, wanted, rtol=0, atol=LOGPROB_TOLERANCE)


@pytest.mark.parametrize(("kind", "room"), [("loglikelihood", 100), ("generate_until", 70)])
@pytest.mark.parametrize("path", PATHS)
def test_out_of_memory_takes_fewer_rows_at_once_and_loses_nothing(lens, requests, monkeypatch, path, kind, room):
    conditions = [parse_condition("baseline"), parse_condition("L2"), parse_condition("L1.H0")]
    # all contexts have 80 tokens: one tree of them does not pass
    asked = requests if kind == "loglikelihood" else [GenerateRequest(q.context, (), 5) for q in requests]
    wanted = getattr(Engine(lens, progress=False), kind)(asked, conditions)
    engine = Engine(lens, path=path, batch_tokens=4096, progress=False)
    sizes = cramp(monkeypatch, lens, room)
    found = getattr(engine, kind)(asked, conditions)
    assert same(found, wanted) if kind == "loglikelihood" else found == wanted
    assert max(sizes) > room >= sizes[-1]


def cramp(monkeypatch, lens, tokens):
    """A device on which an MLP runs out of memory above so many tokens; returns the sizes that it was asked for."""
    sizes = []

    def small(x):
        sizes.append(x.shape[0] * x.shape[1])
        if sizes[-1] > tokens:
            raise torch.OutOfMemoryError("out of memory")
        return real(x)

    real = patched(monkeypatch, lens.arch.mlp[2], small)
    return sizes


def test_a_clean_row_that_was_cut_short_is_walked_again(lens, monkeypatch):
    """Memory runs out once within rows that are edited late; the next one walks alone, and the others after it."""
    request = LoglikelihoodRequest(tuple(range(1, 41)), (5,))
    conditions = [parse_condition(f"L1.H{head}[{at}]") for head in range(4) for at in range(30, 36)]
    wanted = Engine(lens, path="padded_rows", progress=False).loglikelihood([request], conditions)
    rates, seen = [], []

    def once(x):
        if not seen and len(x) == 8:  # the first rows
            seen.append(x)
            rates.extend([1e9, 0.0])  # from now on: one condition, then all
            raise torch.OutOfMemoryError("out of memory")
        return real(x)

    real = patched(monkeypatch, lens.arch.mlp[3], once)
    monkeypatch.setattr(work.WorkRate, "work", property(lambda rate: rates.pop() if rates else 520))
    assert same(Engine(lens, progress=False).loglikelihood([request], conditions), wanted)
    assert len(seen) == 1 and not rates


def test_memory_that_does_for_nothing_is_an_error(lens, requests, monkeypatch):
    cramp(monkeypatch, lens, 0)
    with pytest.raises(torch.OutOfMemoryError):
        Engine(lens, progress=False).loglikelihood(requests, [parse_condition("baseline")])


@pytest.mark.parametrize(("path", "cramped"), [("wavefront", True), ("padded_rows", False)])
def test_the_bar_moves_within_a_pack_and_ends_at_all_rows(lens, requests, monkeypatch, bar_states, path, cramped):
    if cramped:
        cramp(monkeypatch, lens, 70)
    conditions = expand("layers", lens.dims)
    total = len(conditions) * len(requests)
    batch, least = (4096, lens.dims.n_layers) if path == "wavefront" else (200, 2)
    prompts = [GenerateRequest(q.context, (), 8) for q in requests]
    for kind, asked in (("loglikelihood", requests), ("generate_until", prompts)):
        getattr(Engine(lens, path=path, batch_tokens=batch), kind)(asked, conditions)
        done = [n for n, of in bar_states if of == total]
        bar_states.clear()
        assert done[-1] == max(done) == total and len({*done}) >= least and (cramped or done == sorted(done))


def test_paths_that_do_not_exist_or_do_not_fit_are_refused(lens):
    refused("unknown path 'wave'; did you mean wavefront", Engine, lens, path="wave")
    windowed = tiny.lens("mistral", sliding_window=8)
    assert [Engine(windowed).path_for(n) for n in (8, 9)] == list(PATHS)
