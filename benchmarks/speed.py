"""Speed of a sweep against what a user could run instead: same documents, one process, alternating, medians.

Usage::

    python benchmarks/speed.py [--work 0-shot,5-shot] [--peers hf,checkpoint] [--repeats 3] [--conditions 2]
    python benchmarks/speed.py --task gsm8k --num-fewshot 5 --documents 32
    python benchmarks/speed.py --model llama-3.1-8b --device cuda --work "0-shot,5-shot,256 written tokens"

Peers
    hf          lm-eval's ``hf`` model with a hook that skips the layer or zeroes the head, at its best batch size
    checkpoint  the authors' way: delete the layer, save a checkpoint, load it, run lm-eval's ``hf`` on it

A peer pays the same for every condition, so it is timed on ``--conditions`` of them and scaled to all; ours runs all.
Scores of both sides are compared on the conditions that the peer ran. ``--model`` takes another model. One of `SHAPES`
has random weights in bfloat16 and the exact shapes of one of the study's, since speed does not depend on weights, and
the tokenizer of the embedded model; R1-Distill-Llama-8B has the shapes of LLaMA-3.1-8B. ``--write FOLDER`` writes the
model as a checkpoint for any command, and measures nothing. ``--profile`` prints the costliest operations of one run of
ours. Operations a second are those of the products with weights of the layers.
"""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import typer
from reproduction_costs import MODELS
from shared import alternating, show, timed
from transformers import AutoConfig, AutoModelForCausalLM

import depthlens as dl
from depthlens.ablations import Condition, expand
from depthlens.engine.engine import Engine
from depthlens.engine.work import Work
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks import harness
from depthlens.tasks.encoding import HFLM, quiet

BASE, COT = "smollm2-135m", "smollm2-135m-cot"
WORKS: dict[str, tuple[str, str, int | None, int, str, dict | None]] = {
    # model, task, worked examples, documents, what is removed, how answers are written
    "0-shot": (BASE, "capitals_continuation", 0, 16, "layers", None),
    "5-shot": (BASE, "capitals_continuation", 5, 16, "layers", None),
    "long contexts": (BASE, "plain_text_long_continuation", 0, 16, "layers", None),
    "generative 2-shot": (BASE, "capitals_generative", 2, 32, "layers", None),
    "chain of thought": (COT, "arithmetic_cot", None, 32, "layers", None),
    "256 written tokens": (BASE, "arithmetic_cot", 5, 32, "layers", {"max_gen_toks": 256, "until": []}),
    "heads": (BASE, "capitals_continuation", 5, 32, "heads", None),
}
SHAPES = {"llama-3.1-8b": ("llama", MODELS["LLaMA-3.1-8B"]), "qwen3-8b": ("qwen3", MODELS["Qwen3-8B"])}
BATCH_SIZES, TRIED, WRITING_BATCH = (8, 16, 64), 128, 32


@functools.cache
def load(name: str, device: str) -> dl.Lens:
    """A model, with random weights if it is one of `SHAPES`."""
    if name not in SHAPES:
        return dl.load(name, device=device)
    kind, of = SHAPES[name]
    sizes = {"hidden_size": of.d_model, "num_hidden_layers": of.n_layers, "intermediate_size": of.d_mlp}
    sizes |= {"num_attention_heads": of.n_heads, "num_key_value_heads": of.n_kv_heads, "head_dim": of.d_head}
    sizes |= {"vocab_size": of.n_vocabulary, "max_position_embeddings": 40960}
    torch.manual_seed(0)
    with torch.device(device):
        config = AutoConfig.for_model(kind, **sizes, tie_word_embeddings=False)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None  # texts are as long as they may be
    return dl.Lens(model, dl.load("smollm2-135m").tokenizer, name)


