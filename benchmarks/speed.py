"""Speed of a layer sweep against what a user could run instead: same documents, one process, alternating, medians.

Usage::

    python benchmarks/speed.py [--work NAME]... [--peer NAME]... [--repeats 3] [--conditions 2] [--documents N]

Peers
    hf          lm-eval's ``hf`` model (likelihood) or Hugging Face ``generate`` at batch 32, a skip hook per layer
    checkpoint  the authors' way: delete the layer, save a checkpoint, load it, run lm-eval's ``hf`` on it
    bridge      a plain TransformerLens loop: ``run_with_hooks`` on the same batches
    nnsight     a plain nnsight loop: ``layer.skip`` inside a trace on the same batches

A peer pays the same for every condition, so it is timed on ``--conditions`` of them and scaled to all; ours runs all.
Scores of both sides are compared by document on the conditions that the peer ran. MMLU and GSM8K items are read
from ``../shared/data``; works that need them are left out where it is absent.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

import depthlens as dl
from depthlens.ablations import Condition, expand
from depthlens.backends.torch import TorchBackend
from depthlens.engine import prefix_tree
from depthlens.engine.engine import Engine
from depthlens.engine.work import Work
from depthlens.engine.writer import cut
from depthlens.tasks import encoding, harness

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
HF_BATCH_SIZES = (8, 16)
GENERATE_BATCH = 32
NEAR_TIE = 1e-3  # a difference of the top two logits below which two kernels may choose differently


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def local_task(folder: Path, name: str, test: list[dict], fewshot: list[dict], **config: Any) -> None:
    """Write one lm-eval task of local documents."""
    for split, docs in (("test", test), ("train", fewshot)):
        (folder / f"{name}_{split}.jsonl").write_text("\n".join(map(json.dumps, docs)))
    files = {s: str(folder / f"{name}_{s}.jsonl") for s in ("test", "train")}
    body = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "test_split": "test",
        "fewshot_split": "train",
        "fewshot_config": {"sampler": "first_n"},
        "metadata": {"version": 1.0},
        **config,
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(body))


def write_tasks(folder: Path) -> None:
    """MMLU continuation, multiple choice over long passages, and GSM8K, of items in ``../shared/data``."""
    mmlu, gsm = SHARED / "mmlu", SHARED / "gsm8k"
    choice = {
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    text = "Question: {{question.strip()}}\nAnswer:"
    for subject, shots in (("high_school_mathematics", 0), ("high_school_geography", 0), ("high_school_geography", 5)):
        test, dev = read(mmlu / f"{subject}_test.jsonl"), read(mmlu / f"{subject}_dev.jsonl")
        name = f"mmlu_{subject.rpartition('_')[2]}_{shots}shot"
        local_task(folder, name, test, dev, doc_to_text=text, num_fewshot=shots, **choice)
    stories = read(gsm / "test.jsonl")
    long = [
        {**doc, "passage": " ".join(s["question"] + " " + s["answer"] for s in stories[3 * i : 3 * i + 3])}
        for i, doc in enumerate(test)
    ]
    text = "{{passage}}\n\nQuestion: {{question.strip()}}\nAnswer:"
    local_task(folder, "long_contexts", long, long[-1:], doc_to_text=text, num_fewshot=0, **choice)
    local_task(
        folder,
        "gsm8k_5shot",
        stories,
        read(gsm / "train.jsonl"),
        output_type="generate_until",
        doc_to_text="Question: {{question}}\nAnswer:",
        doc_to_target="{{answer}}",
        num_fewshot=5,
        generation_kwargs={"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "max_gen_toks": 64},
        metric_list=[{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    )


BASE, COT = "smollm2-135m", "smollm2-135m-cot"
WORKS = {  # name: (model, task, documents, few-shot override)
    "mmlu-mathematics-0shot": (BASE, "mmlu_mathematics_0shot", 16, None),
    "mmlu-geography-0shot": (BASE, "mmlu_geography_0shot", 16, None),
    "mmlu-geography-5shot": (BASE, "mmlu_geography_5shot", 16, None),
    "long-contexts": (BASE, "long_contexts", 16, None),
    "capitals-generative-2shot": (BASE, "capitals_generative", 32, 2),
    "gsm8k-5shot-64": (BASE, "gsm8k_5shot", 32, None),
    "arithmetic-cot": (COT, "arithmetic_cot", 32, None),
}
EMBEDDED = ("capitals_generative", "arithmetic_cot")  # tasks
load = functools.cache(dl.load)
PEERS = ("hf", "checkpoint", "bridge", "nnsight")


def skip_layer(lens: Any, condition: Condition) -> Any:
    """The hook of a user who removes one layer; nothing for the baseline."""
    return TorchBackend(lens).ablate([condition])


class Likelihoods:
    """Peers on log-likelihood requests; each returns one log-likelihood a request."""

    def __init__(self, lens: Any, prepared: harness.Prepared, batch_sizes: Sequence[int] = HF_BATCH_SIZES) -> None:
        self.lens, self.prepared = lens, prepared
        self.hf = encoding.HFLM(pretrained=lens.model, tokenizer=lens.tokenizer, batch_size=batch_sizes[0])
        self.batch_size = min(batch_sizes, key=lambda n: timed(lambda: self._hf(self.hf, n, 2 * n))[0])

    def _hf(self, lm: Any, batch_size: int, limit: int | None = None) -> list[float]:
        lm.batch_size_per_gpu = batch_size
        with encoding.quiet():
            return [ll for ll, _ in lm.loglikelihood(self.prepared.task.instances[:limit], disable_tqdm=True)]

    def run_hf(self, condition: Condition) -> list[float]:
        with one_for_all(self.lens, condition):
            return self._hf(self.hf, self.batch_size)

    def run_checkpoint(self, condition: Condition) -> list[float]:
        with tempfile.TemporaryDirectory() as folder:
            model = copy.deepcopy(self.lens.model)
            for a in condition.ablations:
                del model.model.layers[a.layer]
                model.config.num_hidden_layers -= 1
            model.save_pretrained(folder)
            self.lens.tokenizer.save_pretrained(folder)
            with encoding.quiet():
                lm = encoding.HFLM(pretrained=folder, dtype="float32", device="cpu")
            return self._hf(lm, self.batch_size)

    def _batches(self, run: Callable[[torch.Tensor], torch.Tensor]) -> list[float]:
        """Log-likelihoods from whole-batch logits, requests sorted by length, at the batch size of ``hf``."""
        requests = self.prepared.requests
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].context) - len(requests[i].continuation))
        found = [0.0] * len(requests)
        for start in range(0, len(order), self.batch_size):
            picked = order[start : start + self.batch_size]
            rows = [(*requests[i].context, *requests[i].continuation)[:-1] for i in picked]
            tokens = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long)
            for r, row in enumerate(rows):
                tokens[r, : len(row)] = torch.tensor(row)
            logprobs = run(tokens.to(self.lens.device)).float().log_softmax(-1).cpu()
            for r, i in enumerate(picked):
                n = len(requests[i].context)
                wanted = torch.tensor(requests[i].continuation)
                found[i] = float(logprobs[r, n - 1 : n - 1 + len(wanted)].gather(-1, wanted[:, None]).sum())
        return found

    def run_bridge(self, condition: Condition) -> list[float]:
        if not hasattr(self, "bridge"):
            from transformer_lens.model_bridge import TransformerBridge

            name = tempfile.mkdtemp()
            self.lens.model.config.save_pretrained(name)
            self.bridge = TransformerBridge.boot_transformers(
                name, hf_model=copy.deepcopy(self.lens.model), tokenizer=self.lens.tokenizer, device="cpu"
            )
        kept: dict[str, torch.Tensor] = {}

        def keep(value: torch.Tensor, hook: Any) -> None:
            kept["resid_pre"] = value

        def skip(value: torch.Tensor, hook: Any) -> torch.Tensor:
            return kept["resid_pre"]

        hooks = [h for a in condition.ablations for h in block_hooks(a.layer, keep, skip)]
        with torch.no_grad():
            return self._batches(lambda tokens: self.bridge.run_with_hooks(tokens, fwd_hooks=hooks))

    def run_nnsight(self, condition: Condition) -> list[float]:
        if not hasattr(self, "traced"):
            from nnsight import LanguageModel

            self.traced = LanguageModel(copy.deepcopy(self.lens.model), tokenizer=self.lens.tokenizer)
        layers = [a.layer for a in condition.ablations]

        def run(tokens: torch.Tensor) -> torch.Tensor:
            model = self.traced
            with torch.no_grad(), model.trace(tokens):
                for i in layers:
                    model.model.layers[i].skip(model.model.layers[i].input)
                logits = model.lm_head.output.save()
            return logits

        return self._batches(run)

    def compare(self, mine: list[Any], peer: list[float]) -> str:
        """Largest difference, and documents whose likeliest option differs."""
        worst = max(abs(a.logprob - b) for a, b in zip(mine, peer, strict=True))
        by_doc: dict[int, list[int]] = {}
        for i, instance in enumerate(self.prepared.task.instances):
            by_doc.setdefault(instance.doc_id, []).append(i)
        differ = 0
        for options in by_doc.values():
            differ += max(options, key=lambda i: mine[i].logprob) != max(options, key=lambda i: peer[i])
        return f"max difference {worst:.1e} nats, {differ} of {len(by_doc)} predictions differ"


def block_hooks(layer: int, keep: Callable, skip: Callable) -> list[tuple[str, Callable]]:
    return [(f"blocks.{layer}.hook_in", keep), (f"blocks.{layer}.hook_out", skip)]


class Texts:
    """Hugging Face ``generate`` in batches of 32 under a skip hook."""

    def __init__(self, lens: Any, prepared: harness.Prepared, batch_sizes: Sequence[int] = ()) -> None:
        self.lens, self.prepared, self.batch_size = lens, prepared, GENERATE_BATCH

    def run_hf(self, condition: Condition) -> list[str]:
        lens, requests = self.lens, self.prepared.requests
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].context))
        found = [""] * len(requests)
        for start in range(0, len(order), GENERATE_BATCH):
            picked = [requests[i] for i in order[start : start + GENERATE_BATCH]]
            width = max(len(q.context) for q in picked)
            tokens = torch.full((len(picked), width), lens.tokenizer.pad_token_id)
            mask = torch.zeros_like(tokens)
            for r, q in enumerate(picked):
                tokens[r, width - len(q.context) :] = torch.tensor(q.context)
                mask[r, width - len(q.context) :] = 1
            with one_for_all(lens, condition):
                out = lens.model.generate(
                    tokens.to(lens.device),
                    attention_mask=mask.to(lens.device),
                    do_sample=False,
                    max_new_tokens=picked[0].max_new_tokens,
                    stop_strings=list(picked[0].until) or None,
                    tokenizer=lens.tokenizer,
                    pad_token_id=lens.tokenizer.pad_token_id,
                )
            for i, row in zip(order[start : start + GENERATE_BATCH], out[:, width:], strict=True):
                found[i] = cut(lens.tokenizer.decode(row, skip_special_tokens=True), requests[i].until)
        return found

    def compare(self, mine: list[str], peer: list[str]) -> str:
        same = sum(a == b for a, b in zip(mine, peer, strict=True))
        return f"{same} of {len(peer)} texts identical"


class one_for_all:  # noqa: N801 - reads as a phrase
    """Skip a layer for every row of any batch: what a user's own hook does."""

    def __init__(self, lens: Any, condition: Condition) -> None:
        self.lens, self.condition = lens, condition

    def __enter__(self) -> None:
        def skip(module: Any, args: tuple, kwargs: dict, output: Any) -> Any:
            return args[0] if args else kwargs["hidden_states"]

        layers = [self.lens.arch.layers[a.layer] for a in self.condition.ablations]
        self.handles = [layer.register_forward_hook(skip, with_kwargs=True) for layer in layers]

    def __exit__(self, *error: object) -> None:
        for handle in self.handles:
            handle.remove()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    value = run()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, value


