"""Calls of experiments with a mistake: what is called, a part of the line.

A call gets ``e``: ``e.lens`` (a tiny model: 5 layers, 4 heads), ``e.organism``, and results made on it; see `results`.
"""

from __future__ import annotations

import depthlens as dl
from depthlens.analysis import geometry
from depthlens.analysis.head_lists import head_overlap
from depthlens.experiments import attention_patterns
from depthlens.models import pairs

TASK, ONE = "capitals_continuation", "organism_one_hop"
NATS = "answer_logprob"
LISTS = {"found": [(0, 0), (1, 0)]}
QUICK = {"limit": 2, "progress": False}


def layer_sweep(**options):
    return lambda e: dl.layer_sweep(e.lens, **{"tasks": TASK, **QUICK, **options})


def ablate(what, **options):
    return lambda e: dl.condition_sweep(e.lens, TASK, what, **{**QUICK, **options})


def head_sweep(**options):
    return lambda e: dl.head_sweep(e.lens, TASK, **{**QUICK, **options})


def retrieval(**options):
    return lambda e: dl.retrieval_scores(e.lens, **{"progress": False, **options})


def reasoning(**options):
    return lambda e: dl.reasoning_scores(e.lens, **{**QUICK, **options})


def removal(**options):
    return lambda e: dl.removal_curve(e.organism, **{"tasks": ONE, "lists": LISTS, "k": 1, **QUICK, **options})


def transplant(**parts):
    return lambda e: dl.transplant(e.organism, e.organism, **parts).__enter__()


def start(**parameters):
    return lambda e: dl.setup_notebook(**{"model": "organism", "tasks": [ONE], **parameters})


def load(name="organism", **options):
    return lambda e: dl.load(name, **options)


NAME = "lens 'organism' is the name of a model; load it first: dl.load('organism')"
NOT_LOADED = [
    (lambda e: dl.layer_sweep("organism", TASK), NAME),
    (lambda e: dl.condition_sweep("organism", TASK, "L1"), NAME),
    (lambda e: dl.head_sweep("organism", TASK), NAME),
    (lambda e: dl.block_sweep("organism", TASK), NAME),
    (lambda e: dl.greedy_removal("organism", TASK), NAME),
    (lambda e: dl.retrieval_scores("organism"), NAME),
    (lambda e: dl.induction_scores("organism"), NAME),
    (lambda e: dl.retrieval_by_step("organism", []), NAME),
    (lambda e: dl.reasoning_scores("organism"), NAME),
    (lambda e: dl.recalled_needles("organism", []), NAME),
    (lambda e: dl.removal_curve("organism", ONE, LISTS), NAME),
    (lambda e: dl.transplant("organism", e.organism, layers=[1]).__enter__(), NAME),
    (lambda e: dl.weight_deltas("organism", e.organism), NAME),
    (lambda e: dl.activation_deltas("organism", e.organism, ["x"]), NAME),
    (lambda e: dl.with_donor("organism", e.organism), NAME),
    (lambda e: dl.tasks.written_needles("organism"), NAME),
    (lambda e: dl.tasks.task_needles("organism", TASK), NAME),
    (lambda e: dl.worked_solutions("organism", TASK), NAME),
    (lambda e: attention_patterns.read("organism", [[1]], [[0]], print), NAME),
    (lambda e: dl.attention_at_results("organism"), NAME),
    (lambda e: dl.layer_sweep(e.tmp, TASK), "is the name of a model; load it first: dl.load("),
    (lambda e: dl.layer_sweep(None, TASK), "lens is a NoneType, not a loaded model; load one first: dl.load("),
    (lambda e: dl.layer_sweep(e.lens.model, TASK), "lens is a LlamaForCausalLM, not a loaded model; load one first"),
]

LOAD = [
    (load(None), "model None: give an alias"),
    (load(3), "model 3: give an alias"),
    (load("a\0b"), "unknown model 'a\\x00b'; "),
    (load(dtype=None), "unknown dtype None; "),
    (load(dtype="fp8"), "unknown dtype 'fp8'; "),
    (load(device=None), "unknown device None; "),
    (load(device="cuda:99"), "device 'cuda:99': torch finds no CUDA GPU here; use device=cpu"),
    (load(quantize="int3"), "unknown quantize 'int3'; did you mean"),
    (load(offload=True), "offload True: give 'disk', or leave it out"),
    (load(remote="yes"), "remote 'yes': give True, 'local' to simulate a server here, or leave it out"),
]

