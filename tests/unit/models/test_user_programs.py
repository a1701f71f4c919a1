"""Programs of a user, drawn at random, against plain torch and transformers: see `user_programs`."""

import random

import drawn_programs
import pytest
import user_programs
from user_programs import FAMILIES

pytestmark = pytest.mark.usefixtures("unchecked")
N_ALONE, N_IN_THREADS = 140, 60
EVERY_TIME = range(8)  # of `alone`, two a family


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return user_programs.write_tasks(tmp_path_factory.mktemp("tasks"))


def seeds(n, every_time):
    marked = [pytest.param(i, marks=() if i in every_time else pytest.mark.nightly) for i in range(n)]
    return pytest.mark.parametrize("seed", marked)


@seeds(N_ALONE, EVERY_TIME)
def test_a_program_gives_the_numbers_of_plain_torch(folder, seed):
    family, steps = FAMILIES[seed % len(FAMILIES)], drawn_programs.program(random.Random(seed))
    if found := user_programs.alone(family, steps, folder):
        pytest.fail(f"{family}: {found}\n{user_programs.listed(steps)}")


@seeds(N_IN_THREADS, [2])
def test_threads_have_contexts_of_their_own_over_the_edits_of_all(folder, seed):
    chance, family = random.Random(f"threads {seed}"), FAMILIES[seed % len(FAMILIES)]
    first = drawn_programs.program(chance, asks=False)
    hooked = [step[2] for step in first if step[0] == "hook"]
    programs = [drawn_programs.program(chance, edits=False, standing=hooked) for _ in range(1 + seed % 3)]
    faults = user_programs.in_threads(family, first, programs, folder)
    assert not faults, "\n".join([family, *faults, *map(user_programs.listed, (first, *programs))])
