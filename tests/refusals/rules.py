"""Rules of `depthlens.arguments`, one for each name: a value that is wrong, a part of the line."""

NUMBERS = "give numbers of documents, each once, e.g. range(0, 100, 2), START:STOP:STEP such as '1::2', or either"

RULES = [
    *(("limit", value, f"limit {value!r}: give a whole number of documents, at least 1, or leave it out")
      for value in (0, True, 1.5, "all")),
    *(("samples", value, f"samples {value!r}: {NUMBERS}")
      for value in ([], {}, [1.5], [-1], 7, [3, 3], "all", "0:9:0", "9:0:-1", "", {"a": "x"}, {"a": {"b": [1]}})),
    ("samples", [-1] * 200, f"-1,...: {NUMBERS}"),  # a long value is cut
    ("num_fewshot", -1, "num_fewshot -1: give a whole number of examples, at least 0, or leave it out"),
    ("batch_tokens", 0, "batch_tokens 0: give a whole number, at least 1, or leave it out"),
    *(("seed", value, f"seed {value!r}: give a whole number from 0 to 4294967295") for value in (-1, 2**32, None, "1")),
    ("dtype", "float8", "unknown dtype 'float8'; did you mean float64, float32, float16"),
    ("dtype", None, "unknown dtype None; allowed: auto, float32"),
    *(("device", value, f"unknown device {value!r}; ")
      for value in ("gpu", "cuda:x", "cpu:0", "cuda,cuda:1", "cuda:0,cuda:0", None)),
    ("quantize", "int3", "unknown quantize 'int3'; did you mean"),
    ("backend", "jax", "unknown backend 'jax'; allowed: torch, transformer_lens, nnsight"),
    ("measure", "accuracy", "unknown measure 'accuracy'; allowed: task, answer_logprob, token_logprob, both"),
    ("offload", "cpu", "offload 'cpu': give 'disk', or leave it out"),
    ("remote", "yes", "remote 'yes': give True, False, or 'local' to simulate a server"),
    ("apply_chat_template", "yes", "apply_chat_template 'yes': give True or False"),
    ("enable_thinking", 1, "enable_thinking 1: give True or False, or leave it out"),
    ("system_instruction", 3, "system_instruction 3: give a text, or leave it out"),
    ("think_end_token", " ", "think_end_token ' ': give a text, such as '</think>'"),
    ("gen_kwargs", {}, "gen_kwargs {}: give settings by name, e.g. {'temperature': 0.6"),
    *(("include_path", value, "give a folder that exists, with your task YAML files") for value in (3, "", "no/such")),
    *(("resample_prompts", value, "give a list of prompts, none of them empty") for value in ("x", [3], [" "])),
    *(("tasks", value, f"tasks {value!r}: give a name or a list of names, each once")
      for value in (None, {}, 123, ["capitals", None], [""], [], ["a", "a"])),
    *(("out", value, f"out {value!r}: give the path of a folder") for value in ("", 3, "a\0b")),
    ("text_set", "wiki", "unknown text_set 'wiki'; allowed: embedded, c4"),
]  # fmt: skip