SWEEPS = [
    (layer_sweep(tasks=None), "tasks None: give a name or a list of names"),
    (layer_sweep(tasks=[]), "no tasks given; name at least one"),
    (layer_sweep(tasks={}), "tasks {}: give a name or a list of names"),
    (layer_sweep(tasks=123), "tasks 123: give a name or a list of names"),
    (layer_sweep(tasks=[TASK, None]), "tasks ['capitals_continuation', None]: give a name or a list of names"),
    (layer_sweep(site="block"), "unknown site 'block' for a layer sweep; allowed: layer, attn, mlp"),
    (layer_sweep(site=["layer"]), "unknown site ['layer'] for a layer sweep; allowed"),
    (layer_sweep(limit=True), "limit True: give a whole number of documents"),
    (layer_sweep(limit=1.5), "limit 1.5: give a whole number of documents"),
    (layer_sweep(limit=float("nan")), "limit nan: give a whole number of documents"),
    (layer_sweep(limit="5"), "limit '5': give a whole number of documents"),
    (layer_sweep(limit=None, samples="900:"), f"samples '900:': task {TASK} has no such documents; it has 0..155"),
    (layer_sweep(limit=None, samples=[]), "samples []: give numbers of documents, e.g. range(0, 100, 2)"),
    (layer_sweep(limit=None, samples=[1.5]), "samples [1.5]: give numbers of documents"),
    (layer_sweep(limit=None, samples=[-1]), "samples [-1]: give numbers of documents"),
    (layer_sweep(limit=None, samples=[3, 3]), "samples: document 3 is named twice; name it once"),
    (layer_sweep(limit=None, samples=7), "samples 7: give numbers of documents"),
    (
        layer_sweep(limit=None, samples=[2, 400]),
        "samples: document 400 does not exist; task capitals_continuation has 0..155",
    ),
    (layer_sweep(limit=None, samples={}), "samples {}: give numbers of documents"),
    (layer_sweep(limit=None, samples={"arc": [1]}), "unknown task in samples 'arc'; allowed: capitals_continuation"),
    (layer_sweep(limit=None, samples={TASK: "x"}), "samples 'x': give START:STOP"),
    (layer_sweep(num_fewshot=True), "num_fewshot True: give a whole number"),
    (layer_sweep(num_fewshot=0.5), "num_fewshot 0.5: give a whole number"),
    (layer_sweep(seed=None), "seed None: give a whole number from 0 to 4294967295"),
    (layer_sweep(seed=True), "seed True: give a whole number from 0"),
    (layer_sweep(backend=None), "unknown backend None; allowed: torch"),
    (layer_sweep(batch_tokens=2.5), "batch_tokens 2.5: give a whole number"),
    (layer_sweep(apply_chat_template="yes"), "apply_chat_template 'yes': give True or False"),
    (layer_sweep(progress="no"), "progress 'no': give True or False"),
    (layer_sweep(system_instruction=3), "system_instruction 3: give a text, or leave it out"),
    (layer_sweep(measure=None), "unknown measure None; allowed: task"),
    (layer_sweep(include_path=3), "include_path 3 is not a folder; give the folder"),
    (layer_sweep(store=False), "store False: give a folder or URL, 'auto' for the usual one, or None"),
    (layer_sweep(store=3), "store 3: give a folder or URL"),
    (layer_sweep(store=""), "store '': give a folder or URL"),
    (ablate(None), "ablate None: give layers, attn, mlp"),
    (ablate(3), "ablate 3: give layers, attn, mlp"),
    (ablate([]), "nothing to ablate in []; give layers"),
    (ablate(["L1", 3]), "ablate 3: give layers, attn, mlp, heads, kv, experts, blocks:N"),
    (ablate([["L1"]]), "ablate ['L1']: give layers"),
    (ablate({"L1": 1}), "ablate {'L1': 1}: give layers"),
    (
        ablate("L1.H1@resample", resample_prompts="x"),
        "resample_prompts 'x': give a list of prompts, none of them empty",
    ),
    (ablate("L1.H1@resample", resample_prompts=[3]), "resample_prompts [3]: give a list of prompts"),
    (ablate("L1@donor", donor=3), "model 3: give an alias"),
    (lambda e: dl.parse_condition(None), "condition None: write L12, L12.attn"),
    (lambda e: dl.Ablation("x"), "layer 'x' of an ablation: give a whole number"),
    (lambda e: dl.Ablation(-1), "layer -1 is negative; layers count from 0"),
    (lambda e: dl.Ablation(1, start=-1), "start -1 of an ablation is negative; give a whole number from 0"),
    (lambda e: dl.Ablation(1, start=1.5), "start 1.5 of an ablation: give a whole number"),
    (lambda e: dl.Ablation(1, seed=2), "seed 2 does not fit mode 'skip'; only noise has one, leave it out"),
    (lambda e: dl.Ablation(1, "x"), "unknown ablation site 'x'; allowed: layer"),
    (lambda e: dl.Condition(("L1",)), "condition of 'L1': give ablations, or a text to depthlens.parse_condition"),
    (lambda e: dl.next_token(e.lens, ""), "prompt '': give some text"),
    (lambda e: dl.next_token(e.lens, None), "prompt None: give some text"),
    (lambda e: dl.next_token("organism", "x"), "lens 'organism' is the name of a model; load it first"),
    (lambda e: dl.next_token(e.lens, "x", k=0), "k 0: give a whole number, at least 1"),
    (lambda e: dl.depth_geometry("organism"), "lens 'organism' is the name of a model; load it first"),
    (lambda e: dl.depth_geometry(e.lens, ["a text", 5]), "texts ['a text', 5]: give a list of at least one text"),
    (lambda e: dl.depth_geometry(e.lens, lens_positions=0), "lens_positions 0: give a whole number, at least 1"),
    (lambda e: dl.layer_effects("organism"), "lens 'organism' is the name of a model; load it first"),
    (lambda e: dl.layer_effects(e.lens, seed=-1), "seed -1: give a whole number from 0"),
    (
        lambda e: geometry.geometry_predictors(3),
        "geometry is a int; give what depthlens.experiments.geometry.depth_geometry returned",
    ),
    (lambda e: dl.next_token(e.lens, "x", ["L99"]), "condition L99: layer 99 does not exist; layers are 0..4"),
]

