"""Golden values: what sweeps and analyses give on this commit, recorded once and compared on every later commit.

Usage::

    python benchmarks/golden.py record FOLDER [--only 'tiny/llama/*']
    python benchmarks/golden.py compare FOLDER [--only PATTERN] [--expected PATTERN]...

The cases use public names alone (docs/api.md) and no store. A case that raises is recorded with its error and stops no
other. ``compare`` runs the cases again and lists apart what is missing (dropped on purpose?), new and different, and
exits with 1 where something is different. ``--expected`` names values that a decision changes, as
``case/table/column/row`` with wildcards: they are listed apart and are no failure.
"""

from __future__ import annotations

import functools
import itertools
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import typer
from transformers import AutoConfig, AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny as of_tests  # noqa: E402

import depthlens as dl  # noqa: E402
from depthlens.analysis.layers import blocks  # noqa: E402
from depthlens.analysis.numbers.means import max_t, mean  # noqa: E402
from depthlens.analysis.result import losses  # noqa: E402
from depthlens.analysis.result.profiles import third_conditions  # noqa: E402
from depthlens.analysis.runs.comparison import compare_runs  # noqa: E402
from depthlens.provenance import git_commit  # noqa: E402

PRECISION = torch.float64  # of tiny models and organisms
# how far a value may be from the recorded one, by the first word of its case; texts are equal
TOLERANCES = {
    "tiny": 1e-9,  # float64: sums in another order move log-likelihoods of some hundred nats by 1e-12
    "organism": 1e-9,
    "made": 1e-9,  # p-values and ends of intervals of given numbers and given draws
    "embedded": 5e-4,  # nats; float32 in other batches rounds differently
    "float32": 5e-4,  # TransformerLens, which has its softmax in float32
}
QUIET: dict[str, Any] = {"store": None, "progress": False}
Cases = Iterator[tuple[str, Callable[[], Any]]]

# Tables ---------------------------------------------------------------------------------------------------------------

# columns that name a row; the others are values
KEYS = (
    *("model", "task", "other_task", "metric", "other_metric", "condition", "doc_id", "list", "other_list", "place"),
    *("parts", "run", "reference", "measure", "scale", "claim", "part", "view", "layer", "head", "later", "where"),
    *("site", "matrix", "size", "k", "step", "depth", "third", "other", "mode", "other_mode", "predictor"),
)
PROSE = ("sentence", "what", "why", "claimed", "group")
# attributes of objects of depthlens that are tables or have some
ATTRIBUTES = (
    *("docs", "summary", "baselines", "frame", "table", "thirds", "centres", "points", "band", "tests", "areas"),
    *("excess", "ratio", "interactions", "steps", "distances", "influences", "logit_lens", "decisions", "losses"),
    *("settings", "profiles", "differences", "critical", "parts", "result"),
)
NAMES = ["case", "table", "column", "row"]


def tables(found: Any, name: str = "") -> dict[str, pd.DataFrame]:
    """The tables of something, by name; arrays, numbers and texts become tables of values."""
    if isinstance(found, pd.DataFrame):
        return {name: found}
    inside = found
    if not isinstance(found, Mapping):
        values = ((key, getattr(found, key, None)) for key in ATTRIBUTES)
        inside = {key: value for key, value in values if value is not None and not callable(value)}
        if isinstance(found, str | torch.Tensor) or not inside:
            array = np.array(found)
            return {name: pd.DataFrame(array if array.ndim == 2 else {"value": array.ravel()})}
    of_each = (tables(value, f"{name}.{key}".strip(".")) for key, value in inside.items())
    return {key: table for of_one in of_each for key, table in of_one.items()}


