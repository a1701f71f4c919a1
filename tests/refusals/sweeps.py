"""``depthlens sweep`` on a tiny model (5 layers, 4 heads, 2 KV groups) with one thing wrong: options, part of the line.

Of the options, ``model``, ``tasks`` and ``ablate`` stand for the arguments, others for ``--name``; None leaves one out
and True is a flag. ``{tmp}`` is an empty folder, ``{file}`` a file in it, ``{model}`` the model's folder.
"""

from __future__ import annotations

TASK = "capitals_continuation"

NAMES = [
    ({"model": "smollm-135m"}, "unknown model 'smollm-135m'; did you mean smollm2-135m, "),
    ({"model": "gpt5"}, "unknown model 'gpt5'; allowed: smollm2-135m, "),
    ({"model": ""}, "model '': give an alias (see 'depthlens models'), a hub id, a directory or a .gguf file"),
    ({"model": "  "}, "model '  ': give an alias"),
    ({"model": "./no/such/folder"}, "model directory './no/such/folder' does not exist; give a folder"),
    ({"model": "a/b/c"}, "model directory 'a/b/c' does not exist"),
    ({"model": "~/no-such-model"}, "model directory '~/no-such-model' does not exist"),
    ({"model": "weights.gguf"}, "model file 'weights.gguf' does not exist; give the path of a .gguf file"),
    ({"model": "no-such-owner/no-such-model"}, "'no-such-owner/no-such-model' is not in the local cache and HF_HUB"),
    ({"model": "qwen3-8b"}, "model 'qwen3-8b' is not in the local cache and HF_HUB_OFFLINE=1; unset it"),
    ({"model": "owner/not a model"}, "'owner/not a model' cannot be read: Repo id must use alphanumeric"),
    ({"model": "café"}, "unknown model 'café'"),
    ({"model": "x" * 5000}, "cannot be read: File name too long; give another"),
    ({"model": "{file}"}, "' is a file but not a .gguf file; give a directory or a .gguf file"),
    ({"model": "organism:seed=x"}, "organism option seed=x in 'organism:seed=x': give a whole number"),
    ({"model": "organism:colour=red"}, "unknown organism option 'colour'; "),
    ({"model": "organism:seed=1,seed=2"}, "organism option 'seed' is given twice in "),
    ({"model": "organism:decoy=1"}, "organism option decoy=1 in 'organism:decoy=1': it takes no value"),
    ({"model": "organism:"}, "unknown organism option ''"),
    ({"model": "organism", "offload": "disk"}, "offload 'disk': model 'organism' is built in memory"),
    ({"model": "organism", "remote": True}, "model 'organism' is built here and on no server; leave remote out"),
    ({"remote": True, "offload": "disk"}, "offload 'disk' is for weights that are read here; leave it or remote out"),
    ({"remote": True, "dtype": "float32"}, "dtype 'float32' and device 'auto' of a remote model are the server's"),
]

TASKS = [
    ({"tasks": ["capitals_continuatoin"]}, "unknown task 'capitals_continuatoin'; did you mean capitals_continuation"),
    ({"tasks": [TASK, "stnemele"]}, "unknown task 'stnemele'; "),
    ({"tasks": ["hellaswag"]}, "task hellaswag: its data cannot be downloaded (HF_HUB_OFFLINE=1"),
    ({"tasks": [""]}, "tasks ['']: give a name or a list of names"),
    ({"tasks": [TASK, TASK]}, f"tasks: '{TASK}' is named twice; name it once"),
    ({"tasks": ["123"]}, "unknown task '123'; "),
    ({"tasks": ["x" * 300]}, "unknown task 'xxx"),
    ({"tasks": ["capitals_continuation,elements"]}, "unknown task 'capitals_continuation,elements'"),
]