BLOCKS = [
    *(
        (
            lambda e, n=n: dl.block_sweep(e.lens, TASK, max_size=n, **QUICK),
            f"max_size {n!r}: give a whole number of layers",
        )
        for n in (0, -1, "2", None, 2.0, True)
    ),
    *(
        (
            lambda e, n=n: dl.greedy_removal(e.lens, TASK, max_layers=n, **QUICK),
            f"max_layers {n!r}: give a whole number",
        )
        for n in (0, "x")
    ),
    *(
        (
            lambda e, x=x: dl.greedy_removal(e.lens, TASK, tolerance=x, **QUICK),
            f"tolerance {x!r}: give a number, at least 0",
        )
        for x in (-0.1, "x", None, float("nan"))
    ),
    (lambda e: dl.greedy_removal(e.organism, ONE, metric="f1", **QUICK), "unknown metric 'f1'; "),
    (
        lambda e: dl.greedy_removal(e.organism, ONE, metric=NATS, measure=NATS, **QUICK),
        "documents cannot be halved for choosing and judging; take",
    ),
]

HEADS = [
    (head_sweep(layers=3), "layers 3: give a list of layers, e.g. [3, 4]"),
    (head_sweep(layers="3"), "layers '3': condition '3': cannot read '3'; write L12"),
    (head_sweep(layers=["a"]), "layers ['a']: give a list of layers"),
    (head_sweep(layers=[1.5]), "layers [1.5]: give a list of layers"),
    (head_sweep(layers=[99]), "layers [99]: layer 99 does not exist; layers are 0..4"),
    (head_sweep(layers=[-1]), "layers [-1]: layer -1 does not exist; layers are 0..4"),
    (head_sweep(layers=[]), "layers is empty; name at least one layer"),
    (head_sweep(site="mlp"), "unknown site 'mlp'; allowed: head, kv"),
    (head_sweep(method="guess"), "unknown method 'guess'; allowed: exact, attribution"),
    (head_sweep(mode="median"), "unknown mode 'median'; "),
    (head_sweep(mode="resample"), "needs resample_prompts: give both, or neither"),
    (
        head_sweep(resample_prompts=["x"]),
        "resample_prompts are used by @resample conditions only: give both, or neither",
    ),
    (
        head_sweep(method="attribution", resample_prompts=["x"]),
        "resample_prompts ['x']: attribution puts no prompt in place; ",
    ),
    (
        head_sweep(method="attribution", mode="resample"),
        "mode 'resample': attribution estimates 'zero' and 'mean'; use",
    ),
    (
        head_sweep(method="attribution", measure="task"),
        "measure 'task': attribution estimates answer_logprob only; use",
    ),
    (
        head_sweep(method="attribution", backend="nnsight"),
        "backend 'nnsight': attribution runs with 'torch' only; leave",
    ),
    (head_sweep(method="attribution", limit="x"), "limit 'x': give a whole number of documents"),
    (retrieval(method="guess"), "unknown method 'guess'; allowed: copy_paste, query_to_gold, write_aware, "),
    (retrieval(heads=[(0, 0)]), "heads with method 'copy_paste': only 'exact' removes heads"),
    (retrieval(heads=3, method="exact"), "heads 3: give a list of heads as (layer, head), e.g. [(3, 0)]"),
    (retrieval(heads=[], method="exact"), "heads names 0 heads; give at least one"),
    (retrieval(heads=["L1.H1"], method="exact"), "heads ['L1.H1']: give a list of heads as (layer, head)"),
    (retrieval(heads=[(9, 9)], method="exact"), "layer 9 does not exist; layers are 0..4"),
    (retrieval(heads=[(0, -1)], method="exact"), "heads [(0, -1)]: give a list of heads"),
    (
        retrieval(given_removed=[(0, 0)], method="exact"),
        "given_removed names 1 heads; heads are tested against each other",
    ),
    (
        retrieval(given_removed=[(0, 0), (0, 1)]),
        "given_removed with method 'copy_paste': only 'exact' removes several heads",
    ),
    (retrieval(needles=[]), "no needles; give at least one"),
    (retrieval(needles=["x"]), "no needles; give at least one, from depthlens.tasks.needles"),
    (retrieval(n_needles=0), "n_needles 0: give a whole number, at least 1"),
    (retrieval(depths=0.5), "depths 0.5: give a list of numbers, at least one"),
    (retrieval(depths=[]), "depths []: give a list of numbers, at least one"),
    (retrieval(depths=[2]), "depths 2: give a number, from 0 to 1: 0 is the start"),
    (retrieval(depths=["a"]), "depths 'a': give a number, from 0 to 1"),
    (retrieval(context_lengths=256), "context_lengths 256: give a list of numbers"),
    (retrieval(context_lengths=[0]), "context_lengths 0: give a whole number of tokens, at least 1"),
    (retrieval(tasks=3), "tasks 3: give a name or a list of names"),
    (retrieval(tasks=TASK, limit=2), "is in its prompt; retrieval needs one that is"),
    (reasoning(tasks=TASK), "worked solutions need a generative task"),
    (reasoning(tasks=None), "tasks None: give a name or a list of names"),
    (reasoning(method="copy_paste"), "unknown method 'copy_paste'; allowed: exact, attribution"),
    (reasoning(method="attribution", heads=[(0, 0)]), "heads with method 'attribution': only 'exact'"),
]

