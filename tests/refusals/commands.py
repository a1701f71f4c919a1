"""Command lines with a mistake: the arguments, a part of the line.

``{tmp}`` is an empty folder, ``{file}`` a file in it, ``{out}`` a folder that is not there, ``{model}`` a tiny model
(5 layers, 4 heads, 2 KV groups).
"""

TASK = "capitals_continuation"

USAGE = [
    (["frobnicate"], "No such command 'frobnicate'; 'depthlens --help' lists what it takes"),
    (["sweep", "m", "t", "--out", "{out}"], "Missing option '--ablate'; 'depthlens sweep --help' lists"),
    (["sweep", "m", "t", "--ablate", "L1"], "no --out; name a folder for the results, or add --plan"),
    (["sweep", "m", "t", "--ablate", "L1", "--out", "{out}", "--colour", "red"], "No such option: --colour"),
    (["sweep", "m", "t", "--plan", "--ablate", "L1", "--gen-kwargs", "temperature"],
     "gen_kwargs {'temperature': ''}: give settings by name, e.g. "),
]  # fmt: skip


def sweep(model: str = "{model}", *tasks: str, **options: object) -> list[object]:
    """A sweep with these options; True is a flag."""
    given = {"ablate": "L1", "out": "{out}", "limit": 2} | options
    flags = [[f"--{name.replace('_', '-')}", *([value] if value is not True else [])] for name, value in given.items()]
    return ["sweep", model, *(tasks or [TASK]), *sum(flags, [])]


# what each option of a sweep is refused for first; rules have their own table
SWEEPS = [
    (sweep("smollm-135m"), "unknown model 'smollm-135m'; did you mean smollm2-135m, "),
    (sweep(" "), "model ' ': give an alias (see 'depthlens models'), a hub id, a directory or a .gguf file"),
    (sweep("./no/such"), "model './no/such' is no directory and no .gguf file; give an alias"),
    (sweep("qwen3-8b"), "model 'qwen3-8b' cannot be loaded: We couldn't connect to"),
    (sweep("organism", offload="disk"), "offload 'disk' reads layers of files onto one device: not with"),
    (sweep("organism", remote=True),
     "remote=True: a server has main revisions of the hub, in its own dtype; leave all else out"),
    (sweep("{model}", "capitals_continuatoin"), "unknown task 'capitals_continuatoin'; did you mean capitals_contin"),
    (sweep(ablate="layer"), "unknown ablation 'layer'; did you mean layers? conditions such as L12.H3 are"),
    (sweep(ablate="layer1"), "condition 'layer1': cannot read 'layer1'; write L12, L12.attn"),
    (sweep(ablate="layers@resample"), "condition L0@resample needs resample_prompts: give both, or neither"),
    (sweep(ablate="layers@donor"), "condition L0@donor takes weights from a donor; give donor=NAME"),
    (sweep(donor="{model}"), "is used by @donor conditions only; give both, or neither"),
    (sweep(donor="organism", ablate="L1@donor"), "are no pair: "),
    (sweep(donor="{model}", ablate="L1@donor", backend="nnsight"), "can be computed by backend 'torch' only; use that"),
    (sweep(samples="::2", limit=3), "limit 3 and samples '::2' both choose documents; give one of them"),
    (sweep(num_fewshot=99), f"task {TASK}: its prompts cannot be made (AssertionError at utils.py line"),
    (sweep(device="cuda:99"), "device 'cuda:99': torch finds 0 CUDA GPUs here; use device=cpu"),
    (sweep(apply_chat_template=True), "has no chat template; leave apply_chat_template out"),
    (sweep(include_path="{file}"), "give a folder that exists, with your task YAML files"),
    (sweep(out=" "), "folder ' ': give the path of a folder, such as runs/mine"),
    (sweep(out="{file}/below"), "file/below'); name a folder you can write to"),
    (sweep(margin=0.3), "--max-documents are of a race; add --race, or leave them out"),
    (sweep(store=""), "store '': give a folder or URL, 'auto' for the usual one, or None to do without"),
]  # fmt: skip


def run(*arguments: str) -> list[str]:
    return ["run", *arguments, "--out", "{out}"]


RUN = [
    (run("notebooks/00_tuor.ipynb"), "unknown notebook '00_tuor'; did you mean 00_tour?"),
    (run("00_tour", "--profile", "smoek"), "unknown profile 'smoek'; did you mean smoke?"),
    (run("00_tour", "-p", "layers", "5"), "unknown parameter 'layers'; allowed: apply_chat"),
    (run("00_tour", "-p", "limit", "0"), "notebook 00_tour: limit 0: give a whole number of documents"),
    (["run", "00_tour", "--out", "{file}"], "/file'); name a folder you can write to"),
]
STORE = [
    (["store", "list", "--store", "none"], "there is no store (DEPTHLENS_STORE or --store says none); name one"),
    (["store", "list", "--store", "{foreign}"], "is a folder with other things in it (notes.txt, ...)"),
    (["store", "show", "nope", "--store", "{kept}"], "no part begins with 'nope'; "),
    *((["store", "prune", "--store", "{kept}", "--where", where], f"--where {where!r} cannot be asked (")
      for where in ("tsak == 'a'", "rows + 1", "rows", "0")),
]  # fmt: skip
OTHERS = [
    (["gallery", "{tmp}"], "no notebooks in "),
    (sweep(out="{page}"), "index.html' is another page and would be replaced; name another folder"),
    (["compare", "{tmp}", "{foreign}", "--out", "{out}"], "/tmp' holds no docs.parquet; give a folder that"),
    (["compare", "--from-logs", "{tmp}", "{foreign}", "--out", "{out}"], "/tmp' has no scores of documents; give the "),
    (["compare", "{tmp}", "{tmp}", "--out", "{out}"], "is given twice; give each run once"),
    (["export", "gpt5", "L1.Q2", "--out", "{out}"], "cannot read 'L1.Q2'; write L12"),
    (["export", "{model}", "L1", "--out", "{foreign}"], "exists and is not an empty folder; name a new one"),
]
COMMANDS = [*USAGE, *SWEEPS, *RUN, *STORE, *OTHERS]