def matmul_rate(lens: Any) -> float:
    """GFLOP/s of the device on a product of the shape of the model's MLP."""
    w = next(p for p in lens.arch.mlp[0].parameters() if p.dim() == 2).detach()
    x = torch.randn(2048, w.shape[1], device=lens.device).to(w)
    seconds = [timed(lambda: [torch.nn.functional.linear(x, w) for _ in range(40)])[0] for _ in range(3)]
    return 40 * 2 * len(x) * w.numel() / statistics.median(seconds) / 1e9


def gflop(lens: Any, prepared: harness.Prepared, n_conditions: int) -> tuple[float, float]:
    """Matrix products of a layer sweep (attention scores left out): shared as far as can be, and request by request."""
    inputs = [(*q.context, *q.continuation)[:-1] for q in prepared.requests]
    per_layer = sum(p.numel() for p in lens.arch.layers[0].parameters() if p.dim() == 2)
    keys = lens.arch.attn[-1].k_proj.weight.numel() + lens.arch.attn[-1].v_proj.weight.numel()
    per_logits, n = lens.arch.unembed.weight.numel(), lens.dims.n_layers
    tokens = asked = 0
    for pack in prefix_tree.pack(inputs, 1 << 40):
        tokens += pack.n_tokens
        spans = zip(pack.sequences, pack.paths, strict=True)
        asked += len({i for r, path in spans for i in path[len(prepared.requests[r].context) - 1 :]})
    # the clean row passes all layers, the row without layer l those above it; the last layer owes all tokens their
    # keys and values, but the rest only to the positions asked for
    below, last = n - 1 + sum(n - 2 - layer for layer in range(n - 1)), n_conditions - 1
    shared = below * tokens * per_layer + last * (tokens * keys + asked * (per_layer - keys))
    shared += n_conditions * asked * per_logits
    alone = n_conditions * sum(map(len, inputs)) * (n * per_layer + per_logits)
    return 2 * shared / 1e9, 2 * alone / 1e9