REMOVAL = [
    (removal(lists={}), "lists {}: give at least one list of heads by name"),
    (removal(lists=None), "lists None: give at least one list of heads by name"),
    (removal(lists=[(0, 0)]), "lists [(0, 0)]: give at least one list of heads by name"),
    (removal(lists={"a": "L0.H0"}), "list 'a' 'L0.H0': give a list of heads as (layer, head)"),
    (removal(lists={"a": ["L0.H0"]}), "list 'a' ['L0.H0']: give a list of heads as (layer, head)"),
    (removal(lists={"a": []}), "list 'a' is empty; name at least one head"),
    (removal(lists={"a": [(0, 9)]}), "head 9 does not exist; heads are 0..3"),
    (removal(lists={"a": [(0, 0), (0, 0)]}, k=2), "names one part twice; name it once"),
    *((removal(k=k), f"k {k!r}: give a whole number from 1, or several") for k in (0, "x", None, [], [1, "a"], True)),
    (removal(k=9), "list 'found' has 2 heads; k goes up to 9"),
    (removal(n_draws=3), "n_draws 3: give a whole number, at least 10; fewer make no band"),
    (removal(n_draws="x"), "n_draws 'x': give a whole number"),
    (removal(metric="f1"), "unknown metric of task organism_one_hop 'f1'; "),
    (removal(tasks=None), "tasks None: give a name or a list of names"),
    (lambda e: head_overlap([], [], 3), "give at least one head, each once"),
    (lambda e: head_overlap("x", [(0, 0)], 3), "list 'x': give a list of heads as (layer, head)"),
]

