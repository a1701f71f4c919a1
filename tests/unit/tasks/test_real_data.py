"""`benchmarks/real_data.py` on clones of handwritten rows: its tasks ask what lm-eval's ask of the same documents."""

import bz2
import hashlib
import json
import re
import runpy
import shutil
import subprocess
from pathlib import Path

import hub
import lm_eval
import pandas as pd
import pytest

from depthlens import paths
from depthlens.tasks import harness

SCRIPT = paths.data_dir().parent / "benchmarks" / "real_data.py"
SOURCES = pd.read_csv(SCRIPT.with_suffix(".csv")).to_dict("records")
LM_EVALS = Path(lm_eval.__file__).parent / "tasks"


@pytest.fixture
def made(tmp_path):
    """Make tasks of clones with these rows, by set and split; the folder of the tasks."""

    def make(rows, **wrong):
        shutil.copy(SCRIPT, tmp_path)
        sources = [dict(source) for source in SOURCES if source["split"] in rows.get(source["set"], {})]
        for source in sources:
            docs = rows[source["set"]][source["split"]]
            text = json.dumps(docs) if source["path"].endswith(".json") else "".join(json.dumps(d) + "\n" for d in docs)
            content = bz2.compress("".join(docs).encode()) if ".txt" in source["path"] else text.encode()
            clone = tmp_path / "clones" / source["repository"].replace("/", "+") / "repo"
            (clone / source["path"]).parent.mkdir(parents=True, exist_ok=True)
            (clone / source["path"]).write_bytes(content)
            git = ["git", "-C", clone, "-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]
            for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "data"]):
                subprocess.run([*git, *command], check=True)
            head = subprocess.check_output([*git, "rev-parse", "HEAD"], text=True).strip()
            sha256 = hashlib.sha256(content).hexdigest()
            source.update({"commit": head, "sha256": sha256, "documents": len(docs)} | wrong)
        pd.DataFrame(sources).to_csv(tmp_path / "real_data.csv", index=False)
        main = runpy.run_path(str(tmp_path / SCRIPT.name))["main"]
        main(tmp_path / "clones", tmp_path / "made", ",".join(rows))
        return tmp_path / "made"

    return make


def asked(task, doc):
    return task.doc_to_text(doc), task.doc_to_target(doc), task.config.doc_to_choice and task.doc_to_choice(doc)


def as_in_the_clone(name, doc):
    """A document of the hub as the clone has it."""
    if name == "hellaswag":
        return "\n".join([f"{doc['activity_label']}: {doc['ctx']}", doc["label"], *doc["endings"], ""])
    if name == "mathqa":
        options = re.sub("[a-e]", lambda letter: letter[0].upper(), doc["options"])
        return {"instruction": f"{doc['Problem']} The options: {options}", "answer": doc["correct"].upper()}
    if name == "openbookqa":
        choices = [{"label": label, "text": text} for label, text in zip("ABCD", doc["choices"]["text"], strict=True)]
        return doc | {"question": {"stem": doc["question_stem"], "choices": choices}}
    return doc


HUB = {"hellaswag": "Rowan/hellaswag", "mathqa": "regisss/math_qa", "openbookqa": "allenai/openbookqa"}


@pytest.mark.usefixtures("hubs_data")
@pytest.mark.parametrize("name", HUB)
def test_a_local_task_asks_what_lm_evals_own_asks_of_the_hubs_documents(made, name):
    splits = [*hub.DATA_SETS[HUB[name]].values()][-1]
    folder = made({name: {split: [as_in_the_clone(name, doc) for doc in docs] for split, docs in splits.items()}})
    for task in {name, "openbookqa_open"} if name == "openbookqa" else {name}:
        local = harness.load_tasks(task, include_path=folder)[task]
        (own,) = harness.load_tasks(task, include_path=LM_EVALS / name).values()
        assert local.config.dataset_path == "json" and own.config.dataset_path == HUB[name]
        for ours, theirs in zip(local.eval_docs, own.eval_docs, strict=True):
            assert asked(local, ours) == asked(own, theirs)
        for key in ("metric_list", "filter_list", "generation_kwargs", "num_fewshot", "output_type"):
            assert getattr(local.config, key) == getattr(own.config, key)


ROWS = {
    "hellaswag": "Baking: Ann kneads dough. the old cat\n1\nsings.\nsleeps.\nbakes.\nis blue.\n",
    "arc_easy": {"choices": ["stone", "ice", "stone", "iron"], "query": "Question: What melts?", "gold": 1},
    "piqa": {"choices": ["boil it", "freeze it"], "query": "Question: How is ice made?\n", "gold": 1},
    "lambada_openai": {"context": "Ice is cold, and so is", "continuation": "snow"},
    "winogrande": {"context_options": ["Ann fed Al as Ann", "Ann fed Al as Al"], "continuation": "ate.", "gold": 1},
    "boolq": {"query": "Passage: Ice melts.\nQuestion: does ice melt?", "choices": ["no", "yes"], "gold": 1},
}
ASKED = {
    "hellaswag": ("Baking: Ann kneads dough. The old cat", 1, ["sings.", "sleeps.", "bakes.", "is blue."]),
    "arc_easy": ("Question: What melts?\nAnswer:", 0, ["ice", "stone", "iron"]),
    "piqa": ("Question: How is ice made?\nAnswer:", 1, ["boil it", "freeze it"]),
    "lambada_openai": ("Ice is cold, and so is", " snow", None),
    "winogrande": (1, "ate.", ["Ann fed Al as Ann", "Ann fed Al as Al"]),
    "boolq": ("Ice melts.\nQuestion: does ice melt?\nAnswer:", 1, ["no", "yes"]),
}


def test_rows_of_the_clones_are_asked_by_lm_evals_prompts(made):
    splits = {source["set"]: source["split"] for source in SOURCES}
    folder = made({name: {splits[name]: [row] * 3} for name, row in ROWS.items()})
    for name, task in harness.load_tasks([*ROWS], include_path=folder).items():
        assert asked(task, task.eval_docs[0]) == ASKED[name]
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        sha256, path = line.split("  ")
        assert hashlib.sha256((folder / path).read_bytes()).hexdigest() == sha256


@pytest.mark.parametrize("wrong", [{"sha256": "0" * 64}, {"documents": 4}], ids=lambda wrong: [*wrong][0])
def test_other_bytes_and_other_counts_are_refused(made, wrong):
    with pytest.raises(AssertionError, match="and not (0{64}|4)$"):
        made({"piqa": {"validation": [ROWS["piqa"]] * 3}}, **wrong)