CONDITIONS = [
    ("layer", "condition 'layer': cannot read 'layer'; write L12, L12.attn"),
    ("L", "condition 'L': cannot read 'L'"),
    ("12", "condition '12': cannot read '12'"),
    ("l1", "condition 'l1': cannot read 'l1'"),
    ("L1.H", "cannot read 'L1.H'"),
    ("L1.h2", "cannot read 'L1.h2'"),
    ("L1.H-1", "cannot read 'L1.H-1'"),
    ("L1;L2", "cannot read 'L1;L2'"),
    ("L1 L2", "cannot read 'L1 L2'"),
    ("L-1", "cannot read 'L-1'"),
    ("L1+", "condition 'L1+': cannot read ''"),
    ("L5", "condition L5: layer 5 does not exist; layers are 0..4"),
    ("L99999999999999999999", "layer 99999999999999999999 does not exist"),
    ("L3-9", "condition L3-9: layer 5 does not exist; layers are 0..4"),
    ("L3-1", "block 3-1 runs backwards; write L1-3"),
    ("L1-2.attn", "a block is of whole layers; join sublayers with +"),
    ("L1.H4", "condition L1.H4: head 4 does not exist; heads are 0..3"),
    ("L1.KV2", "condition L1.KV2: KV group 2 does not exist; groups are 0..1"),
    ("L1+L1.attn", "L1.attn has no effect of its own beside L1; drop one of the two"),
    ("L2.KV0+L2.H1", "L2.H1 has no effect of its own beside L2.KV0; drop one"),
    ("L1+L1", "names one part twice; name it once"),
    ("L1@zero", "unknown mode '@zero'; write @mean, @resample or @donor"),
    ("L1@resample", "mode 'resample' does not fit site 'layer'; allowed: skip, mean, donor"),
    ("layers@median", "mode 'median' does not fit site 'layer'; allowed: "),
    ("layers@resample", "mode 'resample' does not fit site 'layer'"),
    ("blocks", "size '' in 'blocks'; give blocks:N with N from 1 to 5"),
    ("blocks:0", "size '0' in 'blocks:0'; give blocks:N with N from 1 to 5"),
    ("blocks:6", "size '6' in 'blocks:6'"),
    ("blocks:two", "size 'two' in 'blocks:two'"),
    ("bottom:0", "size '0' in 'bottom:0'; give bottom:N"),
    ("top:6@donor", "size '6' in 'top:6'; give top:N with N from 1 to 5"),
    ("heads:3", "condition 'heads:3': cannot read 'heads:3'"),
    ("embed", "embed can only be taken from a donor; write embed@donor"),
    ("unembed@mean", "unembed can only be taken from a donor"),
    ("whole", "'whole' can only be taken from a donor; write whole@donor"),
    (",", "nothing to ablate in ','; give layers, attn"),
    ("", "nothing to ablate in ''"),
    ("L1,,L7", "condition L7: layer 7 does not exist"),
]

NUMBERS = [
    ({"limit": 0}, "limit 0: give a whole number of documents, at least 1, or leave it out for all"),
    ({"limit": -3}, "limit -3: give a whole number of documents"),
    ({"limit": "all"}, "limit 'all': give a whole number of documents"),
    ({"limit": "1.5"}, "limit '1.5': give a whole number of documents"),
    ({"limit": "nan"}, "limit 'nan': give a whole number"),
    ({"limit": ""}, "limit '': give a whole number"),
    ({"num_fewshot": -1}, "num_fewshot -1: give a whole number of examples, at least 0"),
    ({"num_fewshot": "two"}, "num_fewshot 'two': give a whole number of examples"),
    ({"num_fewshot": 99}, f"num_fewshot 99: task {TASK} has 10 examples"),
    ({"num_fewshot": 9, "tasks": ["kv_retrieval_4"]}, "num_fewshot 9: task kv_retrieval_4 has 8 examples"),
    ({"batch_tokens": 0}, "batch_tokens 0: give a whole number, at least 1, or leave it out"),
    ({"batch_tokens": "many"}, "batch_tokens 'many': give a whole number"),
    ({"seed": -1}, "seed -1: give a whole number from 0 to 4294967295"),
    ({"seed": 2**32}, "seed 4294967296: give a whole number from 0 to 4294967295"),
    ({"seed": "tomorrow"}, "seed 'tomorrow': give a whole number"),
    ({"seed": "1.0"}, "seed '1.0': give a whole number"),
]

