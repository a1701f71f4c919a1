"""Names of models before anything heavy: what they stand for, and refusals in time, with and without a hub."""

import pytest
import tiny
from refusals import refused

import depthlens as dl
from depthlens.models import names


def test_what_a_name_stands_for(tmp_path):
    folder = tiny.save(tmp_path / "model", "llama-gqa")
    assert names.find(folder) == names.Source(str(folder), "folder", str(folder))
    assert names.find("organism:seed=3,decoy").kind == "organism"
    with pytest.raises(dl.UserError, match="organism option seed=1@x in 'organism:seed=1@x'"):  # it has no revisions
        names.find("organism:seed=1@x")
    file = str(tiny.gguf_head(tmp_path / "a.gguf"))
    assert names.find(file) == names.Source(file, "gguf", file)
    assert names.find(f"{file}[:4]") == names.Source(f"{file}[:4]", "gguf", file, layers=4)
    assert names.find("owner/name") == names.Source("owner/name", "hub", "owner/name")
    assert names.find("qwen3-8b").place == "Qwen/Qwen3-8B"
    tagged = names.Source("owner/name@step100", "hub", "owner/name", revision="step100")
    assert names.find("owner/name@step100") == tagged
    cut = names.Source("qwen3-8b@refs/pr/1[:4]", "hub", "Qwen/Qwen3-8B", revision="refs/pr/1", layers=4)
    assert names.find("qwen3-8b@refs/pr/1[:4]") == cut


@pytest.mark.parametrize(("family", "offload"), [("llama-gqa", "disk"), ("deepseek-v3", None)])
def test_the_first_layers_of_a_model_are_what_it_is_without_those_above(tmp_path, family, offload):
    folder = tiny.save(tmp_path, family, num_hidden_layers=4)
    cut, whole = dl.load(f"{folder}[:3]", offload=offload), dl.load(folder)
    assert cut.dims.n_layers == 3
    answer, removed = (dl.next_token(lens, "Why not?", ["L3"][: lens is whole], k=260) for lens in (cut, whole))
    assert sorted(answer["baseline"]) == pytest.approx(sorted(removed["L3"]))
    assert names.first_layers(f"{folder}[:3]", 2) == f"{folder}[:3]" and names.first_layers("organism", 2) == "organism"
    assert dl.load(f"{folder}[:9]").fingerprint == whole.fingerprint != cut.fingerprint


def test_a_revision_is_asked_of_the_hub(monkeypatch):
    asked = []

    def fail(place, **options):
        asked.append((place, options["revision"]))
        raise OSError("not here")

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    refused("model 'owner/name@step3' cannot be loaded: not here", dl.load, "owner/name@step3")
    assert asked == [("owner/name", "step3")]


def test_a_folder_that_is_written_again_is_read_again(tmp_path):
    for n_layers in (2, 3):
        tiny.save(tmp_path, "llama-gqa", num_hidden_layers=n_layers)
        assert dl.load(tmp_path).dims.n_layers == n_layers


NOT_FOUND = "Can't load the configuration of 'x/y'. Check the name"


@pytest.mark.parametrize("error", [OSError(f"{NOT_FOUND}\nand more.\n"), ValueError("no code"), ImportError("no gptq")])
def test_what_transformers_raises_is_one_line(error, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", fail)
    said = " ".join(str(error).split()).rstrip(".")
    assert refused("", dl.load, "owner/some-model") == f"model 'owner/some-model' cannot be loaded: {said}"


def test_a_bug_of_ours_keeps_its_traceback(monkeypatch):
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", lambda *a, **k: None + "bug")
    with pytest.raises(TypeError, match="unsupported operand"):
        dl.load("owner/another-model")
