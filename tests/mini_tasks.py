"""Small lm-eval tasks of every kind, over five documents, as a user's folder of YAML files."""

from __future__ import annotations

import json
from pathlib import Path

CONTEXT = 48  # so small that few-shot prompts are cut
DOCUMENTS = [
    {"q": "Is ice cold?", "options": [" yes", " no"], "answer": 0, "text": "Short text."},
    {"q": "2 + 2 =", "options": ["four", "5", "vier", "4"], "answer": 3, "text": "One two three. " * 9},
    {"q": "The sky is", "options": ["blue ", "ö", "green"], "answer": 0, "text": "x" * 47},
    {"q": "Say it twice: " * 8, "options": ["a", "b"], "answer": 1, "text": "y" * 48},
    {"q": "four", "options": ["a longer option", "b"], "answer": 0, "text": "z" * 49},
]
DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}, shots: {path}}}, cache_dir: {cache}}}
test_split: test
fewshot_split: shots
metadata: {{version: 2.5}}
"""
TASKS = {
    "mini_choice": """
        output_type: multiple_choice
        doc_to_text: "{{q}}\\nA:"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_norm}, {metric: mcc}]
        """,
    "mini_shots": """
        output_type: multiple_choice
        doc_to_text: "{{q}}\\nA:"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        num_fewshot: 2
        """,
    "mini_spaces": """
        output_type: multiple_choice
        doc_to_text: "{{q}}  "
        target_delimiter: ""
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        num_fewshot: 0
        """,
    "mini_empty": """
        output_type: multiple_choice
        doc_to_text: ""
        target_delimiter: ""
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        """,
    "mini_mutual": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: acc}, {metric: acc_mutual_info}]
        """,
    "mini_metrics": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list:
          [{metric: acc}, {metric: acc_norm}, {metric: acc_bytes}, {metric: acc_mutual_info}, {metric: exact_match}]
        """,
    "mini_blanks": """
        output_type: multiple_choice
        doc_to_text: answer
        doc_to_choice: "{{options}}"
        doc_to_target: "{{q[:9]}}"
        metric_list: [{metric: acc}, {metric: acc_norm}]
        """,
    "mini_cloze": """
        output_type: loglikelihood
        doc_to_text: "{{q}}"
        doc_to_target: " {{options[0]}}"
        metric_list: [{metric: acc}, {metric: perplexity, aggregation: perplexity, higher_is_better: false}]
        """,
    "mini_rolling": """
        output_type: loglikelihood_rolling
        doc_to_text: ""
        doc_to_target: "{{text}}"
        metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
        """,
    "mini_writing": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{options[0]}}"
        generation_kwargs: {until: ["\\n", "e"], max_gen_toks: 7, do_sample: false, temperature: 0.0}
        """,
    "mini_defaults": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'four'}}"
        generation_kwargs: {max_new_tokens: 5}
        """,
    "mini_filters": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{options[0]}}"
        generation_kwargs: {until: [], max_gen_toks: 4}
        filter_list:
          - {name: whole, filter: [{function: take_first}]}
          - {name: first-letter, filter: [{function: regex, regex_pattern: "(\\\\w)"}, {function: take_first}]}
        """,
    "mini_sampling": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {do_sample: true, max_gen_toks: 4}
        """,
    "mini_warm": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {temperature: 0.7, max_gen_toks: 4}
        """,
    "mini_votes": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        repeats: 3
        generation_kwargs: {do_sample: true, temperature: 1.5, max_gen_toks: 2}
        filter_list:
          - {name: first, filter: [{function: take_first}]}
          - {name: vote, filter: [{function: majority_vote}, {function: take_first}]}
        """,
    "mini_draws": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        repeats: 4
        generation_kwargs: {do_sample: true, temperature: 1.5, max_gen_toks: 2}
        filter_list:
          - name: first
            filter: [{function: regex, regex_pattern: "(\\\\w)$"}, {function: take_first}]
          - name: vote
            filter: [{function: regex, regex_pattern: "(\\\\w)$"}, {function: majority_vote}, {function: take_first}]
        """,
    "mini_beams": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {num_beams: 4, max_gen_toks: 4}
        """,
    "mini_endless": """
        output_type: generate_until
        doc_to_text: "{{q}}"
        doc_to_target: "{{'a'}}"
        generation_kwargs: {max_gen_toks: 48}
        """,
    "mini_too_long": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{['a', 'x' * 90]}}"
        doc_to_target: 0
        """,
    "mini_set_only": """
        output_type: multiple_choice
        doc_to_text: "{{q}}"
        doc_to_choice: "{{options}}"
        doc_to_target: answer
        metric_list: [{metric: mcc}]
        """,
}
LIKELIHOODS = ["mini_choice", "mini_shots", "mini_spaces", "mini_empty", "mini_cloze", "mini_rolling"]
WRITTEN = ["mini_writing", "mini_defaults", "mini_filters"]


def write(folder: Path) -> Path:
    """Write all tasks and their data into a folder."""
    data = folder / "documents.jsonl"
    data.write_text("".join(json.dumps(d) + "\n" for d in DOCUMENTS))
    head = DATA.format(path=data, cache=folder / "cache")
    for name, body in TASKS.items():
        lines = [line.removeprefix("        ") for line in body.splitlines()]
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{head}" + "\n".join(lines))
    (folder / "mini.yaml").write_text("group: mini\ntask: [mini_shots, mini_cloze]\n")
    return folder
