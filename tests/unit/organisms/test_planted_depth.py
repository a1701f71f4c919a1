"""Organisms with planted depth, where each layer costs what was planted there, and with heads divided into copies."""

import json
from functools import cache

import numpy as np
import planted_depth
import planted_heads
import pytest
import torch
from organism_prompts import sample

from depthlens.ablations import expand
from depthlens.claims import judge
from depthlens.claims.parts import CONTROLLED, OPEN, REVERSED, SHOWN, SMALLER, worst
from depthlens.engine.engine import Engine
from depthlens.models import loading
from depthlens.organisms import builder, language
from depthlens.paths import tasks_dir
from depthlens.requests import LoglikelihoodRequest

FAILS = (SMALLER, REVERSED)
N = 40  # documents of each task
SOLVED = 0.8  # at the default noise; most are at 1, the longest answers with four writing layers at 0.85
UNCHANGED = 0.2 + 1e-9  # of the documents that a layer is not planted for; most are at 0, those at 0.85 at 0.15
GUESSED = 0.55  # four options: a guess is right once in four times (binomial, 40 documents)
WRITTEN_BY_CHANCE = 0.2  # a wrong word is likely one of the prompt's

# ability: file of documents, control token, field of the options or the options, field of the answer
ABILITIES = {
    "one_hop": ("questions", "QA", "retrieval_options", "retrieval"),
    "knowledge": ("questions", "QK", "knowledge_options", "knowledge"),
    "letters": ("questions", "QL", language.LETTERS, "letter"),
    "two_hop": ("reasoning", "QB", "options", "answer"),
    "copying": ("copying", "QC", "options", "answer"),
    "text": ("text", None, "options", "answer"),
}
CONFIGURATIONS = [(claim, true) for claim in planted_depth.CLAIMS for true in (True, False)]
SMALL, LARGE = 9, planted_depth.LAYERS


@cache
def asked(ability: str):
    """Of each document: prompt, options, place of the answer, and the word that is asked about."""
    file, control, options, answer = ABILITIES[ability]
    lines = (tasks_dir() / f"organism/{file}_test.jsonl").read_text(encoding="utf-8").splitlines()[:N]
    found = []
    for doc in map(json.loads, lines):
        text = doc["context"] if control is None else f"{doc['context']} {control} {doc['key']}"
        four = doc[options] if isinstance(options, str) else list(options)
        found.append((text, four, four.index(doc[answer]), text.split()[-1]))
    return found


def answers(name: str, abilities) -> dict[tuple[str, bool], np.ndarray]:
    """Right answers, chosen and written: the whole model, then without each layer. Each [condition, document]."""
    lens = loading.load(name, device="cpu")
    ids = language.vocabulary(True)
    pairs = [(f"<bos> {text}", x) for ability in abilities for text, options, *_ in asked(ability) for x in options]
    requests = [LoglikelihoodRequest(*(tuple(ids[w] for w in text.split()) for text in pair)) for pair in pairs]
    given = Engine(lens, progress=False).loglikelihood(requests, expand("layers", lens.dims))
    values = np.array([[[a.logprob, a.is_greedy] for a in row] for row in given]).reshape(len(given), -1, N, 4, 2)
    found = {}
    for i, ability in enumerate(abilities):
        at = np.array([place for _, _, place, _ in asked(ability)])
        found[ability, False] = values[:, i, :, :, 0].argmax(-1) == at
        found[ability, True] = values[:, i, np.arange(N), at, 1] == 1
    return found


def broken(name: str, ability: str, written: bool) -> np.ndarray:
    """Which documents should fail without each layer, as the truth has it. Shape [layer, document]."""
    options, truth = builder.parse(name), builder.truth(name)
    losses = np.array(truth.layer_losses(ability, written=written))
    found = np.repeat((losses == 1)[:, None], N, axis=1)
    if ability in builder.LAYERS_OF:
        for layer in map(int, np.flatnonzero(losses)):
            known = set(builder.words_of(options, ability, layer))
            found[layer] |= np.array([word in known for *_, word in asked(ability)])
    return found


