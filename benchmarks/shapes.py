"""Models with random weights and the exact shapes of the study's, in bfloat16: speed does not depend on weights.

``speed.py --model llama-3.1-8b`` takes them by name, and ``python benchmarks/shapes.py llama-3.1-8b FOLDER`` writes one
as a checkpoint for any command. The tokenizer is that of the embedded model.
"""

from __future__ import annotations

import torch
import typer
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3Config

import depthlens as dl

# from each model's config.json on the hub; R1-Distill-Llama-8B has the shapes of LLaMA-3.1-8B
ROPE = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
HEADS = {"hidden_size": 4096, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}
SHAPES: dict[str, PreTrainedConfig] = {
    "llama-3.1-8b": LlamaConfig(
        **HEADS,
        **{"num_hidden_layers": 32, "intermediate_size": 14336},
        **{"vocab_size": 128256, "max_position_embeddings": 131072},
        rope_parameters={**ROPE, "original_max_position_embeddings": 8192},
    ),
    "qwen3-8b": Qwen3Config(
        **HEADS,
        **{"num_hidden_layers": 36, "intermediate_size": 12288, "head_dim": 128},
        **{"vocab_size": 151936, "max_position_embeddings": 40960},
    ),
}


def random_model(name: str, device: str = "cpu") -> dl.Lens:
    """A model of these shapes with random weights."""
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(SHAPES[name], dtype=torch.bfloat16)
    model.generation_config.eos_token_id = None  # texts are as long as they may be
    return dl.Lens(model, dl.load("smollm2-135m").tokenizer, name)


def main(name: str, folder: str) -> None:
    """Write a checkpoint."""
    lens = random_model(name)
    lens.model.save_pretrained(folder)
    lens.tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    typer.run(main)
