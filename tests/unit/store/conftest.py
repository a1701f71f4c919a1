"""One tiny model for the tests of a module, and packs that are small."""

import pytest
import tiny


@pytest.fixture(scope="module")
def lens():
    return tiny.lens("llama-gqa", max_position_embeddings=4096)


@pytest.fixture
def small_packs(monkeypatch):
    """So that a sweep has several packs."""
    monkeypatch.setattr("depthlens.engine.work.CPU_STATE_BYTES", 1 << 14)
    monkeypatch.setattr("depthlens.engine.work.CPU_KEY_BYTES", 1 << 20)
