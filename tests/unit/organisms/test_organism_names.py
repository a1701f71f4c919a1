"""Names, options, truth, prompts and tokens of organisms."""

import pytest
from refusals import refused

from depthlens.organisms import builder, language


@pytest.mark.parametrize(("name", "options"), [
    ("organism", {}), ("organism:seed=3", {"seed": 3}),
    ("organism:backup,decoy,seed=3", {"seed": 3, "decoy": True, "backup": True}),
    ("organism: noise=0.5, leak=1,eps=1e-3", {"noise": 0.5, "leak": 1.0, "eps": 0.001}),
    ("organism:n_kv_heads=2,sharpness=40", {}),
    ("organism:n_layers=12,knowledge_layers=2-3,text_layers=4", {"knowledge_layers": "2-3"}),
])  # fmt: skip
def test_names_are_options(name, options):
    parsed = builder.parse(name)
    for key, value in options.items():
        assert getattr(parsed, key) == value
    assert builder.parse(parsed.name) == parsed
    assert builder.truth(name) == builder.truth(parsed)
    assert builder.Options().name == builder.parse("organism:seed=0").name == "organism"
    assert builder.parse("organism:decoy,seed=3,noise=1").name == "organism:seed=3,noise=1.0,decoy"


def test_truth_knows_its_roles_and_tasks():
    truth = builder.truth("organism")
    assert [str(h) for h in truth.heads] == ["L1.H2", "L2.H1", "L3.H0", "L4.H3"]
    assert truth.needed("one_hop") == {(1, 2), (2, 1)}
    assert truth.needed("two_hop") == {(1, 2), (3, 0), (4, 3)}
    assert truth.copies("one_hop") == {(2, 1)} and truth.copies("two_hop") == {(4, 3)}
    refused("unknown organism task 'three_hop'", truth.needed, "three_hop")


def test_truth_of_planted_depth():
    name = "organism:n_layers=12,previous_layer=0,copying_layer=2,reasoning_layer=7,knowledge_layers=4-5"
    name += ",writing_layers=9"
    truth = builder.truth(name)
    assert truth.tasks == ("one_hop", "two_hop", "copying", "knowledge")
    assert truth.role("control")[0] == truth.role("previous_token")[0] == 0
    needed = {task: [i for i, x in enumerate(truth.layer_losses(task)) if x == 1] for task in truth.tasks}
    assert needed == {"one_hop": [0, 2], "two_hop": [0, 7, 8], "copying": [0, 2], "knowledge": [0]}
    knows = truth.layer_losses("knowledge")
    assert knows[4] + knows[5] == 1 and abs(knows[4] - 0.5) < 0.01 and sum(knows) == 2
    written = truth.layer_losses("knowledge", written=True)
    assert [b - a for a, b in zip(knows, written, strict=True)] == [float(layer == 9) for layer in range(12)]
    refused("unknown organism task 'letters'", truth.layer_losses, "letters")


def test_the_extended_language_keeps_the_ids_of_the_other_and_what_is_learned_reaches_every_word():
    basic, extended = language.vocabulary(), language.vocabulary(True)
    assert [*extended][: len(basic)] == [*basic] and len(extended) == 107
    assert language.tokenizer(True)("Ada QK A").input_ids == [extended[t] for t in ("<bos>", "Ada", "QK", "A")]
    for task in ("knowledge", "text"):
        learned = language.learned(task)
        assert set(learned) == set(learned.values()) == set(language.words())
        assert all(word != answer for word, answer in learned.items())
