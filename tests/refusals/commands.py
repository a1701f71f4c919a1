"""Other command lines with a mistake: the arguments, a part of the line.

``{tmp}`` is an empty folder, ``{file}`` a file in it, ``{out}`` a folder that is not there, ``{suite}`` the notebooks.
"""

from __future__ import annotations

USAGE = [
    (["frobnicate"], "No such command 'frobnicate'; 'depthlens --help' lists what it takes"),
    (["sweep", "m", "t", "--out", "{out}"], "Missing option '--ablate'; 'depthlens sweep --help' lists"),
    (["sweep", "m", "t", "--ablate", "L1"], "no --out; name a folder for the results, or add --plan"),
    (["sweep", "m", "--ablate", "L1", "--out", "{out}"], "Missing argument"),
    (["sweep", "m", "t", "--ablate", "L1", "--out", "{out}", "--colour", "red"], "No such option: --colour"),
    (["sweep", "m", "t", "--ablate", "L1", "--out", "{out}", "--limit"], "--limit"),
    (["models", "all"], "unexpected extra argument"),
    (["run", "--out", "{out}"], "Missing argument"),
    (["run", "all"], "Missing option '--out'"),
    (["run", "00_tour", "--out", "{out}", "-p", "limit"], "-p takes a name and a value: -p NAME VALUE"),
    (["gallery"], "Missing argument"),
    (["store", "empty"], "No such command 'empty'"),
    (["store", "show"], "Missing argument"),
    (["store", "verify", "now"], "unexpected extra argument"),
]


def run(*arguments: str) -> list[str]:
    return ["run", *arguments, "--out", "{out}"]


RUN = [
    (run("00_tuor"), "unknown notebook '00_tuor'; did you mean 00_tour?"),
    (run("notebooks/00_tuor.ipynb"), "unknown notebook '00_tuor'; did you mean 00_tour?"),
    (run("00_tour.md"), "unknown notebook '00_tour.md'; did you mean 00_tour?"),
    (run(""), "unknown notebook ''; allowed: 00_tour"),
    (run("{changed}"), "is not the suite's own 00_tour; give the name 00_tour, or run this file with papermill"),
    (run("all", "00_tour"), "'all' cannot be combined with names: give 'all' or names of notebooks, not both"),
    (run("00_tour", "--profile", "smoek"), "unknown profile 'smoek'; did you mean smoke?"),
    (run("00_tour", "-p", "layers", "5"), "no selected notebook has a parameter 'layers'; 00_tour declares: "),
    (run("00_tour", "-p", "limit", "many"), "parameter limit = 'many' of notebook 00_tour must be a whole number"),
    (run("00_tour", "-p", "limit", "2.5"), "parameter limit = '2.5' of notebook 00_tour must be a whole number"),
    (run("00_tour", "-p", "limit", "true"), "parameter limit = 'true' of notebook 00_tour must be a whole number"),
    (run("00_tour", "-p", "tasks", "capitals"), "parameter tasks = 'capitals' of notebook 00_tour must be a list"),
    (run("00_tour", "-p", "limit", "1", "-p", "limit", "2"), "parameter 'limit' is given twice; give -p limit once"),
    (run("00_tour", "-p", "limit", "0"), "notebook 00_tour: limit 0: give a whole number of documents"),
    (run("00_tour", "-p", "limit", "-7"), "notebook 00_tour: limit -7: give a whole number"),
    (run("00_tour", "-p", "num_fewshot", "-1"), "notebook 00_tour: num_fewshot -1: give a whole number"),
    (run("00_tour", "-p", "seed", "-1"), "notebook 00_tour: seed -1: give a whole number from 0"),
    (run("00_tour", "-p", "seed", str(2**32)), "notebook 00_tour: seed 4294967296: give a whole number"),
    (run("00_tour", "-p", "dtype", "float8"), "notebook 00_tour: unknown dtype 'float8'; did you mean"),
    (run("00_tour", "-p", "device", "gpu"), "notebook 00_tour: unknown device 'gpu'; "),
    (run("00_tour", "-p", "model", "gpt5"), "notebook 00_tour: unknown model 'gpt5'; "),
    (run("00_tour", "-p", "model", "./nowhere"), "notebook 00_tour: model directory './nowhere' does not exist"),
    (run("00_tour", "-p", "model", "Qwen/Qwen3-8B"), "notebook 00_tour: model 'Qwen/Qwen3-8B' is not in the local"),
    (run("00_tour", "-p", "tasks", "[capitols]"), "notebook 00_tour: unknown task 'capitols'; did you mean"),
    (run("00_tour", "-p", "tasks", "[capitals, capitals]"), "notebook 00_tour: tasks: 'capitals' is named twice"),
    (run("00_tour", "-p", "tasks", "[]"), "notebook 00_tour: no tasks given; name at least one"),
    (run("00_tour", "-p", "out", "''"), "notebook 00_tour: out '': give the path of a folder"),
    (["run", "00_tour", "--out", ""], "out '': give the path of a folder"),
    (["run", "00_tour", "--out", "{file}"], "is a file; name a folder"),
]

