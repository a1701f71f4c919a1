"""Rules of `depthlens.arguments`, one for each name: a value that is wrong, a part of the line."""

from __future__ import annotations

LIMIT, SAMPLES = (
    "give a whole number of documents, at least 1, or leave it out",
    "give numbers of documents, e.g. range(",
)
SLICE = "give START:STOP or START:STOP:STEP, e.g. 0:100:2 or 1::2"

RULES = [
    *(("limit", value, f"limit {value!r}: {LIMIT}") for value in (0, -3, True, 1.5, float("nan"), "all")),
    *(("samples", value, f"samples {value!r}: {SAMPLES}") for value in ([], {}, [1.5], [-1], 7)),
    *(("samples", value, f"samples {value!r}: {SLICE}") for value in ("all", "0:9:0", "9:0:-1", "")),
    ("samples", {"a": "x"}, "samples 'x': give START:STOP"),
    ("samples", [3, 3], "samples: document 3 is named twice; name it once"),
    *(("num_fewshot", v, f"num_fewshot {v!r}: give a whole number of examples, at least 0") for v in (-1, True, 0.5)),
    ("batch_tokens", 0, "batch_tokens 0: give a whole number, at least 1, or leave it out"),
    *(("seed", value, f"seed {value!r}: give a whole number from 0 to 4294967295") for value in (-1, 2**32, None, "1")),
    ("dtype", "float8", "unknown dtype 'float8'; did you mean float64, float32, float16"),
    ("dtype", None, "unknown dtype None; allowed: auto, float32"),
    *(("device", value, f"unknown device {value!r}; ") for value in ("gpu", "cuda:x", "cpu:0", None)),
    ("device", "cuda:0,cuda:0", "a GPU is named twice; name each once"),
    ("quantize", "int3", "unknown quantize 'int3'; did you mean"),
    ("backend", "jax", "unknown backend 'jax'; allowed: torch, transformer_lens, nnsight"),
    ("measure", "accuracy", "unknown measure 'accuracy'; allowed: task, answer_logprob, token_logprob, both"),
    ("offload", "cpu", "offload 'cpu': give 'disk', or leave it out"),
    ("apply_chat_template", "yes", "apply_chat_template 'yes': give True or False"),
    ("system_instruction", 3, "system_instruction 3: give a text, or leave it out"),
    *(("include_path", value, "is not a folder; give the folder with your task") for value in (3, "", "no/such")),
    *(("resample_prompts", value, "give a list of prompts, none of them empty") for value in ("x", [3], [" "])),
    *(("tasks", value, "give a name or a list of names") for value in (None, {}, 123, ["capitals", None], [""])),
    ("tasks", [], "no tasks given; name at least one"),
    ("tasks", ["a", "a"], "tasks: 'a' is named twice; name it once"),
    *(("out", value, f"out {value!r}: give the path of a folder") for value in ("", 3, "a\0b")),
]