WORDS = [
    ({"dtype": "float8"}, "unknown dtype 'float8'; did you mean float32, float16"),
    ({"dtype": ""}, "unknown dtype ''; allowed: auto, float32"),
    ({"device": "gpu"}, "unknown device 'gpu'; "),
    ({"device": "cuda:99"}, "device 'cuda:99': torch finds no CUDA GPU here; use device=cpu"),
    ({"device": "cuda:x"}, "unknown device 'cuda:x'; did you mean cuda"),
    ({"device": "cpu:0"}, "unknown device 'cpu:0'; did you mean cpu"),
    ({"device": "mps"}, "device 'mps': torch finds no Apple GPU here; use device=cpu"),
    ({"backend": "jax"}, "unknown backend 'jax'; allowed: torch, transformer_lens, nnsight"),
    ({"backend": ""}, "unknown backend ''; allowed: torch"),
    ({"measure": "accuracy"}, "unknown measure 'accuracy'; allowed: task, answer_logprob, both"),
    ({"offload": "cpu"}, "offload 'cpu': give 'disk', or leave it out"),
    ({"apply_chat_template": True}, "has no chat template; leave apply_chat_template out"),
    ({"include_path": "no/such/tasks"}, "include_path 'no/such/tasks' is not a folder; give the folder with your"),
    ({"include_path": ""}, "include_path '' is not a folder; give the folder"),
    ({"include_path": "{file}"}, "is not a folder; give the folder with your task YAML files"),
    ({"ablate": "L1.H1@resample"}, "condition L1.H1@resample needs resample_prompts: give both, or neither"),
    ({"resample_prompt": "x"}, "resample_prompts are used by @resample conditions only: give both, or neither"),
    (
        {"ablate": "L1.H1@resample", "resample_prompt": " "},
        "resample_prompts [' ']: give a list of prompts, none of them empty",
    ),
    ({"ablate": "layers@donor"}, "condition L0@donor takes weights from a donor; give donor=NAME"),
    ({"donor": "{model}"}, "is used by @donor conditions only; give both, or neither"),
    ({"donor": "gpt5", "ablate": "L1@donor"}, "unknown model 'gpt5'; "),
    ({"donor": "organism", "ablate": "L1@donor"}, "are no pair: "),
    (
        {"donor": "{model}", "ablate": "L1@donor", "backend": "nnsight"},
        "takes weights from a donor; use backend 'torch'",
    ),
    ({"donor": "{model}", "ablate": "L1@donor,L9"}, "condition L9: layer 9 does not exist"),
]

PLACES = [
    ({"out": ""}, "folder '': the name of a folder is empty; name one"),
    ({"out": " "}, "folder ' ': the name of a folder is empty; name one"),
    ({"out": "{file}"}, "it, or a part of the path, is a file; name a folder"),
    ({"out": "{file}/below"}, "it, or a part of the path, is a file; name a folder"),
    ({"out": "/proc/depthlens"}, "cannot write to '/proc/depthlens': No such file or directory; name a folder"),
    ({"out": "x" * 300}, "File name too long; name a folder you can write to"),
    ({"store": ""}, "store '': give a folder or URL, or None to do without"),
    ({"store": "{file}"}, "it, or a part of the path, is a file; name a folder"),
    ({"store": "nosuch://x"}, "store 'nosuch://x' cannot be opened: Protocol not known: nosuch"),
    ({"store": "{foreign}"}, "is a folder with other things in it (notes.txt, ...); name an empty folder or a new one"),
    ({"store": "{newer}"}, "was written by a newer depthlens (format 99, this one has "),
    ({"store": "{damaged}"}, ": format.json is damaged; put "),
]

SWEEPS = [*NAMES, *TASKS, *(({"ablate": text}, said) for text, said in CONDITIONS), *NUMBERS, *WORDS, *PLACES]