def check(name: str, abilities=tuple(ABILITIES)) -> None:
    found = answers(name, abilities)
    for (ability, written), right in found.items():
        what = f"{ability}, {'written' if written else 'chosen'}"
        whole = right[0]
        assert whole.mean() >= SOLVED, what
        planted = broken(name, ability, written)
        for layer, (fails, without) in enumerate(zip(planted, right[1:], strict=True)):
            if fails.sum() >= N / 2:
                bound = WRITTEN_BY_CHANCE if written else GUESSED
                assert without[fails].mean() <= bound, f"{what}, L{layer}: {without[fails].mean()}"
            elif written and fails.any():  # few documents: the layer's own words and no others
                assert without[fails].sum() <= 1, f"{what}, L{layer}"  # one right by chance
            if not fails.all():
                assert (without != whole)[~fails].mean() <= UNCHANGED, f"{what}, L{layer}"


@pytest.mark.slow
@pytest.mark.parametrize(("claim", "true", "n_layers"), [
    ("C2", True, SMALL),
    *(pytest.param(*c, 12, marks=pytest.mark.nightly) for c in (("C1", True), *CONFIGURATIONS[1::2])),
])  # fmt: skip
def test_each_layer_costs_exactly_what_is_planted(claim, true, n_layers):
    check(planted_depth.organism(claim, true=true, n_layers=n_layers))


@pytest.mark.parametrize(("claim", "true"), CONFIGURATIONS)
def test_each_claim_is_planted_where_it_holds_and_where_it_fails(claim, true):
    for n_layers in (18, LARGE):
        parts = planted_depth.planted(planted_depth.organism(claim, true=true, n_layers=n_layers))[claim]
        assert (worst(parts).state == SHOWN) == true
        assert true or worst(parts).state in FAILS


@pytest.mark.slow
@pytest.mark.parametrize(("fields", "true"), [
    (("letters",), True), *(pytest.param((), true, marks=pytest.mark.nightly) for true in (True, False)),
])  # fmt: skip
def test_claims_on_a_small_organism_have_the_state_that_is_planted(fields, true):
    """Two claims that share their sweeps: C7 holds on both organisms of C2, and one task will do for it."""
    found = judge(planted_depth.evidence("C2", true=true, n_layers=SMALL, fields=fields), claims=["C2", "C7"])
    states = {claim: rows[planted_depth.ROW.get(claim, CONTROLLED)] for claim, rows in found.states.items()}
    assert states == {"C2": OPEN if fields else SHOWN if true else SMALLER, "C7": SHOWN}, found.describe()


@pytest.mark.nightly
@pytest.mark.parametrize(("claim", "true"), [*CONFIGURATIONS, ("C6", True), ("C6", False)])
def test_claims_on_an_organism_of_the_studys_size_have_the_state_that_is_planted(claim, true):
    found = judge(planted_depth.evidence(claim, true=true, n_layers=LARGE), claims=claim)
    state = found.states[claim][planted_depth.ROW.get(claim, CONTROLLED)]
    assert state in ((SHOWN,) if true else FAILS), found.describe()


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["holds", "fails", "swapped"])
def test_the_claim_on_heads_has_the_state_that_is_planted(kind):
    found = judge(planted_heads.evidence(true=kind != "fails", swapped=kind == "swapped"), claims="C5")
    states = {*found.states["C5"].values()}
    assert (states == {SHOWN}) if kind == "holds" else states & {*FAILS}, found.describe()


def test_a_model_with_divided_heads_is_the_same_model():
    lens = loading.load("organism:seed=3", device="cpu")
    wide = planted_heads.widened(lens)
    assert wide.dims.n_heads == planted_heads.COPIES * lens.dims.n_heads
    tokens = torch.tensor([prompt.tokens for prompt in sample(4, "two_hop")])
    with torch.no_grad():
        drift = (lens.model(tokens).logits - wide.model(tokens).logits).abs().max().item()
    assert drift < 1e-4  # sums in another order, of logits around 10
