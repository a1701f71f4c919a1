"""Hours on one H100 of every experiment of docs/reproduction.md, by estimate: nothing here was run.

    python benchmarks/reproduction_costs.py

Operations are those of Kaplan et al. 2020 (arXiv 2001.08361, section 2.1): 2 for each parameter of a layer that a token
passes, 4 for each pair of a head's query and key dimension, and the unembedding of every token of an answer. Where
answers are scored, a condition shares all layers below its removal; where they are written it shares nothing. Examples
are computed once a condition. Time is what the operations take at 40% of the peak. Writing
in small batches is bound by memory and not by operations, so that its hours are a lower bound.

Numbers of documents are those of the data sets. Tokens of GSM8K and of key-value pairs were measured with SmolLM2's
tokenizer, which has a token for each digit, as Qwen's has; LLaMA's has fewer. Those of MMLU, HellaSwag, OpenBookQA and
MathQA are assumptions, and so is how much an R1 model writes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

RATE = 0.4 * 989e12  # operations a second
THOUGHTS = 1500  # tokens that an R1 model writes on average, damaged ones included, of 4096 at most


@dataclass(frozen=True)
class Model:
    """Sizes from the model's config.json."""

    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_vocabulary: int

    def flops(self, passes: float, tokens: float, context: float, unembedded: float = 0.0) -> float:
        """Of tokens that pass so many layers and attend to so many others on average."""
        heads = self.d_head * (2 * self.n_heads + 2 * self.n_kv_heads)
        per_token = 2 * self.d_model * (heads + 3 * self.d_mlp) + 4 * self.n_heads * self.d_head * context
        return passes * tokens * per_token + 2 * self.d_model * self.n_vocabulary * unembedded


@dataclass(frozen=True)
class Task:
    """Tokens of a document (question, options or reference answer, written text), and of the examples, once."""

    n_docs: int
    question: int
    answers: int
    written: int = 0
    examples: int = 0


MODELS = {
    "LLaMA-3.1-8B": Model(32, 4096, 32, 8, 128, 14336, 128256),
    "Qwen3-8B": Model(36, 4096, 32, 8, 128, 12288, 151936),
    "DeepSeek-R1-Distill-Llama-8B": Model(32, 4096, 32, 8, 128, 14336, 128256),
    "DeepSeek-R1-Distill-Qwen-7B": Model(28, 3584, 28, 4, 128, 18944, 152064),
}
# not of the study; docs/scaling.md has their hours
LARGE = dict.fromkeys(("LLaMA-3.3-70B", "DeepSeek-R1-Distill-Llama-70B"), Model(80, 8192, 64, 8, 128, 28672, 128256))
MMLU = {"letters": Task(14042, 115, 4), "continuation": Task(14042, 70, 45), "written": Task(14042, 115, 2, 8)}
GSM8K = Task(1319, 67, 126, 150, 1000)
CHOICES = [Task(500, 14, 16), Task(500, 26, 16)]  # OpenBookQA, closed and open
HELLASWAG, MATHQA = Task(10042, 60, 100), Task(2985, 45, 20)
PAIRS = [Task(100, 634, 35, 35), Task(100, 5407, 35, 35), Task(100, 10031, 35, 35)]
MISCELLANEOUS = Task(200, 45, 20)  # of MMLU
SEEDS_AND_VIEWS = 9  # of the scorecard: three of each


def scored(model: Model, task: Task, per_layer: int = 1) -> float:
    """The options or reference answers under the baseline and some conditions of each layer."""
    n, tokens = model.n_layers, task.n_docs * (task.question + task.answers) + task.examples
    passes = n + per_layer * n * (n - 1) / 2
    context = task.examples + (task.question + task.answers) / 2
    return model.flops(passes, tokens, context, task.n_docs * task.answers * (1 + per_layer * n))


