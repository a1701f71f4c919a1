"""Names, options, truth, prompts and tokens of organisms."""

from __future__ import annotations

import pytest
from organism_prompts import sample

from depthlens.errors import UserError
from depthlens.models import loading
from depthlens.organisms import builder, language


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("organism", {}),
        ("organism:seed=3", {"seed": 3}),
        ("organism:backup,decoy,seed=3", {"seed": 3, "decoy": True, "backup": True}),
        ("organism: noise=0.5, leak=1,eps=1e-3", {"noise": 0.5, "leak": 1.0, "eps": 0.001}),
        ("organism:n_kv_heads=2,sharpness=40", {}),
        ("organism:n_layers=12,knowledge_layers=2-3,text_layers=4", {"knowledge_layers": "2-3"}),
    ],
)
def test_names_are_options(name, options):
    parsed = builder.parse(name)
    for key, value in options.items():
        assert getattr(parsed, key) == value
    assert builder.parse(parsed.name) == parsed
    assert builder.truth(name) == builder.truth(parsed)
    assert builder.Options().name == builder.parse("organism:seed=0").name == "organism"
    assert builder.parse("organism:decoy,seed=3,noise=1").name == "organism:seed=3,noise=1.0,decoy"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("organism:seeds=3", "did you mean seed"),
        ("organism:seed=-1", "organism option seed -1: give a whole number from 0"),
        *(
            (f"organism:{wrong}", "the others a value, and each once")
            for wrong in ("seed=1,seed=2", "decoy=yes", "eps")
        ),
        ("organism:retrieval_layer=1", "retrieval_layer 1: give a whole number from 2 to 5"),
        ("organism:knowledge_layers=early", "knowledge_layers=early: give a layer or a range of layers, as 2 or 2-3"),
        ("organism:decoy,backup,n_layers=8,retrieval_layer=3,copying_layer=3", "layer 3 has no head left for copying"),
        ("organism:knowledge_layers=2,letter_layers=2,text_layers=2", "279 hidden units and has 256; cut knowledge"),
    ],
)
def test_bad_names_are_refused(name, message):
    with pytest.raises(UserError, match=message) as raised:
        loading.load(name)
    assert "\n" not in str(raised.value)


def test_truth_knows_its_roles_and_tasks():
    truth = builder.truth("organism")
    assert [str(h) for h in truth.heads] == ["L1.H2", "L2.H1", "L3.H0", "L4.H3"]
    assert truth.needed("one_hop") == {(1, 2), (2, 1)}
    assert truth.needed("two_hop") == {(1, 2), (3, 0), (4, 3)}
    assert truth.copies("one_hop") == {(2, 1)} and truth.copies("two_hop") == {(4, 3)}
    with pytest.raises(UserError, match="unknown organism task 'three_hop'"):
        truth.needed("three_hop")
    with pytest.raises(UserError, match="no organism"):
        builder.truth("smollm2-135m")


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
    with pytest.raises(UserError, match="unknown organism task 'letters'"):
        truth.layer_losses("letters")


def test_the_extended_language_keeps_the_ids_of_the_other_and_what_is_learned_reaches_every_word():
    basic, extended = language.vocabulary(), language.vocabulary(True)
    assert [*extended][: len(basic)] == [*basic] and len(extended) == 107
    assert language.tokenizer(True)("Ada QK A").input_ids == [extended[t] for t in ("<bos>", "Ada", "QK", "A")]
    for task in ("knowledge", "text"):
        learned = language.learned(task)
        assert set(learned) == set(learned.values()) == set(language.words())
        assert all(word != answer for word, answer in learned.items())


# -- prompts and tokens ------------------------------------------------------------------------------------------


def test_one_token_a_word_and_bos_in_front():
    tokenizer = language.tokenizer()
    vocabulary = language.vocabulary()
    assert len(vocabulary) == 100
    for word in language.words():
        assert tokenizer(word).input_ids == [vocabulary["<bos>"], vocabulary[word]]
        assert tokenizer.decode([vocabulary[word]]) == word
    for asked in sample(20, "two_hop", seed=11):
        assert tuple(tokenizer(asked.text).input_ids) == asked.tokens
        assert tokenizer.decode(asked.tokens, skip_special_tokens=True) == asked.text
    assert tokenizer("Ada nobody").input_ids[-1] == tokenizer.unk_token_id


