"""What the package's signatures say is checked while tests run: types, axes within a call, functions inside others."""

import functools
from dataclasses import dataclass

import jaxtyping
import numpy as np
import pytest
import torch
import type_checks
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation, BeartypeCallHintReturnViolation, BeartypeDoorHintViolation
from jaxtyping import Float
from torch import Tensor

from depthlens.analysis import stats
from depthlens.store.files import StoreFiles

typed = functools.partial(type_checks.typed, typechecker=beartype)


@typed
def product(a: Float[Tensor, "row pos"], b: Float[Tensor, " pos"]) -> Float[Tensor, " row"]:
    return a @ b


@typed
def length(text: str, *more: str, **named: int) -> int:
    return text if more else len(text)


def made_inside():
    @typed
    def turned(a: Float[Tensor, "row pos"], *more: int, **named: str) -> Float[Tensor, "pos row"]:
        return a if more else a.T

    return turned


@typed
@dataclass
class Size:
    n: int


def test_the_package_is_checked():
    with pytest.raises(BeartypeCallHintParamViolation):
        StoreFiles(3)
    with pytest.raises(BeartypeCallHintParamViolation):
        stats.proportion_interval("1", 2)


def test_what_fits_passes():
    assert product(torch.ones(2, 3), torch.ones(3)).shape == (2,)
    assert product(torch.ones(4, 5), torch.ones(5)).shape == (4,), "axes are those of one call"
    assert made_inside()(torch.ones(2, 3), name="b").shape == (3, 2)
    assert length("ab", n=1) == 2 and Size(2).n == 2


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.ones(2, 3), torch.ones(2)),
        (torch.ones(2, 3).long(), torch.ones(3)),
        (np.ones((2, 3)), torch.ones(3)),
    ],
    ids=["axes differ", "another dtype", "another kind of array"],
)
def test_tensors_that_do_not_fit(arguments):
    with pytest.raises(BeartypeCallHintParamViolation):
        product(*arguments)


def test_other_types_and_results():
    with pytest.raises(BeartypeCallHintParamViolation):
        length(3)
    with pytest.raises(BeartypeCallHintParamViolation):
        length("a", n="b")
    with pytest.raises(BeartypeCallHintReturnViolation):
        length("a", "b")
    with pytest.raises(BeartypeCallHintParamViolation):
        Size("2")


def test_functions_inside_others():
    for arguments, options in [(("a",), {}), ((torch.ones(2, 3), "a"), {}), ((torch.ones(2, 3),), {"name": 1})]:
        with pytest.raises(BeartypeDoorHintViolation):
            made_inside()(*arguments, **options)
    with pytest.raises(BeartypeDoorHintViolation, match="dimension"):
        made_inside()(torch.ones(2, 3), 1)


def test_it_can_be_turned_off(unchecked):
    assert jaxtyping.config.jaxtyping_disable and Size("2").n == "2" and length("a", "b") == "a"