@contextmanager
def hooked(lens: dl.Lens, condition: Condition) -> Iterator[None]:
    """What a user's own hooks do: skip layers, or zero heads, for every row of any batch."""

    def skip(module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
        return args[0] if args else kwargs["hidden_states"]

    def zero(module: Any, args: tuple, head: int) -> tuple:
        z = args[0].clone()
        z[..., head * lens.dims.d_head : (head + 1) * lens.dims.d_head] = 0
        return (z,)

    handles = [
        lens.arch.o_proj[a.layer].register_forward_pre_hook(functools.partial(zero, head=a.index))
        if a.site == "head"
        else lens.arch.layers[a.layer].register_forward_hook(skip, with_kwargs=True)
        for a in condition.ablations
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def lm_eval(prepared: harness.Prepared, batch_size: int, n: int | None = None, **model: Any) -> list:
    """What lm-eval's ``hf`` model gives of the task's requests: log-likelihoods or texts."""
    with quiet():
        lm = HFLM(batch_size=batch_size, **model)
        if prepared.written:
            return lm.generate_until(prepared.task.instances[:n], disable_tqdm=True)
        return [nats for nats, _ in lm.loglikelihood(prepared.task.instances[:n], disable_tqdm=True)]


def peers(lens: dl.Lens, prepared: harness.Prepared) -> dict[str, Callable]:
    """What a user could run under one condition."""
    own = {"pretrained": lens.model, "tokenizer": lens.tokenizer}
    seconds = {n: timed(lambda n=n: lm_eval(prepared, n, TRIED, **own))[0] for n in BATCH_SIZES if not prepared.written}
    run = functools.partial(lm_eval, prepared, min(seconds, key=seconds.__getitem__, default=WRITING_BATCH))

    def hf(condition: Condition) -> list:
        with hooked(lens, condition):
            return run(**own)

    def checkpoint(condition: Condition) -> list:
        with tempfile.TemporaryDirectory() as folder:
            return run(pretrained=str(dl.export(lens, condition, folder).folder), dtype="float32", device="cpu")

    return {"hf": hf, "checkpoint": checkpoint}


def compared(ours: list[Any], theirs: list[Any]) -> str:
    """How far apart log-likelihoods are at most, or how many texts are equal."""
    if isinstance(theirs[0], str):
        return f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(ours)} texts"
    return f"{max(abs(a.logprob - b) for a, b in zip(ours, theirs, strict=True)):.1e} nats"


def measure(
    title: str,
    lens: dl.Lens,
    prepared: harness.Prepared,
    ablate: str,
    wanted: Sequence[str],
    repeats: int,
    n_conditions: int,
) -> None:
    """Print how the sweep compares with its peers, and what was computed in it."""
    conditions = expand(ablate, lens.dims)
    # spread over depth, the baseline left out
    sample = [conditions[(i + 1) * len(conditions) // (n_conditions + 1)] for i in range(n_conditions)]
    beside = {name: run for name, run in peers(lens, prepared).items() if name in wanted}

    def ours() -> tuple[list, Work]:
        engine = Engine(lens, progress=False)
        return prepared.run(engine, conditions), engine.work

    runs = {"ours": ours, **{name: lambda run=run: [run(c) for c in sample] for name, run in beside.items()}}
    seconds, found = alternating(runs, repeats)
    seconds[[*beside]] *= len(conditions) / len(sample)
    answers, work = found.pop("ours")
    mine = [answer for condition in sample for answer in answers[conditions.index(condition)]]
    same = {name: compared(mine, [answer for of in theirs for answer in of]) for name, theirs in found.items()}
    show(f"{title}: {len(prepared.docs)} documents, {len(conditions)} conditions", seconds, same=same)
    # lm-eval, too, reads a row once where continuations of one token follow it, as letters do
    read = {r.inputs for r in prepared.requests if isinstance(r, LoglikelihoodRequest)}
    alone = len(conditions) * sum(map(len, read)) or work.unshared_tokens
    tokens, mid = alone + work.written_tokens, seconds["ours"].median()
    flops = 2 * sum(p.numel() for p in lens.arch.layers[0].parameters()) * work.layer_tokens / mid
    memory = torch.cuda.max_memory_allocated() / 2**30 if lens.device.type == "cuda" else 0.0
    print(
        f"one by one {tokens * lens.dims.n_layers / work.layer_tokens:.1f} times as many tokens pass a layer: "
        f"{tokens / mid:,.0f} tokens/s; {flops / 1e12:,.2f} TFLOP/s, {memory:.1f} GiB on the GPU at most",
        flush=True,
    )


def main(
    work: str = ",".join(WORKS),
    task: str = "",
    num_fewshot: int = 0,
    model: str = "",
    documents: int = 0,
    peers: str = "hf",
    repeats: int = 3,
    conditions: int = 2,
    device: str = "cpu",
    profile: bool = False,
    write: str = "",
) -> None:
    """Print a table for each work, or for one task of lm-eval; or write a model."""
    if write:
        for part in (load(model, device).model, load(model, device).tokenizer):
            part.save_pretrained(write)
        return
    own = {task: (BASE, task, num_fewshot, 16, "layers", None)}
    print(f"{torch.get_num_threads()} threads; torch {torch.__version__}")
    chosen = own if task else {name: WORKS[name] for name in work.split(",")}
    for name, (usual, of, shots, n, ablate, gen_kwargs) in chosen.items():
        lens = load(model or usual, device)
        loaded = harness.load_tasks([of], num_fewshot=shots, gen_kwargs=gen_kwargs)
        prepared = harness.prepare(lens, loaded, limit=documents or n)[0]
        measure(name, lens, prepared, ablate, peers.split(","), repeats, conditions)
        if profile:
            with torch.profiler.profile() as run:
                prepared.run(Engine(lens, progress=False), expand(ablate, lens.dims))
            print(run.key_averages().table(sort_by="self_cpu_time_total", row_limit=15))


if __name__ == "__main__":
    typer.run(main)
