"""Calls with a mistake: what is called, a part of the line.

A call gets ``e``: ``e.lens`` (a tiny model: 5 layers, 4 heads), ``e.organism`` (6 layers), and results made on it:
``e.result`` (layers), ``e.heads`` (one layer's heads), ``e.scores`` (copy-paste scores); ``e.tmp`` is an empty folder.
"""

import math

import depthlens as dl
from depthlens.experiments import attention_patterns
from depthlens.experiments.attribution import attribute
from depthlens.lm_eval_model import DepthlensLM
from depthlens.requests import LoglikelihoodRequest

TASK, ONE = "capitals_continuation", "organism_one_hop"
LONG = LoglikelihoodRequest(tuple(range(11)), (5, 6))  # beyond the window
LISTS = {"found": [(0, 0), (1, 0)]}
QUICK = {"limit": 2, "progress": False}


def on(call, *arguments, lens="lens", **fixed):
    """A maker of rows: ``call`` on a model with these arguments, others or more by name."""
    return lambda **options: lambda e: call(getattr(e, lens), *arguments, **{**fixed, **options})


layer_sweep = on(dl.layer_sweep, TASK, **QUICK)
condition_sweep = on(dl.condition_sweep, TASK, **QUICK)
head_sweep = on(dl.head_sweep, TASK, **QUICK)
block_sweep = on(dl.block_sweep, TASK, **QUICK)
greedy = on(dl.greedy_removal, TASK, **QUICK)
race = on(dl.race, ONE, "heads", lens="organism", progress=False, store=None)
retrieval = on(dl.retrieval_scores, progress=False)
reasoning = on(dl.reasoning_scores, **QUICK)
removal = on(dl.removal_curve, ONE, lens="organism", k=1, lists=LISTS, **QUICK)
free_text = on(dl.free_text, prompt_tokens=2, max_new_tokens=2, progress=False)
depth_geometry = on(dl.depth_geometry, progress=False)
plan = on(dl.plan, TASK, "layers", store=None)
attribution = on(dl.head_sweep, TASK, method="attribution", **QUICK)
next_token = on(dl.next_token)
patch = on(dl.patch, progress=False)
attention = on(dl.attention, "a")
residual = on(dl.residual)


def start(**parameters):
    return lambda e: dl.setup_notebook({"model": "organism", "tasks": [ONE], **parameters})


def load(name="organism", **options):
    return lambda e: dl.load(name, **options)


