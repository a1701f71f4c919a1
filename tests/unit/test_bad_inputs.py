"""What users get wrong, through the real command line on a real (tiny) model: one line, exit code 2, no result.

Library log handlers are pointed at the captured stderr first, so a warning that a user would see counts as a
second line.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import textwrap

import nbformat
import pytest
import tiny
from huggingface_hub import errors as hub
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from depthlens import cli, models, resources

TASK = "capitals_continuation"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save(tmp_path_factory.mktemp("bad") / "model", "llama-gqa", max_position_embeddings=4096)


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def call(capsys, monkeypatch):
    """Run the command line: exit code, lines on stdout, lines on stderr."""

    def run(*arguments: object) -> tuple[int, list[str], list[str]]:
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            for handler in getattr(logger, "handlers", []):
                if type(handler) is logging.StreamHandler:
                    monkeypatch.setattr(handler, "stream", sys.stderr)
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        printed = capsys.readouterr()
        return ended.value.code, printed.out.splitlines(), printed.err.splitlines()

    return run


@pytest.fixture
def refused(call, folder, tmp_path):
    """Run a sweep that must be refused; returns its only line. Nothing may be written."""

    def run(model=folder, tasks=(TASK,), ablate="layers", out=tmp_path / "out", limit=2, **options):
        flags = [f for name, value in options.items() for f in (f"--{name.replace('_', '-')}", value)]
        arguments = ("sweep", model, *tasks, "--ablate", ablate, "--out", out, "--limit", limit, *flags)
        code, printed, errors = call(*arguments)
        assert code == 2 and printed == []
        assert not out.is_dir() or list(out.iterdir()) == []
        assert not any("Traceback" in line for line in errors)
        if errors[0].startswith("Usage: "):  # what Typer itself refuses comes with a hint on how to call
            assert errors[-1].startswith("Error: Invalid value for")
        else:
            assert len(errors) == 1 and errors[0].startswith("Error: "), errors
        return errors[-1]

    return run


def test_the_same_sweep_without_a_mistake_works(call, folder, tmp_path):
    out = tmp_path / "out"
    code, printed, _ = call("sweep", folder, TASK, "--ablate", "L1", "--limit", 2, "--out", out)
    assert code == 0 and printed[-1].startswith("Wrote ")
    assert sorted(p.name for p in out.iterdir()) == [
        "docs.parquet",
        "questions.parquet",
        "record.json",
        "summary.parquet",
    ]


# -- models --


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("smollm-135m", "unknown model 'smollm-135m'; did you mean smollm2-135m, "),
        ("gpt5", "unknown model 'gpt5'"),
        ("./no/such/folder", "model directory './no/such/folder' does not exist"),
        ("weights.gguf", "model file 'weights.gguf' does not exist"),
        ("no-such-owner/no-such-model", "'no-such-owner/no-such-model' is not in the local cache"),
        ("owner/not a model", "'owner/not a model' cannot be read: Repo id must use alphanumeric"),
        ("", "model '': give an alias"),
    ],
)
def test_model_that_does_not_exist(refused, model, said):
    assert said in refused(model=model)


def test_folder_that_is_no_model(refused, copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert f"directory {str(copy)!r} holds no .safetensors weights" in refused(model=copy)
    (copy / "config.json").unlink()
    assert f"directory {str(copy)!r} holds no config.json" in refused(model=copy)


def test_file_that_is_no_model(refused, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "model.bin' is a file but not a .gguf file" in refused(model=tmp_path / "model.bin")
    (tmp_path / "model.gguf").write_bytes(b"not GGUF at all")
    assert "model.gguf' cannot be read: " in refused(model=tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "architecture GPT2LMHeadModel is not supported; supported: Llama"),
        ({"num_hidden_layers": 7}, "lacks 18 of the weights that its config.json wants"),
        ({"intermediate_size": 64}, "has shape [32, 48], its config.json wants [32, 64]"),
        ({"model_type": "brand_new", "auto_map": {"AutoConfig": "c.C"}}, "brings code of its own"),
    ],
)
def test_model_whose_config_does_not_fit(refused, copy, changes, said):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert said in refused(model=copy)


def test_damaged_model(refused, copy):
    path = copy / "model.safetensors"
    path.write_bytes(path.read_bytes()[:3000])
    assert f"model {str(copy)!r} cannot be read: " in refused(model=copy)
    (copy / "config.json").write_text("{")
    assert "is not a valid JSON file" in refused(model=copy)


def test_gated_model(refused, monkeypatch):
    def gated(*args, **kwargs):
        raise OSError("You are trying to access a gated repo.\nMake sure ...")

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", gated)
    assert "model 'llama-3.1-8b' is gated: accept its licence" in refused(model="llama-3.1-8b")


def test_hub_that_cannot_be_reached(refused, monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("We couldn't connect to ...\nCheck ...") from hub.LocalEntryNotFoundError("x")

    monkeypatch.setattr(models.AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(models, "is_offline_mode", lambda: False)
    assert "model 'qwen3-8b' cannot be reached: no connection to the hub" in refused(model="qwen3-8b")


# -- tasks --


@pytest.mark.parametrize(
    ("tasks", "said"),
    [
        (["capitals_continuatoin"], "unknown task 'capitals_continuatoin'; did you mean capitals_continuation"),
        ([TASK, "elements"[::-1]], "unknown task 'stnemele'"),
        (["hellaswag"], "task hellaswag: its data cannot be had (HF_HUB_OFFLINE=1"),
        ([""], "unknown task ''"),
    ],
)
def test_task_that_does_not_exist(refused, tasks, said):
    assert said in refused(tasks=tasks)


GOOD = '{"q": "Is ice cold?", "options": ["yes", "no"], "answer": 0}\n'
CHOICE = """
    task: mine
    dataset_path: json
    dataset_kwargs: {data_files: {test: DATA}, cache_dir: CACHE}
    test_split: test
    output_type: multiple_choice
    doc_to_text: "{{q}}"
    doc_to_choice: options
    doc_to_target: answer
    """


@pytest.mark.parametrize(
    ("old", "new", "data", "said"),
    [
        ("doc_to_text:", "doc_to_text: Q:", GOOD, "mine.yaml', line 7 is not YAML ("),
        ("task: mine", "task: 123", GOOD, "mine.yaml': task 123 is not text; write it in quotes: task: '123'"),
        ("task: mine", "task: " + 300 * "x", GOOD, "has a name of 300 characters; give it at most 128"),
        ("test_split: test", "test_split: tset", GOOD, "its data has no split 'tset', only test"),
        ("", "", GOOD + '{"q":\n', "docs.jsonl', line 2 is not JSON (Expecting value, column 6)"),
        ("", "", "", "docs.jsonl' is empty"),
        ("", "", None, "docs.jsonl' (from "),
        ("", "", GOOD.replace("0", "null"), "document 0: doc_to_target 'answer' gives None"),
        (
            "",
            "",
            GOOD + GOOD.replace("0", "-1"),
            "document 1: doc_to_target 'answer' gives -1; allowed: a whole number",
        ),
        ("target: answer", "target: anser", GOOD, "doc_to_target 'anser' names no field and no option; fields: q,"),
        ("target: answer", "target: !function utils.raises", GOOD, "AssertionError at utils.py line 2"),
        (
            "target: answer",
            "target: answer\n    metric_list: [{metric: bleu}]",
            GOOD,
            "have no metric 'bleu'; they have",
        ),
    ],
)
def test_task_files_and_documents_with_a_mistake(refused, tmp_path, old, new, data, said):
    folder = tmp_path / "tasks"
    folder.mkdir()
    if data is not None:
        (folder / "docs.jsonl").write_text(data)
    (folder / "utils.py").write_text("def raises(doc):\n    assert False\n")
    text = textwrap.dedent(CHOICE.replace(old, new, 1)).replace("DATA", str(folder / "docs.jsonl"))
    (folder / "mine.yaml").write_text(text.replace("CACHE", str(tmp_path / "cache")))
    name = 300 * "x" if "xxx" in new else "mine"
    assert said in refused(model="smollm2-135m", tasks=[name], include_path=folder)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"limit": 0}, "--limit 0: give a whole number, at least 1"),
        ({"limit": "all"}, "'--limit'"),
        ({"num_fewshot": -1}, "--num-fewshot -1: give a whole number, at least 0"),
        ({"num_fewshot": 99}, f"num_fewshot 99: task {TASK} has 10 examples"),
        ({"num_fewshot": 9, "tasks": ["kv_retrieval_4"]}, "num_fewshot 9: task kv_retrieval_4 has 8 examples"),
        ({"include_path": "no/such/tasks"}, "include_path 'no/such/tasks' is not a folder"),
        ({"dtype": "float8"}, "unknown dtype 'float8'; did you mean"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"device": "cuda:99"}, "device 'cuda:99'"),
        ({"backend": "jax"}, "unknown backend 'jax'"),
        ({"batch_tokens": 0}, "--batch-tokens 0: give a whole number, at least 1"),
        ({"seed": "tomorrow"}, "'--seed'"),
    ],
)
def test_option_with_a_wrong_value(refused, options, said):
    assert said in refused(**options)


def test_chat_without_a_chat_template(call, folder, tmp_path):
    out = tmp_path / "out"
    code, printed, errors = call("sweep", folder, TASK, "--ablate", "layers", "--chat", "--out", out)
    assert code == 2 and printed == [] and len(errors) == 1
    assert "chat: the tokenizer of " in errors[0] and "has no chat template" in errors[0]
    assert list(out.iterdir()) == []


# -- conditions --


@pytest.mark.parametrize(
    ("ablate", "said"),
    [
        ("layer", "condition 'layer': cannot read 'layer'; write L12, L12.attn"),
        ("L", "condition 'L': cannot read 'L'"),
        ("12", "condition '12': cannot read '12'"),
        ("L1.H", "cannot read 'L1.H'"),
        ("L1;L2", "cannot read 'L1;L2'"),
        ("L-1", "cannot read 'L-1'"),
        ("L5", "condition L5: layer 5 does not exist; layers are 0..4"),
        ("L3-9", "condition L3-9: layer 5 does not exist"),
        ("L3-1", "block 3-1 runs backwards; write L1-3"),
        ("L1-2.attn", "a block is of whole layers"),
        ("L1.H4", "condition L1.H4: head 4 does not exist; heads are 0..3"),
        ("L1.KV2", "condition L1.KV2: KV group 2 does not exist; groups are 0..1"),
        ("L1+L1.attn", "L1.attn has no effect of its own beside L1"),
        ("L2.KV0+L2.H1", "L2.H1 has no effect of its own beside L2.KV0"),
        ("L1+L1", "names one part twice"),
        ("L1@zero", "unknown mode '@zero'"),
        ("blocks:0", "size '0' in 'blocks:0'; give blocks:N with N from 1 to 5"),
        ("blocks:6", "size '6' in 'blocks:6'"),
        ("top:6@donor", "size '6' in 'top:6'; give top:N with N from 1 to 5"),
        ("blocks", "size '' in 'blocks'"),
        (",", "nothing to ablate in ','"),
        ("layers@median", "mode 'median' does not fit"),
    ],
)
def test_condition_that_does_not_exist(refused, ablate, said):
    assert said in refused(ablate=ablate)


# -- where results go --


def test_output_that_is_a_file_stays_as_it_is(call, folder, tmp_path):
    (tmp_path / "file").write_text("precious")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, printed, errors = call("sweep", folder, TASK, "--ablate", "layers", "--out", out)
        assert code == 2 and printed == [] and len(errors) == 1
        assert f"cannot write to {str(out)!r}" in errors[0] and "folder" in errors[0]
    assert (tmp_path / "file").read_text() == "precious"


def test_output_in_a_read_only_folder(call, folder, tmp_path, monkeypatch):
    out = tmp_path / "frozen" / "out"
    if os.geteuid() == 0:  # root may write anywhere but in the kernel's own folders
        out = "/proc/depthlens"
    else:
        out.parent.mkdir(mode=0o500)
    code, printed, errors = call("sweep", folder, TASK, "--ablate", "layers", "--out", out)
    assert code == 2 and printed == [] and len(errors) == 1
    assert f"cannot write to {str(out)!r}" in errors[0]


# -- notebooks --


@pytest.fixture
def suite(tmp_path, monkeypatch):
    """A suite of one notebook whose first cells are as in ours."""
    notebooks = tmp_path / "notebooks"
    notebooks.mkdir()
    parameters = """
        model = "smollm2-135m"
        tasks = ["capitals_continuation"]
        limit = 5
        dtype = "auto"
        """
    cells = [
        new_markdown_cell("# Which layers matter?"),
        new_code_cell(textwrap.dedent(parameters), metadata={"tags": ["parameters"]}),
        new_code_cell("import depthlens as dl\nlens = dl.start(model, tasks, limit=limit, dtype=dtype)"),
    ]
    nbformat.write(new_notebook(cells=cells), notebooks / "00_tour.ipynb")
    (notebooks / "profiles.yml").write_text("smoke: {}\ndemo: {}\n")
    monkeypatch.setattr(resources, "notebooks_dir", lambda: notebooks)
    return notebooks


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["00_tuor"], "unknown notebook '00_tuor'; did you mean 00_tour?"),
        (["all", "00_tour"], "'all' stands alone"),
        (["00_tour", "-p", "layers", "5"], "no selected notebook has a parameter 'layers'; 00_tour declares: "),
        (["00_tour", "-p", "limit", "many"], "parameter limit = 'many' of notebook 00_tour must be a whole"),
        (["00_tour", "-p", "tasks", "capitals"], "parameter tasks = 'capitals' of notebook 00_tour must be a list"),
        (["00_tour", "-p", "limit", "1", "-p", "limit", "2"], "parameter 'limit' is given twice"),
        (["00_tour", "--profile", "smoek"], "unknown profile 'smoek'; did you mean smoke?"),
    ],
)
def test_run_with_a_mistake_starts_nothing(call, suite, tmp_path, arguments, said):
    out = tmp_path / "out"
    code, printed, errors = call("run", *arguments, "--out", out)
    assert code == 2 and printed == [] and len(errors) == 1
    assert errors[0].startswith("Error: ") and said in errors[0]
    assert not out.exists() or list(out.iterdir()) == []


def test_run_into_a_file(call, suite, tmp_path):
    (tmp_path / "file").write_text("precious")
    code, printed, errors = call("run", "00_tour", "--out", tmp_path / "file")
    assert code == 2 and printed == [] and len(errors) == 1 and "file'" in errors[0]
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.slow
def test_value_that_only_the_notebook_can_judge_stops_it_in_its_first_cells(call, suite, tmp_path):
    out = tmp_path / "out"
    code, _, errors = call("run", "00_tour", "-p", "dtype", "float8", "--out", out)
    assert code == 1  # the notebook ran and failed; the others of a suite still run
    told = [line for line in errors if line.startswith("Error: ")]
    assert len(told) == 1 and "Traceback" not in "".join(errors)
    assert "notebook 00_tour, cell 4: unknown dtype 'float8'" in told[0]
    assert (out / "00_tour.ipynb").is_file() and (out / "index.html").is_file()


def test_gallery_of_nothing(call, tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        code, printed, errors = call("gallery", place)
        assert code == 2 and printed == [] and len(errors) == 1
        assert errors[0].startswith("Error: no ") and repr(str(place)) in errors[0]
    assert list(tmp_path.iterdir()) == []


# -- and once as a user runs it --


@pytest.mark.slow
def test_in_a_process_of_its_own(copy, tmp_path):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_hidden_layers": 7}))
    arguments = ["sweep", str(copy), TASK, "--ablate", "layers", "--out", str(tmp_path / "out")]
    program = f"from depthlens.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith(f"Error: model {str(copy)!r} lacks 18 of the weights")