def written(model: Model, task: Task, n_conditions: int | None = None) -> float:
    """Texts under the baseline and each layer's removal, or so many conditions."""
    n = model.n_layers
    conditions = n + 1 if n_conditions is None else n_conditions
    tokens = task.n_docs * (task.question + task.written) + task.examples
    context = task.examples + (task.question + task.written) / 2
    return conditions * model.flops(n, tokens, context, task.n_docs * task.written)


def both(model: Model, task: Task) -> float:
    """Texts and reference answers under each layer's removal."""
    return written(model, task) + scored(model, task)


def scorecard(model: Model, *, pair: bool) -> float:
    """The sweeps of the claims, with a control and transplants where the model is one of a pair."""
    subjects = {name: replace(task, n_docs=57 * 90, examples=57 * 350) for name, task in MMLU.items()}
    solutions, copies = replace(GSM8K, n_docs=200), Task(200, 32, 27, 27, 300)
    once = scored(model, subjects["letters"]) + 2 * scored(model, subjects["continuation"])
    once += written(model, subjects["written"]) + written(model, solutions) + written(model, copies)
    control = SEEDS_AND_VIEWS * scored(model, subjects["continuation"]) + written(model, solutions, 3)
    return SEEDS_AND_VIEWS * once + (control if pair else 0.0)


def costs(name: str) -> dict[str, float]:
    """Hours by experiment on a model."""
    model, thinks = (MODELS | LARGE)[name], name.startswith("DeepSeek")
    n, heads, groups = model.n_layers, model.n_heads, model.n_kv_heads
    solutions = replace(GSM8K, n_docs=200, written=THOUGHTS, examples=0) if thinks else GSM8K
    few, retrieval = replace(GSM8K, n_docs=48), replace(PAIRS[1], n_docs=48)
    pair = [replace(GSM8K, n_docs=200), MISCELLANEOUS]
    effects = Task(128, 256, 0)
    ways = 2 * scored(model, MMLU["continuation"])
    flops = {
        "MMLU x 3 protocols": sum(scored(model, MMLU[p]) for p in ("letters", "continuation"))
        + written(model, MMLU["written"]) + ways,
        "HellaSwag": scored(model, HELLASWAG),
        "Key-value retrieval, 8, 75 and 140 pairs": sum(both(model, task) for task in PAIRS),
        "OpenBookQA, closed and open": sum(3 * scored(model, task) for task in CHOICES),
        "MathQA": scored(model, MATHQA),
        "GSM8K": both(model, solutions),
        "Heads on retrieval": scored(model, retrieval, heads),
        "Heads on reasoning": scored(model, few, heads),
        "KV groups on both": scored(model, retrieval, groups) + scored(model, few, groups),
        "Angular distance on C4": model.flops(n, 128 * 256, 128) + scored(model, effects, 2),
        "Layers transplanted": written(model, pair[0], n) + scored(model, pair[0]) + scored(model, pair[1]),
        "Layers transplanted cumulatively": written(model, pair[0], n // 2) + scored(model, pair[0]),
        "Heads transplanted": 3 * heads / n * scored(model, replace(GSM8K, n_docs=200)),
        "Depth shift": 2 * (both(model, pair[0]) + scored(model, pair[1])),
        "Claims C1 to C8": scorecard(model, pair=name == "DeepSeek-R1-Distill-Llama-8B"),
    }  # fmt: skip
    return {experiment: operations / RATE / 3600 for experiment, operations in flops.items()}


def shown(hours: float) -> str:
    """Hours with one digit; minutes below one hour."""
    return f"{hours:.1f} h" if hours >= 1 else f"{max(1, round(60 * hours))} min"


if __name__ == "__main__":
    for name in MODELS | LARGE:
        found = costs(name)
        print(name, *(f"  {experiment:42}{shown(hours):>8}" for experiment, hours in found.items()), sep="\n")
        print(f"  {'in all':42}{shown(sum(found.values())):>8}")
