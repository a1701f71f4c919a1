"""Tiny models as .gguf files, as llama.cpp's converter writes them in float32, with a tokenizer of bytes."""

from pathlib import Path

import gguf
import tiny
from torch import Tensor
from transformers import PreTrainedModel

CHAT = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


# of a file, and of the configuration
FIELDS = {"context_length": "max_position_embeddings", "embedding_length": "hidden_size", "vocab_size": "vocab_size"}
FIELDS |= {"block_count": "num_hidden_layers", "feed_forward_length": "intermediate_size"}
FIELDS |= {"head_count": "num_attention_heads", "head_count_kv": "num_key_value_heads"}
FIELDS |= {"layer_norm_rms_eps": "rms_norm_eps"}


def write(path: Path, model: PreTrainedModel, *, without="", beside=None, architecture="llama", file_type=None) -> Path:
    """Write a model.

    Args:
        path: The file.
        model: Of LLaMA's class.
        without: Name of a tensor that is left out.
        beside: Tensors that are written, too.
        architecture: That the file names.
        file_type: Of most of its weights, as it says.
    """
    config = model.config
    out = gguf.GGUFWriter(str(path), architecture)
    about = {name: getattr(config, field) for name, field in FIELDS.items()} | {"rope_dimension_count": 8}
    for name, value in (about if file_type is None else about | {"file_type": file_type}).items():
        getattr(out, f"add_{name}")(value)
    merges(out)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for key, weight in model.state_dict().items():
        module, _, end = key.rpartition(".")
        name = f"{names.get_name(module)}.{end}"
        if name != without and not (key == "lm_head.weight" and config.tie_word_embeddings):
            out.add_tensor(name, converted(name, weight).contiguous().numpy())
    for name, weight in (beside or {}).items():
        out.add_tensor(name, weight.numpy())
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def converted(name: str, weight: Tensor) -> Tensor:
    """A weight as llama.cpp has it: rotary halves side by side."""
    if "attn_q." in name or "attn_k." in name:
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
    out.add_chat_template(CHAT)
