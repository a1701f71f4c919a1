"""Tiny models as .gguf files, as llama.cpp's converter writes them in float32, with a tokenizer of bytes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import tiny
from torch import Tensor
from transformers import PreTrainedModel

ARCHITECTURES = {"llama": "llama", "qwen2": "qwen2", "gemma3_text": "gemma3", "starcoder2": "starcoder2"}


def write(
    path: Path, model: PreTrainedModel, *, without: str = "", beside: Mapping[str, Tensor] | None = None, **said: object
) -> Path:
    """Write a model.

    Args:
        path: The file.
        model: One of `ARCHITECTURES`.
        without: Name of a tensor that is left out.
        beside: Tensors that are written, too.
        said: ``architecture`` that the file names, and type of ``scaling`` of its rotary angles.
    """
    config = model.config
    architecture = ARCHITECTURES[config.model_type]
    out = gguf.GGUFWriter(str(path), str(said.get("architecture", architecture)))
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(getattr(config, "rms_norm_eps", 0))
    out.add_layer_norm_eps(getattr(config, "norm_epsilon", 0))
    out.add_rope_dimension_count(8)
    out.add_vocab_size(config.vocab_size)
    if architecture == "gemma3":
        out.add_key_length(config.head_dim)
        out.add_sliding_window(config.sliding_window)
    if "scaling" in said:
        out.add_rope_scaling_type(said["scaling"])
    (pieces if architecture == "gemma3" else merges)(out)
    kind = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        module, _, end = key.rpartition(".")
        name = f"{names.get_name(module)}.{end}"
        if name != without and not (key == "lm_head.weight" and config.tie_word_embeddings):
            out.add_tensor(name, converted(architecture, name, weight).contiguous().numpy())
    for name, weight in (beside or {}).items():
        out.add_tensor(name, weight.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def converted(architecture: str, name: str, weight: Tensor) -> Tensor:
    """A weight as llama.cpp has it: rotary halves side by side, or norms with the 1 that the model adds."""
    if architecture == "gemma3" and name.endswith("norm.weight"):
        return weight + 1
    if architecture == "llama" and ("attn_q." in name or "attn_k." in name):
        return weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).reshape(weight.shape)  # heads of 8
    return weight


def merges(out: gguf.GGUFWriter) -> None:
    """The tokenizer of `tiny`, byte pairs as GPT-2 has them."""
    vocab = tiny.tokenizer().get_vocab()
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    # BPE wants one merge, and the merged token in the place of <unk>
    out.add_token_list([*sorted(vocab, key=vocab.__getitem__)[:259], "zq"])
    out.add_token_types([1] * 256 + [3] * 3 + [1])
    out.add_token_merges(["z q"])
    out.add_bos_token_id(256)
    out.add_eos_token_id(257)


def pieces(out: gguf.GGUFWriter) -> None:
    """Bytes as SentencePiece has them."""
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    out.add_tokenizer_model("llama")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_scores([0.0] * len(tokens))
    out.add_token_types([3, 3, 3, 2] + [6] * 256)
    out.add_bos_token_id(2)
    out.add_eos_token_id(1)
    out.add_add_space_prefix(False)
