"""The only table of model classes that depthlens takes apart, and of where the parts of each are; no torch.

To add a family, add a row to ``FAMILIES``. Nothing here is trusted: `depthlens.models.architectures.bind` checks the
row against the real modules and their shapes when a model is loaded, so that a renamed module is an error and not a
wrong number.
"""

from __future__ import annotations

from dataclasses import dataclass

from depthlens.errors import UserError


@dataclass(frozen=True)
class Family:
    """Module paths, from the model for the first five and from a (pre-norm) layer for the rest.

    ``per_head`` and ``per_kv_head`` are projections of the attention whose output is one slice a query head, or a
    key/value head; a model has some of them. Whatever else its attention holds is shared by all heads.
    """

    embed: str = "model.embed_tokens"
    layers: str = "model.layers"
    rotary: str = "model.rotary_emb"
    final_norm: str = "model.norm"
    unembed: str = "lm_head"
    attn_norm: str = "input_layernorm"
    attn: str = "self_attn"
    o_proj: str = "self_attn.o_proj"
    mlp_norm: str = "post_attention_layernorm"
    mlp: str = "mlp"
    per_head: tuple[str, ...] = ("q_proj", "q_b_proj")
    per_kv_head: tuple[str, ...] = ("k_proj", "v_proj", "kv_b_proj")


LLAMA_LIKE = Family()

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": LLAMA_LIKE,
    "MistralForCausalLM": LLAMA_LIKE,
    "Qwen2ForCausalLM": LLAMA_LIKE,
    "Qwen3ForCausalLM": LLAMA_LIKE,
    "Qwen3MoeForCausalLM": LLAMA_LIKE,
    "DeepseekV2ForCausalLM": LLAMA_LIKE,
    "DeepseekV3ForCausalLM": LLAMA_LIKE,
}

# `general.architecture` of .gguf files that hold such a model
GGUF = ("llama", "mistral", "qwen2", "qwen3", "qwen3moe", "deepseek2")


def supported(class_name: str) -> Family:
    """The table's row for a model class.

    Raises:
        UserError: for a class that is not in the table.
    """
    if class_name not in FAMILIES:
        raise UserError(
            f"architecture {class_name} is not supported; supported: {', '.join(FAMILIES)}; "
            "add a row to FAMILIES in depthlens/models/families.py"
        )
    return FAMILIES[class_name]
