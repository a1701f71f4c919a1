"""Models with random weights and the exact shapes of the study's, in bfloat16: speed does not depend on weights.

``speed.py --model llama-3.1-8b`` takes them by name, and ``python benchmarks/shapes.py llama-3.1-8b FOLDER`` writes one
as a checkpoint for any command. The tokenizer is that of the embedded model. R1-Distill-Llama-8B has the shapes of
LLaMA-3.1-8B.
"""

from __future__ import annotations

import torch
import typer
from reproduction_costs import MODELS
from transformers import AutoConfig, AutoModelForCausalLM

import depthlens as dl

SHAPES = {"llama-3.1-8b": ("llama", MODELS["LLaMA-3.1-8B"]), "qwen3-8b": ("qwen3", MODELS["Qwen3-8B"])}


def random_model(name: str, device: str = "cpu") -> dl.Lens:
    """A model of these shapes with random weights."""
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


def main(name: str, folder: str) -> None:
    """Write a checkpoint."""
    lens = random_model(name)
    lens.model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
