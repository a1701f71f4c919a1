"""The models that have a short name, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """One row of the table of named models."""

    alias: str
    source: str
    family: str
    size: str
    role: str


NAMED = (
    Named("smollm2-135m", "embedded", "LLaMA", "135M", "embedded real model; needs no hub"),
    Named("smollm2-135m-direct", "adapter", "LLaMA", "135M", "embedded; trained to answer word problems at once"),
    Named("smollm2-135m-cot", "adapter", "LLaMA", "135M", "embedded; its twin, trained to write the steps"),
    Named("organism", "built", "LLaMA", "3M", "planted circuits; organism:seed=3,decoy,backup for options"),
    Named("llama-3.1-8b", "meta-llama/Llama-3.1-8B", "LLaMA", "8B", "study; base of the pair below"),
    Named("llama-3.1-8b-instruct", "meta-llama/Llama-3.1-8B-Instruct", "LLaMA", "8B", "control of the pair below"),
    Named("deepseek-r1-llama-8b", "deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "LLaMA", "8B", "study; distilled"),
    Named("qwen3-8b", "Qwen/Qwen3-8B", "Qwen3", "8B", "study"),
    Named("qwen3-8b-base", "Qwen/Qwen3-8B-Base", "Qwen3", "8B", "study; base of the pair below"),
    Named("deepseek-r1-qwen3-8b", "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B", "Qwen3", "8B", "study; distilled"),
    Named("qwen2.5-math-1.5b", "Qwen/Qwen2.5-Math-1.5B", "Qwen2", "1.5B", "study; base of the pair below"),
    Named("deepseek-r1-qwen-1.5b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Qwen2", "1.5B", "study; distilled"),
    Named("qwen2.5-math-7b", "Qwen/Qwen2.5-Math-7B", "Qwen2", "7B", "study; base of the pair below"),
    Named("deepseek-r1-qwen-7b", "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "Qwen2", "7B", "study; distilled"),
    Named(
        "llama-3.3-70b-instruct", "meta-llama/Llama-3.3-70B-Instruct", "LLaMA", "70B", "study; base of the pair below"
    ),
    Named("deepseek-r1-llama-70b", "deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "LLaMA", "70B", "study; distilled"),
)


def table() -> list[dict[str, str]]:
    """Named models as rows, for ``depthlens models``."""
    return [vars(n).copy() for n in NAMED]
