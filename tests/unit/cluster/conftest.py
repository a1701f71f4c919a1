"""One cluster of three nodes for all tests of a module; each node has one CPU."""

import pytest
import torch
from ray_nodes import Nodes


@pytest.fixture(scope="module")
def nodes():
    pytest.importorskip("ray")
    torch.set_num_threads(1)
    made = Nodes(3)
    yield made
    made.close()