def cells(case: str, found: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One row a value: case, table, column, row (what names it), and the value as ``number`` or as ``text``."""
    made = []
    for name, table in found.items():
        table = table.rename(columns=str).drop(columns=[c for c in PROSE if c in table]).reset_index(drop=True)
        about = {"case": case, "table": name}
        filled = {"column": "(rows)", "row": "", "number": np.nan, "text": "some" if len(table) else "none"}
        made.append(pd.DataFrame(about | filled, index=[0]))
        keys = [c for c in KEYS if c in table]
        named = [zip(keys, values, strict=True) for values in table[keys].itertuples(index=False, name=None)]
        row = pd.Series([" ".join(f"{k}={v}" for k, v in of if not pd.isna(v)) for of in named], dtype=str)
        row = row.str.replace(r"\.0\b", "", regex=True)  # whole numbers, of whatever type
        row += " #" + row.groupby(row).cumcount().astype(str)
        for column in table.columns.difference(keys, sort=False):
            values = table[column].convert_dtypes()
            is_number = pd.api.types.is_numeric_dtype(values)  # also of True and False
            number = values.astype("Float64").to_numpy(float, na_value=np.nan) if is_number else np.nan
            filled = {"column": column, "row": row, "number": number, "text": "" if is_number else values.astype(str)}
            made.append(pd.DataFrame(about | filled, index=table.index))
    return pd.concat(made, ignore_index=True)


# Tiny random models ---------------------------------------------------------------------------------------------------

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    **{family: of_tests.FAMILIES[family] for family in ("llama-mqa", "qwen2", "qwen3", "deepseek-v3")},
    "mistral": ("mistral", {"sliding_window": 64}),  # shorter than the prompts: whole passes
    "qwen3-moe": ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "gemma3": ("gemma3_text", {"head_dim": 12}),  # walked layer by layer as a whole
    "gpt-neox": ("gpt_neox", {"num_key_value_heads": 4}),  # attention and MLP beside each other
}
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}<bot>"
# conditions by mode and kind of part; each list is a case, so that what a family or later version lacks takes no other
CONDITIONS = {
    "removed": "L0 L2 L4 L1.attn L3.attn L0.mlp L3.mlp L2.H1 L3.H0 L1.KV0 L1-2 L2-4".split(),
    "joined": "L0.H1+L3.H2 L1.attn+L4.mlp L1+L3.H2 L0.KV0+L2-3 L0.attn+L2.mlp[1:]+L4.H3".split(),
    "spared": "L1[1:] L3.attn[1:] L2.mlp[2:] L2.H1[1:] L3.KV0[1:] L1-2[1:]".split(),
    "twice": "L1x2 L3x2 L1x2+L3.H0".split(),
    "ends@donor": "embed@donor unembed@donor whole@donor L2@donor+L3.H1".split(),
}
PARTS = {"layers": ("L2", "L1-2"), "heads": ("L2.H1", "L1.KV0", "L1.H0"), "sublayers": ("L1.attn", "L3.mlp")}
SUFFIXES = {  # how all parts are replaced, and the last one once more
    "mean": ("@mean", "[1:]@mean"),
    "resample": ("@resample", "[1:]@resample"),
    "noise": ("[1:]@noise", "[1:]@noise3"),
    "donor": ("@donor", "@donor+L4.H3"),
    "int": ("@int4", "@int8"),
}
for (kind, of_kind), (mode, (suffix, last)) in itertools.product(PARTS.items(), SUFFIXES.items()):
    joined = f"{of_kind[0]}{suffix}+L4.mlp"
    CONDITIONS[f"{kind}@{mode}"] = [*(part + suffix for part in of_kind), joined, of_kind[-1] + last]
FACTS, LETTERS, WRITTEN = "capitals_continuation", "capitals_default", "capitals_generative"
TEXTS = ["The capital of Peru is Lima, and that of Chile is Santiago.", "Water boils at a hundred degrees, or below."]


@functools.cache
def tiny(family: str, seed: int = 0, precision: torch.dtype = PRECISION) -> dl.Lens:
    """A random model of a few thousand weights that reads bytes; equal seeds give equal weights."""
    kind, changes = FAMILIES[family]
    torch.manual_seed(seed)
    config = AutoConfig.for_model(kind, **(of_tests.BASE | {"max_position_embeddings": 1024} | changes))
    model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")  # others know no float64
    tokenizer = of_tests.tokenizer()
    tokenizer.chat_template = CHAT
    return dl.Lens(model.to(precision).eval(), tokenizer, f"tiny-{family}-{seed}")


def options_too(task: Any, score: Callable[..., dict], doc: Any, answers: Sequence[Any]) -> dict[str, float]:
    """The scores of a choice, the log-likelihood of every option, and by how many nats the best ones differ."""
    nats, lengths = np.array([ll for ll, _ in answers]), np.array([len(c) for c in task.doc_to_choice(doc)])
    gaps = [np.sort(of)[-1] - np.sort(of)[-2] for of in (nats, nats / lengths * lengths.min())]  # acc and acc_norm
    return {**score(doc, answers), **{f"option{i}": x for i, x in enumerate(nats)}, "margin": float(min(gaps))}


def sweep(lens: dl.Lens, names: str | Sequence[str], ablate: Any, **options: Any) -> dl.Result:
    """A sweep of a few documents, with the log-likelihood of every option of a choice."""
    options = {"num_fewshot": 1, "limit": 4, "seed": 0, **options}
    of_tasks = {key: options.pop(key) for key in ("num_fewshot", "gen_kwargs") if key in options}
    loaded = dl.load_tasks(names, limit=options["limit"], seed=options["seed"], **of_tasks)
    for task in loaded.values():
        if task.OUTPUT_TYPE == "multiple_choice":
            task.process_results = functools.partial(options_too, task, task.process_results)
    return dl.condition_sweep(lens, loaded, ablate, **options, **QUIET)


def write(lens: dl.Lens, ablate: Any, task: str = WRITTEN, **options: Any) -> dl.Result:
    gen_kwargs = {"max_gen_toks": 5, **options.pop("gen_kwargs", {})}
    return sweep(lens, task, ablate, **{"limit": 3, "measure": "both", **options, "gen_kwargs": gen_kwargs})


def every_family() -> Cases:
    for family, (mode, ablate) in itertools.product(FAMILIES, CONDITIONS.items()):
        names = [FACTS, LETTERS] if mode in ("removed", "joined") else [FACTS]

        def case(run: Callable[..., dl.Result], *of: Any, family=family, mode=mode, ablate=ablate) -> dl.Result:
            more: dict[str, Any] = {"resample_prompts": TEXTS} if "@resample" in mode else {}
            more |= {"donor": tiny(family, 1)} if "@donor" in mode else {}
            return run(tiny(family), *of, ablate=ablate, **more)

        yield f"tiny/{family}/{mode}/choice", functools.partial(case, sweep, names)
        yield f"tiny/{family}/{mode}/written", functools.partial(case, write)


WORDS = ("layers", "attn", "mlp", "heads", "kv", "blocks:3", "bottom:2", "top:2", "layersx2", "heads[1:]@noise")
FEW = CONDITIONS["removed"][::3] + CONDITIONS["spared"][::3]
PROMPT = {"apply_chat_template": True, "system_instruction": "Answer."}
DRAWN = {"do_sample": True, "temperature": 0.8, "top_k": 20, "top_p": 0.95}
HEADS: dict[str, dict[str, Any]] = {
    "exact": {},
    "mean": {"mode": "mean"},
    "attribution": {"method": "attribution"},
    "attribution of groups": {"method": "attribution", "site": "kv"},
    "integrated gradients": {"method": "integrated_gradients", "steps": 4},
    "integrated gradients of layers": {"method": "integrated_gradients", "steps": 4, "layers": [1, 3]},
}
SHORT: dict[str, Any] = {"num_fewshot": 0, **QUIET}
NATS: dict[str, Any] = {"measure": "answer_logprob", **SHORT}
LISTS = {"first": [(1, 0), (3, 2), (2, 1)], "second": [(0, 3), (4, 1), (2, 2)]}
CURVE = {"k": [1, 3], "n_draws": 10, "limit": 6}
FREE = {"n_prompts": 3, "prompt_tokens": 16, "max_new_tokens": 12}
ONE_FAMILY: dict[str, Callable[[dl.Lens], Any]] = {
    **{word: lambda m, word=word: sweep(m, FACTS, word) for word in WORDS},
    "nnsight/choice": lambda m: sweep(m, FACTS, FEW, backend="nnsight"),
    "nnsight/written": lambda m: write(m, FEW, backend="nnsight"),
    "chat/choice": lambda m: sweep(m, FACTS, "layers", **PROMPT),
    "chat/written": lambda m: write(m, "layers", **PROMPT),
    "few-shot/choice": lambda m: sweep(m, [FACTS, LETTERS], "layers", num_fewshot=4, seed=3),
    "few-shot/written": lambda m: write(m, "layers", num_fewshot=4, seed=3),
    "drawn": lambda m: write(m, "layers", gen_kwargs=DRAWN, seed=7),
    **{of: lambda m, of=of: write(m, FEW, "arithmetic_direct", measure=of) for of in ("answer_logprob", "both")},
    "token_logprob": lambda m: sweep(m, [FACTS, "arithmetic_direct"], FEW, measure="token_logprob"),
    **{f"heads/{name}": lambda m, o=o: dl.head_sweep(m, FACTS, limit=4, **o, **SHORT) for name, o in HEADS.items()},
    "reasoning/exact": lambda m: dl.reasoning_scores(m, limit=3, **SHORT),
    "reasoning/attribution": lambda m: dl.reasoning_scores(m, limit=3, method="attribution", **SHORT),
    "attention": lambda m: dl.attention(m, [*range(40, 60)], (2, 1)).pattern[0, [0, 7, 19]],
    "next token": lambda m: dl.next_token(m, TEXTS[0], ["L2", "L1.H2+L3.mlp"], k=20),
    "geometry": lambda m: dl.depth_geometry(m, TEXTS, **QUIET),
    "race": lambda m: dl.race(m, FACTS, "layers", max_documents=48, margin=0.5, **NATS),
    "greedy": lambda m: dl.greedy_removal(m, FACTS, tolerance=5.0, max_layers=2, limit=8, **NATS),
    "removal curve": lambda m: dl.removal_curve(m, FACTS, LISTS, **CURVE, **NATS),
    "free text": lambda m: dl.free_text(m, ["L1", "L3.attn", "L2.H1"], **FREE, **QUIET),
}


# Organisms and the embedded model -------------------------------------------------------------------------------------

ORGANISMS: dict[str, dict[str, Any]] = {
    "plain": {},
    "decoy and backup": {"decoy": True, "backup": True, "n_kv_heads": 2, "seed": 3},
    "deep": {"n_layers": 9, "retrieval_layer": 4, "reasoning_layer": 6, "seed": 5},
}
EXACTLY = ("exact", "attribution", "integrated_gradients")
METHODS = ("copy_paste", "query_to_gold", "write_aware", "write_from_needle", *EXACTLY)
HOP, HOPS = "organism_one_hop", ["organism_one_hop", "organism_two_hop"]


@functools.cache
def organism(name: str) -> dl.Lens:
    built = dl.organisms.build(**ORGANISMS[name])
    return dl.Lens(built.model.to(PRECISION), built.tokenizer, f"organism-{name}")


def retrieval(name: str, method: str) -> dl.HeadScores:
    return dl.retrieval_scores(organism(name), HOP, method=method, limit=8, **SHORT)


@functools.cache
def embedded() -> dl.Lens:
    return dl.load("smollm2-135m", dtype="float32", device="cpu")


def larger_models() -> Cases:
    """Of the embedded model documents alone: their summaries are the arithmetic of other cases."""
    few: dict[str, Any] = {"num_fewshot": 0, "limit": 8}
    for of in ORGANISMS:
        for word in ("layers", "attn", "heads"):
            yield f"organism/{of}/{word}", lambda of=of, word=word: sweep(organism(of), HOPS, word, **few)
        yield f"organism/{of}/written", lambda of=of: write(organism(of), "layers,L2.H1", f"{HOP}_generative")
        for method in METHODS:
            yield f"organism/{of}/retrieval/{method}", lambda of=of, method=method: retrieval(of, method)
    tasks: dict[str, dict[str, Any]] = {
        **{FACTS: {}, "kv_retrieval_4": {"num_fewshot": 0, "limit": 2}},
        **{WRITTEN: {"gen_kwargs": {"max_gen_toks": 8}}, "arithmetic_continuation": {"limit": 2}},
    }
    for task, options in tasks.items():
        yield f"embedded/{task}", lambda task=task, o=options: sweep(embedded(), task, "layers", **o).docs


# Made-up results ------------------------------------------------------------------------------------------------------

N_LAYERS, N_HEADS = 12, 4
LAYERS = [f"L{layer}" for layer in range(N_LAYERS)]
ALL_HEADS = [f"{layer}.H{head}" for layer in LAYERS for head in range(N_HEADS)]
SITES = [f"{layer}.{site}" for site in ("attn", "mlp") for layer in LAYERS]
BLOCKS = [f"L{i}-{i + n}" if n else f"L{i}" for n in range(3) for i in range(N_LAYERS - n)]
VIEWS = [layer + suffix for suffix in ("", "[1:]", "@mean") for layer in LAYERS]
MOVED = ["L0-3@donor", "L4-7@donor", "L8-11@donor"]
# what a removal takes off the margins of documents
EARLY = 4 * np.exp(-np.arange(N_LAYERS) / 2)
LATE, FLAT = EARLY[::-1], np.full(N_LAYERS, 0.6)
STRONG = np.where(np.arange(len(ALL_HEADS)) % 11 == 3, 2.0, 0.1)
THREE = {"facts": EARLY, "sums": LATE, "text": FLAT}
METRICS: dict[str, tuple[float | None, Callable[[np.ndarray], np.ndarray]]] = {  # chance, and scores of margins
    "acc": (0.25, lambda margin: (margin > 0) * 1.0),
    "exact_match": (0.0, lambda margin: (margin > 0.3) * 1.0),
    "probability": (None, lambda margin: 1 / (1 + np.exp(-margin))),
    "answer_logprob": (None, lambda margin: -np.log1p(np.exp(-margin))),
    "token_logprob": (None, lambda margin: -np.log1p(np.exp(-margin)) / 2),
}


@functools.cache
def result(name: str, model: str = "made", seed: int = 0) -> dl.Result:
    """A made-up result of `RESULTS`: tasks that ask the same questions, some of which are hard for all of them."""
    damage, metrics, conditions, more = RESULTS[name]
    n, level, subtasks = (more.get(key, value) for key, value in (("n", 60), ("level", 1.5), ("subtasks", 1)))
    hard = np.random.default_rng([seed, 99]).normal(level, 1, n)
    docs, tasks, asked = [], {}, []
    for i, (task, by_condition) in enumerate(damage.items()):
        rng = np.random.default_rng([seed, i])
        own, fragile = hard + rng.normal(0, 0.5, n), rng.gamma(2.0, 0.5, n)
        margins = {"baseline": own, **{
            condition: own - d * fragile + rng.normal(0, 0.2, n)
            for condition, d in zip(conditions, by_condition, strict=True)
        }}  # fmt: skip
        for metric, (condition, margin) in itertools.product(metrics, margins.items()):
            place = dl.parse_condition(condition) if condition != "baseline" else None
            about = {"model": model, "task": task, "metric": metric, "condition": condition, "response": ""}
            about |= {"layer": place and place.layer, "head": place and place.head}
            docs.append(pd.DataFrame(about | {"doc_id": range(n), "value": METRICS[metric][1](margin)}))
        chance = {m: {"higher_is_better": True, "chance": METRICS[m][0], "floor": METRICS[m][0]} for m in metrics}
        tasks[task] = {"version": 1, "num_fewshot": 0, "output_type": "multiple_choice", "metrics": chance}
        groups = {"subtask": [f"{task}_{d % subtasks}" for d in range(n)]} if subtasks > 1 else {}
        same = {"question": "?", "reference": "!", "choices": None, "doc_hash": [f"{n}:{d}" for d in range(n)]}
        asked.append(pd.DataFrame({"task": task, "doc_id": range(n)} | same | groups))
    dims = {"n_layers": N_LAYERS, "n_heads": N_HEADS, "n_kv_heads": 2, "d_model": 32, "d_head": 8}
    record = {"model": {"name": model, "dims": dims, "fingerprint": model}, "seed": seed, "tasks": tasks}
    return dl.Result(pd.concat(docs).astype({"layer": "Int64", "head": "Int64"}), record, pd.concat(asked))


def seen(task: str, damage: np.ndarray, metric: str = "acc") -> tuple:
    """A result under three views, as claims are judged by."""
    return {task: np.tile(damage, 3)}, [metric], VIEWS, {"n": 120}


# damage by task, metrics, conditions, and more
RESULTS: dict[str, tuple] = {
    "binary": (THREE, ["acc"], LAYERS, {}),
    "probability": (THREE, ["probability"], LAYERS, {}),
    "nats": (THREE, ["answer_logprob", "token_logprob"], LAYERS, {}),
    "heads": ({"copy": STRONG, "sums": STRONG[::-1]}, ["acc", "answer_logprob"], ALL_HEADS, {}),
    "group": (THREE, ["acc"], LAYERS, {"subtasks": 6}),
    "at chance": (THREE, ["acc"], LAYERS, {"level": -0.7}),
    "other": (THREE | {"facts": FLAT}, ["acc"], LAYERS, {"level": 1.8}),
    "blocks": ({"facts": np.linspace(0, 3, len(BLOCKS))}, ["acc"], BLOCKS, {}),
    "sites": ({"closed": np.r_[EARLY, LATE], "opened": np.r_[LATE, FLAT]}, ["acc", "answer_logprob"], SITES, {}),
    "moved": ({"facts": np.array([-1.5, -0.4, 0.0])}, ["acc"], MOVED, {"level": 0.0}),
    "letters": seen("letters", EARLY),
    "continuation": seen("facts", EARLY),
    "generation": seen("written", LATE, "exact_match"),
    "retrieval": seen("keys", EARLY),
    "text": seen("text", FLAT),
    "long_text": seen("long", FLAT),
    "reasoning": seen("solved", LATE, "exact_match"),
    "copying": seen("copied", EARLY, "exact_match"),
    "reasoning_choice": seen("sums", LATE),
    "tokens": ({task: np.tile(d, 3) for task, d in {**THREE, "keys": EARLY, "long": FLAT}.items()}, ["token_logprob"],
               VIEWS, {"n": 120}),
}  # fmt: skip
ROLES = [*RESULTS][[*RESULTS].index("letters") :]
# what an analysis makes of a result, and of which results
ANALYSES: dict[str, Callable[[dl.Result], Any]] = {
    "summary": lambda r: {"summary": r.summary, "baselines": r.baselines, "losses": r.loss_table},
    "critical": lambda r: {"rows": r.critical()},
    "thirds": lambda r: {s: r.loss_by_third(scale=s) for s in ("score", "above_chance", "importance")},
    "centre": lambda r: r.centre_of_mass(),
    "ranks": lambda r: dl.agreement(r),
    "geometry": lambda r: dl.agreement(r, pd.DataFrame({"layer": range(N_LAYERS), "x": EARLY, "y": LATE})),
}
OF_HEADS = ("summary", "critical")
OTHERS: dict[str, Callable[[], Any]] = {
    "modes": lambda: dl.agreement(result("letters")),
    "blocks": lambda: {"table": blocks.block_table(result("blocks"))},
    "subtasks": lambda: result("group").split("facts"),
    "models/ranks": lambda: dl.agreement(result("binary"), result("other", "distilled")),
    "models/joined": lambda: dl.concat([result("binary"), result("other", "distilled")]),
    "models/compared": lambda: compare_runs({
        "run0": {"": result("binary")}, "run1": {"": result("other", "distilled")}}),
    "transplants": lambda: result("moved").recovery(result("binary", "donor").select(tasks="facts")),
    **{f"claims/{c}": lambda c=c: dl.claims.judge(evidence(), claims=[c])
       for c in ("C1", "C2", "C3", "C4", "C7")},
    "means": lambda: {"p": (m := mean(draws(3)) - mean(draws(4))).p(), "max t": max_t(m), "ends": m.interval()},
    "thirds of layers": lambda: {"of": losses.layer_third(np.arange(10), 10), "conditions": third_conditions(30)},
    "heads/losses": lambda: {"losses": copy(0), "top": copy(0).top(6)},
    "heads/contrast": lambda: result("heads").head_losses("copy", "answer_logprob", beyond="sums"),
    "heads/agreement": lambda: dl.agreement(result("heads"), result("heads", seed=1)),
    "heads/detectors": lambda: dl.detector_agreement({"one": copy(0), "two": copy(1)}, k=4),
    "heads/truth": lambda: dl.organisms.compare({"one": copy(0).top(5)}, copy(1).top(4)),
}  # fmt: skip


@functools.cache
def evidence() -> dl.claims.Evidence:
    return dl.claims.Evidence(**{role: result(role) for role in ROLES})


def draws(seed: int, n: int = 50) -> np.ndarray:
    return np.random.default_rng(seed).normal([0, 0.1, 0.2, 0.4, 0.8, 0], 0.7, (n, 6)).clip(-1, 1)


def copy(seed: int) -> dl.HeadScores:
    return result("heads", seed=seed).head_losses("copy", "answer_logprob")


# Record and compare ---------------------------------------------------------------------------------------------------


def cases() -> Cases:
    yield from every_family()
    for name, of in ONE_FAMILY.items():
        yield f"tiny/llama/{name}", lambda of=of: of(tiny("llama"))
    single = functools.partial(tiny, "llama", precision=torch.float32)
    yield "float32/transformer_lens/choice", lambda: sweep(single(), FACTS, FEW, backend="transformer_lens").docs
    yield "float32/transformer_lens/written", lambda: write(single(), FEW, backend="transformer_lens").docs
    yield from larger_models()
    for name, (analysis, make) in itertools.product([*RESULTS][:6], ANALYSES.items()):
        if name != "heads" or analysis in OF_HEADS:
            yield f"made/{name}/{analysis}", lambda name=name, make=make: make(result(name))
    yield from ((f"made/{name}", make) for name, make in OTHERS.items())


def run(only: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The values of all cases, and the errors of those that raise."""
    warnings.simplefilter("ignore")  # random models are at chance
    found, errors, start = [], {}, time.monotonic()
    for name, make in cases():
        if not fnmatch(name, only):
            continue
        torch.set_num_threads(2 if name.startswith("embedded") else 1)
        began = time.monotonic()
        try:
            found.append(cells(name, tables(make())))
        except Exception as error:  # noqa: BLE001 - recorded; the other cases go on
            errors[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        print(f"{time.monotonic() - began:7.1f} s  {name}  {errors.get(name, '')}", flush=True)
    print(f"{time.monotonic() - start:7.1f} s  {len(found)} cases, and {len(errors)} that raise")
    return pd.concat(found, ignore_index=True), errors


app = typer.Typer(help=__doc__)


@app.command()
def record(folder: Path, only: str = "*") -> None:
    """Write the values of all cases, or of those whose names match."""
    found, errors = run(only)
    folder.mkdir(parents=True, exist_ok=True)
    found.to_parquet(folder / "cells.parquet", index=False)
    about = {"commit": git_commit(), "machine": platform.platform(), "torch": torch.__version__}
    (folder / "record.json").write_text(json.dumps({**about, "precision": str(PRECISION), "errors": errors}, indent=2))


@app.command()
def compare(folder: Path, only: str = "*", expected: list[str] = []) -> None:  # noqa: B006 - an option, several times
    """Run the cases again and list what is equal, missing, new and different; 1 where something is different."""
    recorded = json.loads((folder / "record.json").read_text())
    old = pd.read_parquet(folder / "cells.parquet")
    old = old[[fnmatch(case, only) for case in old["case"]]]
    new, errors = run(only)
    both = old.merge(new, on=NAMES, how="outer", suffixes=("_old", "_new"), indicator="side")
    # a row that a recorded column did not have is a difference; one that it has no more is missing
    missing, added = (both[both["side"] == side] for side in ("left_only", "right_only"))
    added = added[lacking(added, old) != ""]
    common = both.drop(index=[*missing.index, *added.index])
    found = differences(common)
    names = found[NAMES].agg("/".join, axis=1) if len(found) else pd.Series(dtype=str)
    decided = names.map(lambda name: any(fnmatch(name, pattern) for pattern in expected)).astype(bool)
    print("\nrecorded on", *(recorded[key] for key in ("commit", "machine", "torch", "precision")))
    same = set(common["case"]) - set(found["case"])
    print(f"equal: {len(common) - len(found)} of {len(common)} values, and all of {len(same)} cases")
    for title, rows, other in (("missing now", missing, new), ("new", added, old)):
        counts = lacking(rows, other).replace("", "single rows").value_counts(sort=False)
        report(title, [f"{name}: {n} values  {errors.get(name, '')}" for name, n in counts.items()])
    for title, part in (("different as expected", found[decided]), ("DIFFERENT", found[~decided])):
        report(title, [worst(of) for _, of in part.groupby(NAMES[:3], sort=False)])
    raise typer.Exit(int(not decided.all()))


def lacking(rows: pd.DataFrame, other: pd.DataFrame) -> pd.Series:
    """Of each row the widest of its case, table and column that another table lacks, or ""."""
    names = pd.Series("", index=rows.index)
    for n in (3, 2, 1):  # the widest last
        own, known = (functools.reduce(lambda a, b: a + " | " + b, (of[k] for k in NAMES[:n])) for of in (rows, other))
        names = names.mask(~own.isin(set(known)), own)
    return names


def differences(both: pd.DataFrame) -> pd.DataFrame:
    """Values that are further apart than they may be, and how far; a text, NaN or new row is infinitely far."""
    old, new = both["number_old"], both["number_new"]
    texts = both["text_old"].fillna("") == both["text_new"].fillna("")
    equal = ((old == new) | (old.isna() & new.isna())) & texts
    apart = (old - new).abs().fillna(np.inf).mask(equal, 0.0)
    tolerance = both["case"].str.partition("/")[0].map(TOLERANCES)
    # a choice between options that are closer than rounding is no difference
    margins = both[(both["column"] == "value") & both["row"].str.contains("metric=margin ")]
    close = margins[margins["number_old"] < 2 * tolerance[margins.index]]
    document = both["case"] + both["row"].str.replace(r"metric=\S+", "metric=margin", regex=True)
    chosen = (both["column"] == "response") | (both["column"] == "value") & both["row"].str.contains("metric=acc")
    tied = chosen & document.isin(set(close["case"] + close["row"]))
    return both.assign(apart=apart)[(apart > tolerance) & ~tied]


def report(title: str, lines: Sequence[str]) -> None:
    print(f"\n{title}: {len(lines)}", *lines, sep="\n  ")


def worst(found: pd.DataFrame) -> str:
    """The largest difference of one column of one table."""
    cell = found.loc[found["apart"].idxmax()]
    old, new = (cell[f"text_{side}"] or cell[f"number_{side}"] for side in ("old", "new"))
    where = f"{' | '.join(cell[NAMES[:3]])}: {len(found)} values, at most by {cell['apart']:.2g}"
    return f"{where}: recorded {old!r}, now {new!r} at {cell['row']}"


if __name__ == "__main__":
    app()
