"""Which classes of models may be tried, before any of their files but the configuration is read; no torch.

Every causal language model of transformers may. `depthlens.models.structure` finds its parts.
"""

from __future__ import annotations

from depthlens.errors import UserError


def known(class_name: str) -> None:
    """Let a class of transformers' causal language models pass.

    Raises:
        UserError: for any other name.
    """
    import transformers  # slow to import
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if class_name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise UserError(
            f"architecture {class_name} is not supported: transformers {transformers.__version__} has no causal "
            "language model of that name; give one that it has, such as LlamaForCausalLM"
        )
