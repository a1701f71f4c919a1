"""Named sets of texts: what is read of them, and what is said where they cannot be read."""

from __future__ import annotations

import hub
import pytest
import tiny

from depthlens.errors import UserError
from depthlens.experiments import geometry, text_sets


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_c4_is_its_first_validation_texts(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(hub.write(tmp_path))
    wanted = [doc["text"] for doc in hub.DATA_SETS["allenai/c4"]["en"]["validation"]]
    assert text_sets.chosen("c4", 3) == wanted[:3] and text_sets.chosen("c4", 100) == wanted
    lens = tiny.lens("llama-gqa")
    by_name, by_hand = (geometry.depth_geometry(lens, texts, limit=2, progress=False) for texts in ("c4", wanted))
    assert by_name.record["texts"]["source"] == "c4" and by_hand.record["texts"]["source"] == "given"
    assert by_name.record["texts"]["digest"] == by_hand.record["texts"]["digest"]
    assert by_name.distances.equals(by_hand.distances)
    effects = geometry.layer_effects(lens, "c4", limit=2, progress=False)
    assert effects.equals(geometry.layer_effects(lens, wanted, limit=2, progress=False))


def test_c4_offline_is_one_line_with_the_fix(tmp_path, monkeypatch, offline):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        text_sets.chosen("c4", 2)
    assert str(caught.value) == (
        "text set c4 cannot be downloaded (HF_HUB_OFFLINE=1); go online, or use the embedded texts"
    )


def test_embedded_by_name_and_by_default_are_the_same():
    assert text_sets.chosen("embedded", 2) == text_sets.chosen(None, None)[:2] == text_sets.plain_texts()[:2]
    assert len(text_sets.chosen(None, None)) == text_sets.FIRST < len(text_sets.chosen("embedded", None))
    assert len(text_sets.chosen(None, 20)) == 20
