"""Speed and memory of a layer sweep on a GPU, on models with the exact shapes of the study's, against the usual way.

Usage::

    python benchmarks/gpu.py [--shapes NAME]... [--work NAME]... [--repeats 3] [--conditions 2] [--device cuda]

Weights are random and in bfloat16, because speed does not depend on them; the tokenizer is that of the embedded model.
The peer is lm-eval's ``hf`` with a hook for each layer, at its best batch size, or Hugging Face ``generate``. It is
timed and compared as in ``speed.py``. For each work the script also prints tokens a second as a user counts them
(request by request, every condition), the operations a second of the layers' matrix products, and the highest memory
that torch held.

``--shapes tiny`` is there to try the script on any machine.
"""

from __future__ import annotations

import argparse
from typing import Any

import speed
import torch
from llama_8b_on_cpu import SHAPES as LLAMA_8B
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

import depthlens as dl
from depthlens.engine.work import Work
from depthlens.models.lens import Lens
from depthlens.tasks import harness

# from each model's config.json on the hub; R1-Distill-Llama-8B has the shapes of LLaMA-3.1-8B and other token ids
SHAPES: dict[str, PreTrainedConfig] = {
    "llama-3.1-8b": LlamaConfig(**LLAMA_8B),
    "qwen3-8b": Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        rope_theta=1000000.0,
        tie_word_embeddings=False,
    ),
    "deepseek-r1-llama-8b": LlamaConfig(**LLAMA_8B, bos_token_id=128000, eos_token_id=128001),
    "tiny": LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=49152,
        max_position_embeddings=32768,
    ),
}
# task, documents, worked examples, and how answers are written
WRITING = {"max_gen_toks": 256, "until": []}
WORKS: dict[str, tuple[str, int, int, dict[str, Any] | None]] = {
    "0-shot": ("capitals_continuation", 128, 0, None),
    "5-shot": ("capitals_continuation", 128, 5, None),
    "long contexts": ("kv_retrieval_uuid_75", 16, 0, None),
    "256 written tokens": ("arithmetic_cot", 32, 5, WRITING),
}
BATCH_SIZES = (8, 32, 64)
GIB = 1 << 30


def random_model(name: str, device: torch.device) -> Lens:
    """A model of these shapes with random weights."""
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None  # texts are as long as they may be
    return Lens(model, dl.load("smollm2-135m").tokenizer, name)


def described(lens: Lens, seconds: float, work: Work) -> str:
    """Tokens and operations a second, and memory of a sweep."""
    tokens = work.unshared_tokens + work.written_tokens
    parts = [f"{tokens / seconds:,.0f} tokens/s request by request ({work.written_tokens / seconds:,.0f} written)"]
    if lens.device.type == "cuda":
        layer = lens.arch.layers[0]
        flops = 2 * sum(p.numel() for p in layer.parameters()) * work.layer_tokens  # products with weights
        parts.append(f"{flops / seconds / 1e12:,.0f} TFLOP/s in the layers' matrix products")
        parts.append(f"{torch.cuda.max_memory_allocated(lens.device) / GIB:.1f} GiB at most")
    return ", ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", action="append", choices=SHAPES)
    parser.add_argument("--work", action="append", choices=WORKS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--conditions", type=int, default=2, help="conditions that the peer runs")
    parser.add_argument("--documents", type=int, help="documents of each work; its own number without")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name(device)}; torch {torch.__version__}, CUDA {torch.version.cuda}")
    for shapes in args.shapes or [name for name in SHAPES if name != "tiny"]:
        lens = random_model(shapes, device)
        print(f"\n{lens}", flush=True)
        for name in args.work or WORKS:
            task, n_docs, num_fewshot, gen_kwargs = WORKS[name]
            loaded = harness.load_tasks([task], num_fewshot=num_fewshot, gen_kwargs=gen_kwargs)
            prepared = harness.prepare(lens, loaded, limit=args.documents or n_docs)[0]
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            done = speed.measure(lens, name, prepared, ["hf"], args.repeats, args.conditions, BATCH_SIZES)
            print(f"  ours: {described(lens, *done)}", flush=True)
        del lens
        if device.type == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