def prepared_work(name: str, n_docs: int | None) -> tuple[Any, harness.Prepared] | None:
    """The model of a work and its requests."""
    model, task, documents, num_fewshot = WORKS[name]
    lens = load(model)
    with tempfile.TemporaryDirectory() as folder:
        if SHARED.is_dir():
            write_tasks(Path(folder))
        elif task not in EMBEDDED:
            print(f"{name}: left out, {SHARED} is absent")
            return None
        loaded = harness.load_tasks([task], include_path=folder, num_fewshot=num_fewshot)
        return lens, harness.prepare(lens, loaded, limit=n_docs or documents)[0]


def measure(
    lens: Any,
    name: str,
    prepared: harness.Prepared,
    peers: Sequence[str],
    repeats: int,
    n_conditions: int,
    batch_sizes: Sequence[int] = HF_BATCH_SIZES,
) -> tuple[float, Work]:
    """Print how the sweep compares with its peers; returns the median of our seconds, and what was computed in them."""
    conditions = expand("layers", lens.dims)
    likelihood = prepared.output_type != "generate_until"
    side = (Likelihoods if likelihood else Texts)(lens, prepared, batch_sizes)
    peers = [p for p in peers if hasattr(side, f"run_{p}")]
    # spread over depth, the baseline left out
    sample = [conditions[1 + (i + 1) * lens.dims.n_layers // (n_conditions + 1)] for i in range(n_conditions)]
    ours: list[float] = []
    theirs: dict[str, list[float]] = {p: [] for p in peers}
    rates: list[float] = []
    notes: dict[str, str] = {}
    for _ in range(repeats):
        rates.append(matmul_rate(lens))
        engine = Engine(lens, progress=False)
        seconds, answers = timed(lambda engine=engine: prepared.run(engine, conditions))
        ours.append(seconds)
        for peer in peers:
            seconds, found = timed(lambda peer=peer: [getattr(side, f"run_{peer}")(c) for c in sample])
            theirs[peer].append(seconds / len(sample) * len(conditions))
            mine = [x for c in sample for x in answers[conditions.index(c)]]
            flat = [x for row in found for x in row]
            notes[peer] = side.compare(mine[: len(flat) // len(sample)], found[0])
    mid = statistics.median(ours)
    print(f"\n{name}: {len(prepared.docs)} documents, {len(conditions)} conditions; ours {mid:.1f} s {spread(ours)}")
    if likelihood:
        need, alone = gflop(lens, prepared, len(conditions))
        rate = statistics.median(rates)
        share = f"{need / mid:.0f} GFLOP/s = {need / mid / rate:.2f} of the {rate:.0f} of a matmul"
        print(f"  needed {need:.0f} GFLOP, done at {share}; request by request {alone / need:.1f} times as many")
    else:
        work = engine.work
        alone = (work.unshared_tokens + work.written_tokens) * lens.dims.n_layers
        print(
            f"  {work.layer_tokens:.3g} passes of a token through a layer, {work.written_tokens} tokens are written; "
            f"text by text {alone / work.layer_tokens:.1f} times as many passes"
        )
    for peer in peers:
        ratio = statistics.median(t / o for t, o in zip(theirs[peer], ours, strict=True))
        batch = f", batch {side.batch_size}"
        print(f"  against {peer}{batch}: {ratio:.1f}x {spread(theirs[peer])}; {notes[peer]}", flush=True)
    return mid, engine.work


def spread(values: list[float]) -> str:
    return f"({min(values):.1f}-{max(values):.1f} s)"


def linear(lens: Any) -> None:
    """Time over a 16-fold range of documents and of conditions."""
    loaded = harness.load_tasks(["capitals_continuation"])
    everything = expand("layers", lens.dims)
    for n_docs in (8, 32, 128):
        prepared = harness.prepare(lens, loaded, limit=n_docs)[0]
        seconds, _ = timed(lambda p=prepared: p.run(Engine(lens, progress=False), everything))
        print(f"documents {n_docs}: {seconds:.1f} s, {seconds / n_docs:.3f} s each")
    prepared = harness.prepare(lens, loaded, limit=16)[0]
    heads = expand("heads", lens.dims)[1:]
    for n in (16, 64, 256):
        picked = heads[:: len(heads) // n][:n]
        seconds, _ = timed(lambda c=picked: prepared.run(Engine(lens, progress=False), c))
        print(f"conditions {n}: {seconds:.1f} s, {seconds / n:.3f} s each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", action="append", choices=WORKS)
    parser.add_argument("--peer", action="append", choices=PEERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--conditions", type=int, default=2, help="conditions that a peer runs")
    parser.add_argument("--documents", type=int, help="documents of each work; its own number without")
    parser.add_argument("--linear", action="store_true", help="time over a 16-fold range instead")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads; torch {torch.__version__}")
    if args.linear:
        linear(load(BASE))
        return
    for name in args.work or WORKS:
        if work := prepared_work(name, args.documents):
            lens, prepared = work
            measure(lens, name, prepared, args.peer or PEERS, args.repeats, args.conditions)


if __name__ == "__main__":
    main()