# every place that takes a model, tasks or options asks the rules
NAME = "lens is a str; give a loaded model, such as dl.load('organism')"
GIVEN_A_NAME = {
    "layer_sweep": [TASK], "condition_sweep": [TASK, "L1"], "head_sweep": [TASK], "block_sweep": [TASK],
    "greedy_removal": [TASK], "race": [TASK, "L1"], "plan": [TASK, "L1"], "retrieval_scores": [],
    "reasoning_scores": [],
    "recalled_needles": [[]], "removal_curve": [ONE, LISTS], "free_text": [],
    "with_donor": [None], "next_token": ["x"],
    "worked_solutions": [TASK], "depth_geometry": [],
}  # fmt: skip
ENTRIES = [
    *((lambda e, f=f, a=a: getattr(dl, f)("organism", *a), NAME) for f, a in GIVEN_A_NAME.items()),
    (lambda e: dl.layer_sweep(None, TASK), "lens is a NoneType; give a loaded model, such as dl.load("),
    (lambda e: dl.layer_sweep(e.lens.model, TASK), "lens is a LlamaForCausalLM; give a loaded model"),
    *((call(limit=0), "limit 0: give a whole number") for call in (layer_sweep, reasoning, removal, plan, start)),
    *((call(colour=1), "unknown option 'colour'") for call in (race, plan, free_text, removal, greedy)),
]
NO_NAMES = {
    "smollm2-135m@main": "revision 'main' of 'smollm2-135m' does not exist; give owner/name@revision of the hub",
    "owner/name@": "revision '' of 'owner/name' does not exist; give owner/name@revision of the hub",
    "@step100": "model '': give an alias",
    "smollm2-135m[:0]": "layers '0' of 'smollm2-135m' does not exist; give",
    "organism[:4]": "layers '4' of 'organism' does not exist; give",
    "organism:seeds=3": "did you mean seed",
    "organism:seed=-1": "organism option seed -1: give a whole number from 0",
    **{f"organism:{x}": "the others a value, and each once" for x in ("seed=1,seed=2", "decoy=yes", "eps")},
    "organism:retrieval_layer=1": "retrieval_layer 1: give a whole number from 2 to 5",
    "organism:knowledge_layers=early": "knowledge_layers=early: give a layer or a range of layers, as 2 or 2-3",
    "organism:decoy,backup,n_layers=8,retrieval_layer=3,copying_layer=3": "layer 3 has no head left for copying",
    "organism:knowledge_layers=2,letter_layers=2,text_layers=2": "279 hidden units and has 256; cut knowledge",
}
LOAD = [
    *((load(name), said) for name, said in NO_NAMES.items()),
    *((load(name), f"model {name!r}: give an alias") for name in (None, 3)),
    (load(offload=True), "offload True: give 'disk', or leave it out"),
]
SWEEPS = [
    (layer_sweep(site="block"), "unknown site 'block'; allowed: layer, attn, mlp"),
    *((layer_sweep(limit=None, samples=x), f"samples {x!r}: task {TASK} has documents 0..155; give some of these")
      for x in ("900:", [2, 400])),
    (layer_sweep(limit=None, samples={"arc": [1]}), f"unknown task in samples 'arc'; allowed: {TASK}"),
    *((condition_sweep(ablate=what), f"ablate {what!r}: give layers, attn, mlp") for what in (None, 3, {"L1": 1})),
    (condition_sweep(ablate=["L1", 3]), "condition 3: write L12, L12.attn"),
    (condition_sweep(ablate=[]), "ablate []: give layers"),
    (lambda e: dl.parse_condition(None), "condition None: write L12, L12.attn"),
    *((next_token(prompt=x), f"prompt {x!r}: give some text") for x in ("", ["a", "b"])),
    (lambda e: dl.generate(e.lens, ""), "give some text"),
    (lambda e: dl.logit_lens(e.lens, 5), "give some text"),
    (lambda e: dl.generate(e.lens, "a", "L1@resample"), "L1@resample needs resample_prompt: give both, or neither"),
    (next_token(prompt="a", conditions="L1@resample"), "L1@resample needs resample_prompt: give both, or neither"),
    (next_token(prompt="a", conditions="L1", resample_prompt="b"), "is used by @resample conditions only: give both"),
    (lambda e: dl.ablated(e.lens, "L9").__enter__(), "layer 9 does not exist"),
    *((attention(heads=part), "no layer or head") for part in ("L1.mlp", "L1-2", "L1@mean", "L1.H1[3:]", "baseline")),
    *((block_sweep(max_size=n), f"max_size {n!r}: give a whole number of layers") for n in (0, "2", True)),
    *((greedy(tolerance=x), f"tolerance {x!r}: give a number, at least 0") for x in (-0.1, None, math.nan)),
    (greedy(limit=8), "is not shown to be above chance with every layer in place: nothing to lose; take"),
]  # fmt: skip
HEADS = [
    *((head_sweep(layers=[x]), f"layers [{x}]: give a list of layers, e.g. [0, 1]; layers are 0..4") for x in (99, -1)),
    (head_sweep(site="mlp"), "unknown site 'mlp'; allowed: head, kv"),
    (head_sweep(method="guess"), "unknown method 'guess'; allowed: exact, attribution"),
    (head_sweep(method="attribution", measure="task"), "measure 'task': attribution can do answer_logprob only"),
    (head_sweep(method="attribution", backend="nnsight"), "backend 'nnsight': attribution can do torch only"),
    (race(margin=0.0), "margin 0.0: give a number from 1e-06 to "),
    (race(measure="both"), "measure 'both': a race judges one score"),
    (retrieval(method="guess"), "unknown method 'guess'; allowed: copy_paste, query_to_gold, write_aware, "),
    (retrieval(heads=[(0, 0)]), "heads with method 'copy_paste': only 'exact' removes heads"),
    *((retrieval(heads=x, method="exact"), f"heads {x!r}: give a list of heads, such as")
      for x in (3, ["L1.Q1"], [(0, -1)])),
    (retrieval(heads=[(9, 9)], method="exact"), "layer 9 does not exist; layers are 0..4"),
    *((lambda e, x=x: dl.tasks.written_needles(e.lens, depths=[x]), f"depths {x!r}: give a number") for x in (2, "a")),
    (retrieval(tasks=TASK, limit=2), "is in its prompt; retrieval needs one that is"),
    (lambda e: dl.retrieval_scores(e.organism), "does not know English words; give tasks="),
    (reasoning(tasks=TASK), "worked solutions need a generative task"),
    *((removal(lists=x), f"lists {x!r}: give at least one list of heads by name") for x in ({}, None, [(0, 0)])),
    (removal(lists={"a": "L0.H0"}), "list 'a' 'L0.H0': give a list of heads, such as ['L17.H3']"),
    (removal(lists={"a": ""}), "list 'a' '': give a list of heads, such as ['L17.H3']"),
    (removal(lists={"a": [(0, 9)]}), "head 9 does not exist; heads are 0..3"),
    (removal(lists={"a": [(0, 0), (0, 0)]}, k=2), "names one part twice; name it once"),
    (removal(k=0), "k 0: give a whole number, at least 1"),
    (removal(k=9), "list 'found' has 2 heads; k goes up to 9"),
    (removal(n_draws=3), "n_draws 3: give a whole number, at least 10; fewer make no band"),
]  # fmt: skip
PAIR = {"clean": "the cat", "corrupted": "the dog"}
TWO = {"clean": ["the cat", "one cat"], "corrupted": ["the dog", "one dog"]}
PATCHES = [
    (patch(clean="the cat", corrupted="the cats"), "7 and 8 tokens"),
    (patch(clean="the cat", corrupted="the cat"), "give prompts that differ"),
    (patch(clean=["a", "b"], corrupted=["c"]), "2 clean and 1 corrupted"),
    (residual(texts=[]), "0 texts; give some texts"),
    (residual(texts="ab", position=[0, 1]), "2 for 1 texts"),
    (residual(texts="ab", position=9), "position 9: 'ab' has 2 tokens; give a number from -2 to 1"),
    (residual(texts="ab", depths=[6]), "layers are 0..5"),
    (patch(**PAIR, positions={"end": [1, 2]}), "positions 'end': 2 entries for 1 pairs; give one for each"),
    *((patch(**PAIR, positions={"x": [at]}), "give (start, stop), or") for at in (99, "ab", (3, 2), ((0, 1), (0, 2)))),
    (patch(**PAIR, positions={"x": [(0, 1)], "y": [((0, 1), (1, 2))]}), "a token has two others"),
    (patch(**PAIR, metric=len, answer=("a", "b")), "metric: it takes the place of answer"),
    (patch(**PAIR, metric=lambda x: x.sum()), "gives shape [] for 1 prompts; return one number a prompt"),
    (patch(**PAIR, metric=lambda x: x[:, 0, 0]), "pair 0: the metric is "),
    *((patch(**PAIR, answer=x), "give (right, wrong)") for x in ("ab", ("a", "b", "c"))),
    (patch(**TWO, answer=[("a", "b")]), "or a list of 2, one for each pair"),
    (patch(**PAIR, answer=("a", "a")), "pair 0: 'a' against 'a' is 0 after both prompts, and no"),
]
WORKERS = [
    (layer_sweep(workers=0), "workers 0: give a whole number, at least 1"),
    (layer_sweep(ray=" "), "ray ' ': give 'local' or the address"),
    (layer_sweep(worker_gpus=1.5, workers=1), "worker_gpus 1.5: give a share of a GPU"),
    (layer_sweep(worker_cpus=2), "worker_cpus 2: no workers are asked for"),
    *((call(workers=2), "unknown option 'workers'; allowed: limit, samples, ") for call in (plan, attribution)),
]
DONORS = [
    (lambda e: dl.with_donor(e.organism, e.lens), "are no pair: "),
    (lambda e: dl.with_donor(e.organism, "gpt5"), "unknown model 'gpt5'; "),
    (lambda e: dl.organisms.truth("x"), "'x' is no organism; write organism or organism:seed=3"),
    *(
        (lambda e, do=do: do(e.windowed), said)
        for do, said in (
            (lambda lens: attribute(lens, [LONG]), "walk 12 tokens, and the attention window is 8"),
            (lambda lens: attribute(lens, [LONG], steps=1), "walk 12 tokens, and the attention window is 8"),
            (lambda lens: dl.depth_geometry(lens, ["nine signs"]), "the model reads 8 at once, set max_tokens=8"),
            (lambda lens: attention_patterns.read(lens, LONG.context, [0], print), "the attention window is 8"),
        )
    ),
    (depth_geometry(texts=[]), "texts []: give a list of at least one text"),
    (depth_geometry(texts="C5"), "unknown text set 'C5'; allowed: embedded, c4; or give texts as a list"),
]
# as papermill hands them over: a notebook's first cells pass them on to `setup_notebook`
PARAMETERS = [
    *((start(model=model), f"model {model!r}: give an alias") for model in (None, ["organism"])),
    (start(num_fewshot=99), ": its prompts cannot be made ("),
    (start(enable_thinking=False), "enable_thinking is an argument of the chat template"),
    (start(depths=[0.5, 2]), "depths [0.5, 2]: give a list of at least 1, each a number from 0 to 1"),
    (start(knowledge=["capitals_generativ"]), "unknown task 'capitals_generativ'; did you mean capitals_generative"),
    (start(layers=[3, 9]), "layers [3, 9]: condition L9: layer 9 does not exist; layers are 0..5"),
    (start(ways=["layers@median"]), "ways ['layers@median']: unknown mode 'median'; did you mean mean"),
]
REMOVED = {
    "baseline": "condition baseline removes nothing",
    "L1@mean": "condition L1@mean: L1@mean cannot be written into weights; export a removal",
    "L1[1:]": "L1[1:] cannot be written",
    "L0-4": "condition L0-4 leaves no layer of 'tiny-llama-gqa'; keep one",
}
CHECKPOINTS = [
    *((lambda e, text=text: dl.export(e.lens, text, e.tmp / "out"), said) for text, said in REMOVED.items()),
    (lambda e: DepthlensLM(pretrained=e.lens, condition="L1@mean"), "lm-eval has no other texts to take it from; use"),
    (lambda e: DepthlensLM(pretrained=e.lens, conditon="L1"), "unknown model argument 'conditon'; did you mean"),
]
RESULTS = [
    (lambda e: e.result.select(metrics="f1"), "unknown metric 'f1'; "),
    (lambda e: e.result.select(conditions=["L99"]), "unknown condition 'L99'; "),
    (lambda e: e.result.answers("L9"), "unknown condition 'L9'"),
    (lambda e: e.result.answers("L1", "bad"), "unknown change 'bad'; allowed: "),
    (lambda e: e.result.answers("L1", task="t"), "unknown task 't'"),
    (lambda e: dl.concat([]), "results []: give at least one"),
    (lambda e: e.result.select(tasks="organism_one_hip"), "unknown task 'organism_one_hip'; did you mean"),
    (lambda e: dl.Result.load("/nowhere"), "'/nowhere' holds no docs.parquet; give a folder that Result.save wrote"),
    *((lambda e, x=x: e.result.save(x), f"folder {x!r}: ") for x in ("", "  ", None, "a\0b")),
    (lambda e: e.result.save("/proc/depthlens"), "cannot write to '/proc/depthlens' ("),
    *((lambda e, k=k: e.scores.top(k), f"k {k!r}: give a whole number of heads from 1 to 24")
      for k in (0, 99, "3", True)),
    (lambda e: e.result.head_losses(), "conditions that are not one head each; give the result of a head"),
    (lambda e: e.result.loss_by_third(scale="x"), "unknown scale 'x'; allowed: score, above_chance"),
    (lambda e: e.result.recovery(e.result), "no condition takes a part from a donor; sweep some"),
    (lambda e: dl.compare(), "no two runs have a task and metric in common"),
    (lambda e: dl.compare("/nowhere", e.result), "'/nowhere' holds no docs.parquet; give a folder that"),
    (lambda e: dl.claims.judge(dl.claims.Evidence(), claims=["C9"]), "unknown claim 'C9'"),
]  # fmt: skip


PLOTS = [
    *((lambda e, f=f: e.heads.plot(f), "no condition removes a single layer ")
      for f in ("depth_profile", "protocol_comparison")),
    (lambda e: e.result.plot("head_map"), "no condition removes a single head (L0"),
    (lambda e: e.heads.plot("block_map"), "the result has no blocks of layers; make it with block_sweep"),
    (lambda e: e.result.plot(ax="here"), "ax is a str; give one matplotlib Axes"),
]  # fmt: skip


CALLS = [*ENTRIES, *LOAD, *SWEEPS, *HEADS, *PATCHES, *WORKERS, *DONORS, *PARAMETERS, *CHECKPOINTS, *RESULTS, *PLOTS]
