"""One tiny model for the tests of a module, and packs that are small."""

import pytest


@pytest.fixture
def small_packs(monkeypatch):
    """So that a sweep has several packs."""
    monkeypatch.setattr("depthlens.engine.work.CPU_STATE_BYTES", 1 << 14)
    monkeypatch.setattr("depthlens.engine.work.CPU_KEY_BYTES", 1 << 20)
