"""Tiny random models built from configuration: no download, seeded, every family and head layout."""

import struct
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from depthlens.models.lens import Lens

VOCAB = 260  # 256 bytes and four special tokens


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, so that any text encodes and decodes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens(["<bos>", "<eos>", "<pad>", "<unk>"])
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    return PreTrainedTokenizerFast(tokenizer_object=raw, **special)


BASE = {
    **{"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    **{"bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258, "initializer_range": 0.2},  # every part matters
}
LATENT = {
    **{"num_key_value_heads": 4, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8},
    "v_head_dim": 12,  # not the query width, so that z has the value head width
    **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 2, "moe_intermediate_size": 16},
    **{"first_k_dense_replace": 1, "n_shared_experts": 1},
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 12}

FAMILIES = {
    "llama-mha": ("llama", {"num_key_value_heads": 4}),
    "llama-gqa": ("llama", {}),
    "llama-mqa": ("llama", {"num_key_value_heads": 1}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 12}),  # n_heads * d_head = 48, d_model = 32
    "qwen3-moe": ("qwen3_moe", MOE),
    "deepseek-v2": ("deepseek_v2", LATENT),
    "deepseek-v3": ("deepseek_v3", LATENT),
}


def model(family: str, **changes: object):
    """A seeded random model of a family, a few thousand parameters, float32."""
    kind, extra = FAMILIES[family]
    torch.manual_seed(sum(map(ord, family)))
    built = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(BASE | extra | changes)))
    assert sum(p.numel() for p in built.parameters()) < 300_000, "the tiny model is not tiny"
    built.generation_config.eos_token_id = 257
    return built.float().eval()


def save(folder: Path, of: str | Lens, **changes: object) -> Path:
    """The tiny model of a family, or a model that is there, and the tokenizer as a folder, as a user has one."""
    (model(of, **changes) if isinstance(of, str) else of.model).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def gguf_head(path: Path) -> Path:
    """The beginning of a .gguf file, as much as is read before transformers reads it."""
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 2) + b"llama.block_count" + b"\0" * 64)
    return path


def lens(family: str, **changes: object) -> Lens:
    """The tiny model as a depthlens handle."""
    return Lens(model(family, **changes), tokenizer(), f"tiny-{family}")
