"""Small lm-eval tasks of every kind, over five documents, as a user's folder of YAML files."""

import json
import re
from pathlib import Path

import yaml

CONTEXT = 48  # so small that few-shot prompts are cut
DOCUMENTS = [
    {"q": "Is ice cold?", "options": [" yes", " no"], "answer": 0, "text": "Short text."},
    {"q": "2 + 2 =", "options": ["four", "5", "vier", "4"], "answer": 3, "text": "One two three. " * 9},
    {"q": "The sky is", "options": ["blue ", "ö", "green"], "answer": 0, "text": "x" * 47},
    {"q": "Say it twice: " * 8, "options": ["a", "b"], "answer": 1, "text": "y" * 48},
    {"q": "four", "options": ["a longer option", "b"], "answer": 0, "text": "z" * 49},
]
FIRST = {"function": "take_first"}
VOTE = {"function": "majority_vote"}
LAST_LETTER = {"function": "regex", "regex_pattern": r"(\w)$"}
LETTERS = {"first": [LAST_LETTER, FIRST], "vote": [LAST_LETTER, VOTE, FIRST]}
WHOLE_AND_LETTER = {"whole": [FIRST], "first-letter": [{"function": "regex", "regex_pattern": r"(\w)"}, FIRST]}
PERPLEXITY = {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}
PER_LENGTH = ("word_perplexity", "byte_perplexity", "bits_per_byte")
DRAWN = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 2}


def choice(text: str = "{{q}}", *metrics: str, **config: object) -> dict:
    """A task of options."""
    own = {"metric_list": [{"metric": metric} for metric in metrics]} if metrics else {}
    asked = {"doc_to_text": text, "doc_to_choice": "{{options}}", "doc_to_target": "answer"}
    return {"output_type": "multiple_choice", **asked, **own, **config}


def written(answer: str = "{{'a'}}", filters: dict | None = None, repeats: int = 1, **settings: object) -> dict:
    """A task of written answers; its generation settings, and its filters by name."""
    own = {"filter_list": [{"name": n, "filter": steps} for n, steps in filters.items()]} if filters else {}
    asked = {"doc_to_text": "{{q}}", "doc_to_target": answer, "generation_kwargs": settings}
    return {"output_type": "generate_until", **asked, **own, **({"repeats": repeats} if repeats > 1 else {})}


def measured(output_type: str, text: str, target: str, *metrics: str | dict) -> dict:
    """A task of log-likelihoods."""
    listed = [{"metric": metric} if isinstance(metric, str) else metric for metric in metrics]
    return {"output_type": output_type, "doc_to_text": text, "doc_to_target": target, "metric_list": listed}


TASKS = {
    "mini_choice": choice("{{q}}\nA:", "acc", "acc_norm", "mcc"),
    "mini_shots": choice("{{q}}\nA:", num_fewshot=2),
    "mini_spaces": choice("{{q}}  ", target_delimiter="", num_fewshot=0),
    "mini_empty": choice("", target_delimiter=""),
    "mini_mutual": choice("{{q}}", "acc", "acc_mutual_info"),
    "mini_metrics": choice("{{q}}", "acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match"),
    "mini_blanks": choice("answer", "acc", "acc_norm", doc_to_target="{{q[:9]}}"),
    "mini_cloze": measured("loglikelihood", "{{q}}", " {{options[0]}}", "acc", PERPLEXITY),
    "mini_rolling": measured("loglikelihood_rolling", "", "{{text}}", *PER_LENGTH),
    "mini_writing": written("{{options[0]}}", until=["\n", "e"], max_gen_toks=7, do_sample=False, temperature=0.0),
    "mini_defaults": written("{{'four'}}", max_new_tokens=5),
    "mini_filters": written("{{options[0]}}", WHOLE_AND_LETTER, until=[], max_gen_toks=4),
    "mini_votes": written(filters={"first": [FIRST], "vote": [VOTE, FIRST]}, repeats=3, **DRAWN),
    "mini_draws": written(filters=LETTERS, repeats=4, **DRAWN),
    "mini_too_long": choice(doc_to_choice="{{['a', 'x' * 90]}}", doc_to_target=0),
    "mini_set_only": choice("{{q}}", "mcc"),
}
LIKELIHOODS = ["mini_choice", "mini_shots", "mini_spaces", "mini_empty", "mini_cloze", "mini_rolling"]
WRITTEN = ["mini_writing", "mini_defaults", "mini_filters"]


def write_task(folder: Path, name: str, docs: dict[str, list[dict]] | None = None, **config: object) -> Path:
    """Write a task and its documents by split; those of an earlier task where none are given.

    A setting ``!function utils.name`` stays a function. None leaves a setting out.
    """
    folder.mkdir(exist_ok=True)
    for split, rows in (docs or {}).items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {path.stem: str(path) for path in sorted(folder.glob("*.jsonl"))}
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")}}
    about = {"task": name, **data, "test_split": "test"} | config
    text = yaml.safe_dump({key: value for key, value in about.items() if value is not None}, sort_keys=False)
    path = folder / f"{name}.yaml"
    path.write_text(re.sub(r"'(!function [\w.]+)'", r"\1", text))
    return path


def write(folder: Path) -> Path:
    """Write all tasks and their data into a folder."""
    docs = {"test": DOCUMENTS, "shots": DOCUMENTS}
    for name, config in TASKS.items():
        write_task(folder, name, docs, **{"fewshot_split": "shots", "metadata": {"version": 2.5}}, **config)
    (folder / "mini.yaml").write_text("group: mini\ntask: [mini_shots, mini_cloze]\n")
    return folder
