"""Names that other tools have: the error says what the name is here."""

import copy
import operator
import re

import pytest
import tiny

import depthlens as dl


@pytest.mark.parametrize(
    ("owner", "name", "meant"),
    [
        ("depthlens", "sweep", "dl.condition_sweep"),
        ("depthlens", "layer_sweeps", "layer_sweep"),
        ("a Lens", "run_with_cache", "lens.bridge.run_with_cache"),
        ("a Lens", "brige", "bridge"),
    ],
)
def test_a_guessed_name_is_answered_with_the_name_here(owner, name, meant):
    one = dl if owner == "depthlens" else tiny.lens("llama-mha")
    with pytest.raises(AttributeError, match=f"{owner} has no '{name}'; did you mean {re.escape(meant)}"):
        getattr(one, name)
    assert not hasattr(one, "qzx") and (one is dl or copy.copy(one).name == one.name)


def test_what_other_tools_names_are_answered_with_exists():
    other = dl.errors
    for here in (*other.OF_PACKAGE, *other.OF_LENS):
        for name in re.findall(r"dl\.([\w.]+)", here):
            assert operator.attrgetter(name)(dl)
    of_lens = {name for here in other.OF_LENS for name in re.findall(r"lens\.(\w+)", here)}
    lens = tiny.lens("llama-mha")
    assert all(name in dir(type(lens)) or hasattr(lens, name) for name in of_lens)
