"""Organisms with planted depth: each layer costs what was planted there, and nothing else."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import planted_depth
import pytest

from depthlens.ablations import expand
from depthlens.engine.engine import Engine
from depthlens.experiments.sweep import condition_sweep
from depthlens.models import loading
from depthlens.organisms import builder, language
from depthlens.paths import tasks_dir
from depthlens.requests import LoglikelihoodRequest

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
CONFIGURATIONS = {
    "all true": {},
    **{f"{claim} false": truth for claim, truth in planted_depth.FALSE.items()},
}


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
    requests = [
        LoglikelihoodRequest((ids["<bos>"], *(ids[w] for w in text.split())), tuple(ids[w] for w in option.split()))
        for ability in abilities
        for text, options, _, _ in asked(ability)
        for option in options
    ]
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


@pytest.mark.parametrize(
    ("configuration", "seed"),
    [("all true", 0), *(pytest.param(name, i % 2, marks=pytest.mark.nightly) for i, name in enumerate(CONFIGURATIONS))],
)
def test_each_layer_costs_exactly_what_is_planted(configuration, seed):
    check(planted_depth.organism_name(CONFIGURATIONS[configuration], seed))


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_the_configurations_make_claims_true_and_false(configuration):
    """In numbers: what is planted, put to the claims, with and without the first two layers."""
    truth = planted_depth.ALL_TRUE | CONFIGURATIONS[configuration]
    name = planted_depth.organism_name(truth, 3)
    for n_spared in (0, 2):
        assert planted_depth.holds(planted_depth.true_values(name, n_spared)) == truth


@pytest.mark.parametrize("moved", [True, pytest.param(False, marks=pytest.mark.nightly)])
def test_a_distilled_organism_reasons_better_elsewhere_or_where_its_base_does(moved):
    names = planted_depth.distillation_names(1, moved=moved)
    where = {who: np.flatnonzero(builder.truth(name).layer_losses("two_hop")) for who, name in names.items()}
    right = {who: answers(name, ["two_hop", "knowledge"]) for who, name in names.items()}
    assert where["base"].tolist() == where["control"].tolist() == [0, 3, 4]
    assert where["distilled"].tolist() == ([0, 8, 9] if moved else [0, 3, 4])
    for who, found in right.items():
        score = found["two_hop", True][0].mean()
        assert score >= (SOLVED if who == "distilled" else 0.3), (who, score)
        assert score <= 0.9 or who != "base", score  # a gap is left, which transplants can recover
        assert found["knowledge", True][0].mean() >= SOLVED
        assert found["two_hop", True][1:][where[who]].mean() <= WRITTEN_BY_CHANCE


@pytest.mark.nightly
def test_evidence_is_what_was_planted():
    """All the way through the tool: lm-eval's tasks, the sweep, and the score above chance that each layer costs."""
    n = 40
    name = planted_depth.organism_name({}, 0)
    tasks = [task for task, _, _ in planted_depth.ROLES.values()]
    swept = condition_sweep(loading.load(name), tasks, "layers", limit=n, progress=False)
    wanted = planted_depth.planted_losses(name)
    for role, (task, _, _) in planted_depth.ROLES.items():
        summary = swept.select(tasks=task).primary().summary.set_index("condition")
        floor = 0.0 if planted_depth.ROLES[role][2] else 0.25
        base = summary.loc["baseline", "value"]
        assert base >= SOLVED
        loss = [(base - summary.loc[f"L{layer}", "value"]) / (base - floor) for layer in range(planted_depth.N_LAYERS)]
        # guesses among four options, and which words the documents ask about: three standard errors of 40 documents
        assert np.abs(np.array(loss) - wanted[role]).max() <= 3 * 0.5 / n**0.5 + 0.05, role


@pytest.mark.nightly
@pytest.mark.parametrize("moved", [True, False])
def test_a_transplant_of_the_layers_that_reason_recovers_the_gap(moved):
    names = planted_depth.distillation_names(0, moved=moved)
    base, distilled = (loading.load(names[who], device="cpu") for who in ("base", "distilled"))
    task, conditions = "organism_reasoning_generative", ["L3-4@donor", "L8-9@donor"]
    swept = condition_sweep(base, task, conditions, donor=distilled, limit=30, progress=False)
    value = swept.primary().summary.set_index("condition")["value"]
    with_circuit, without = ("L8-9@donor", "L3-4@donor") if moved else ("L3-4@donor", "L8-9@donor")
    assert value[with_circuit] >= SOLVED > value["baseline"] + 0.1
    # where the circuit moved, the donor has noise where the base reasons; where it did not, both have noise
    assert value[without] <= WRITTEN_BY_CHANCE if moved else abs(value[without] - value["baseline"]) <= UNCHANGED