STORE = [
    (["store", "list", "--store", "none"], "there is no store (DEPTHLENS_STORE or --store says none); name one"),
    (["store", "list", "--store", "{file}"], "is not a store; a sweep makes one, --store names another"),
    (["store", "list", "--store", "{out}"], "does not exist; a sweep makes one, --store names another"),
    (["store", "list", "--store", "{foreign}"], "is not a store; a sweep makes one"),
    (["store", "list", "--store", "{newer}"], "was written by a newer depthlens (format 99"),
    (["store", "list", "--store", "{damaged}"], "format.json is damaged; put "),
    (["store", "list", "--store", "nosuch://x"], "cannot be opened: Protocol not known"),
    (["store", "show", "nope", "--store", "{kept}"], "unknown part 'nope'; "),
    (["store", "verify", "--store", "{foreign}"], "is not a store; a sweep makes one"),
    (["store", "prune", "--store", "{kept}"], "nothing to prune is named; give a model, a task, an age"),
    (["store", "prune", "--store", "{kept}", "--model", "nope"], "unknown model 'nope'; "),
    (["store", "prune", "--store", "{kept}", "--task", "nope"], "unknown task 'nope'; "),
    *(
        (["store", "prune", "--store", "{kept}", "--older-than", days], f"--older-than '{days}': give a number of days")
        for days in ("-1", "nan", "inf", "soon", "")
    ),
]

GALLERY = [
    (["gallery", "{tmp}"], "no notebooks in "),
    (["gallery", "{out}"], "no folder "),
    (["gallery", "{file}"], "no folder "),
    (["gallery", ""], "folder '': "),
]

COMPARE = [
    (["compare", "--out", "{out}"], "Missing argument 'RUN...'; 'depthlens compare --help' lists"),
    (["compare", "{tmp}", "{foreign}"], "Missing option '--out'; 'depthlens compare --help' lists"),
    (["compare", "{tmp}", "--out", "{out}"], "alone: a comparison needs two runs or more; give a folder that "),
    (["compare", "{out}/a", "{tmp}", "--out", "{out}"], "/a' is not a folder; give a folder that `depthlens sweep"),
    (["compare", "{file}", "{tmp}", "--out", "{out}"], "/file' is not a folder; give a folder that `depthlens sweep"),
    (["compare", "{tmp}", "{foreign}", "--out", "{out}"], "/tmp' holds no results; give a folder that"),
    (["compare", "{tmp}", "{tmp}", "--out", "{out}"], "is given twice; give each run once"),
    (["compare", "", "{tmp}", "--out", "{out}"], "run '': give a folder that `depthlens sweep --out`"),
    (["compare", "{tmp}", "{foreign}", "--out", ""], "out '': give the path of a folder"),
    (["compare", "{tmp}", "{foreign}", "--out", "{file}"], "it, or a part of the path, is a file; name a folder"),
    (["compare", "{tmp}", "{foreign}", "--out", "{out}", "--seed", "-1"], "seed -1: give a whole number from 0"),
    (["compare", "{tmp}", "{foreign}", "--out", "{out}", "--seed", "x"], "seed 'x': give a whole number from 0"),
]

EXPORT = [
    (["export", "m", "L1"], "Missing option '--out'; 'depthlens export --help' lists"),
    (["export", "gpt5", "L1", "--out", "{out}"], "unknown model 'gpt5'; "),
    (["export", "gpt5", "L1.Q2", "--out", "{out}"], "cannot read 'L1.Q2'; write L12"),
    (["export", "gpt5", "L1", "--out", "{out}", "--dtype", "float8"], "unknown dtype 'float8'; did you mean"),
    (["export", "gpt5", "L1", "--out", ""], "out '': give the path of a folder"),
    (["export", "gpt5", "L1", "--out", "{out}", "--result", "{foreign}"], "holds no "),
    (["export", "{model}", "L1", "--out", "{foreign}"], "exists and is not an empty folder; name a new one"),
    (["export", "{model}", "L1@mean", "--out", "{out}"], "what layer @mean does cannot be written into weights"),
    (["export", "{model}", "L9", "--out", "{out}"], "layer 9 does not exist; layers are 0..4"),
    (["export", "{model}", "L0-4", "--out", "{out}"], "leaves no layer of "),
]

COMMANDS = [*USAGE, *RUN, *STORE, *GALLERY, *COMPARE, *EXPORT]