DONORS = [
    (transplant(layers=3), "layers 3: give a list of layers, e.g. [3, 4]"),
    (transplant(layers=[99]), "layers [99]: layer 99 does not exist; layers are 0..5"),
    (transplant(mlp="x"), "mlp 'x': give a list of layers"),
    (transplant(heads=[3]), "heads [3]: give a list of heads as (layer, head)"),
    (transplant(heads=[(0, 99)]), "head 99 does not exist; heads are 0..3"),
    (transplant(layers=[1], attn=[1]), "has no effect of its own beside L1@donor; drop one of the two"),
    (lambda e: dl.transplant(e.organism, e.lens, layers=[1]).__enter__(), "are no pair: "),
    (lambda e: dl.transplant(e.organism, "gpt5", layers=[1]).__enter__(), "unknown model 'gpt5'; "),
    (lambda e: dl.transplant(e.organism, None, layers=[1]).__enter__(), "model None: give an alias"),
    (
        lambda e: dl.activation_deltas(e.organism, e.organism, "x"),
        "prompts 'x': give a list of at least one text",
    ),
    (
        lambda e: dl.activation_deltas(e.organism, e.organism, [3]),
        "prompts hold 3; give texts or lists of token ids",
    ),
    (lambda e: pairs.pair("x"), "unknown pair 'x'; allowed: "),
    (lambda e: dl.organisms.build(seed="x"), "organism option seed='x': give a whole number"),
    (lambda e: dl.organisms.build(colour=1), "unknown organism option 'colour'; "),
    (lambda e: dl.organisms.truth("x"), "'x' is no organism; write organism or organism:seed=3"),
]

GEOMETRY = [
    (lambda e: dl.depth_geometry(e.lens, []), "texts"),
    (lambda e: dl.depth_geometry(e.lens, "abc"), "texts"),
    (lambda e: dl.depth_geometry(e.lens, limit=0), "limit 0"),
    (lambda e: dl.depth_geometry(e.lens, max_tokens=1), "max_tokens 1"),
    (lambda e: dl.layer_effects(e.lens, reduce="sum"), "unknown reduce 'sum'; "),
    (lambda e: dl.layer_effects(e.lens, limit=1, skip_first=-1), "skip_first -1: "),
    (lambda e: geometry.geometry_agreement("x", e.result), "predictors is a str; give a table such as"),
]

# as papermill hands them over: a notebook's first cells pass them on to `start`
PARAMETERS = [
    (start(model=None), "model None: give an alias"),
    (start(model=["organism"]), "model ['organism']: give an alias"),
    (start(tasks=None), "tasks None: give a list of task names"),
    (start(tasks="capitals"), "tasks 'capitals': give a list of task names, e.g. ['capitals']"),
    (start(tasks=[3]), "tasks [3]: give a name or a list of names"),
    (start(limit=True), "limit True: give a whole number of documents"),
    (start(limit=0), "limit 0: give a whole number of documents"),
    (start(num_fewshot=99), "num_fewshot 99: "),
    (start(seed=1.5), "seed 1.5: give a whole number"),
    (start(dtype=None), "unknown dtype None; "),
    (start(device=None), "unknown device None; "),
    (start(offload="x"), "offload 'x': give 'disk', or leave it out"),
    (start(remote="x"), "remote 'x': give True, 'local' to simulate"),
    (start(out=""), "out '': give the path of a folder"),
    (start(out=3), "out 3: give the path of a folder"),
    (start(include_path="/x"), "include_path '/x' is not a folder; give the folder"),
]

CALLS = [*NOT_LOADED, *LOAD, *SWEEPS, *BLOCKS, *HEADS, *REMOVAL, *DONORS, *GEOMETRY, *PARAMETERS]
