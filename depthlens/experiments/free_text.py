"""Long-range coherence: what a model writes by itself when parts of it are removed (`depthlens.tasks.measures`)."""

from __future__ import annotations

from pathlib import Path
from typing import Unpack

from depthlens import arguments
from depthlens.analysis.results import Result
from depthlens.errors import UserError
from depthlens.experiments import text_sets
from depthlens.experiments.condition_runs import Ablate
from depthlens.experiments.options import EvalOptions, settled
from depthlens.experiments.sweep import condition_sweep
from depthlens.experiments.text_sets import Texts
from depthlens.models.lens import Lens, one_thread
from depthlens.tasks.measures import NAME, FreeText

# options of tasks, which free text does not have
WITHOUT = (
    *("limit", "samples", "num_fewshot", "include_path", "seed", "measure"),
    *("apply_chat_template", "system_instruction", "gen_kwargs", "think_end_token", "enable_thinking"),
)


@one_thread
def free_text(
    lens: Lens,
    ablate: Ablate = "layers",
    *,
    texts: Texts = None,
    n_prompts: int | None = 24,
    prompt_tokens: int = 32,
    max_new_tokens: int = 64,
    donor: str | Path | Lens | None = None,
    **options: Unpack[EvalOptions],
) -> Result:
    """Let a model continue plain texts under every condition; how much it repeats itself and how strange the text is.

    Args:
        lens: A loaded model.
        ablate: What to remove; see `depthlens.condition_sweep`.
        texts: Texts that begin the prompts, or the name of a set: ``embedded`` or ``c4``
            (`depthlens.experiments.text_sets`); None: the embedded ones.
        n_prompts: The first so many texts; None: all.
        prompt_tokens: So many tokens of a text are given, from its start on; all of a shorter one.
        max_new_tokens: Longest continuation, in tokens. Loops often begin late: 64 and more show them.
        donor: See `depthlens.condition_sweep`.
        options: backend, batch_tokens, store, progress.

    Returns:
        A result with the task ``free_text``, a document for each prompt, and the metrics ``repetition`` (share of
        4-grams that occurred before) and ``nats_per_token`` (log perplexity of what was written, under the whole
        model); lower is better for both. The texts are the responses.

    Raises:
        UserError: more tokens than the model reads, or anything that
            `depthlens.condition_sweep` refuses.
    """
    arguments.loaded(lens)
    settled(options, without=WITHOUT)
    prompt_tokens = arguments.whole("prompt_tokens", prompt_tokens, 1)
    max_new_tokens = arguments.whole("max_new_tokens", max_new_tokens, 1)
    if n_prompts is not None:
        n_prompts = arguments.whole("n_prompts", n_prompts, 2, fix=", or None for all")
    chosen = text_sets.chosen(text_sets.EMBEDDED if texts is None else texts, n_prompts)
    rows = [tuple(lens.tokenizer(text).input_ids[:prompt_tokens]) for text in chosen]
    if (both := prompt_tokens + max_new_tokens) > lens.max_length:
        fault = f"prompt_tokens {prompt_tokens} and max_new_tokens {max_new_tokens} are {both} tokens"
        raise UserError(f"{fault}; the model reads {lens.max_length} in all")
    view = FreeText(lens, rows, max_new_tokens)
    result = condition_sweep(lens, {NAME: view}, ablate, donor=donor, **options)
    settings = {"prompt_tokens": prompt_tokens, "max_new_tokens": max_new_tokens, "n_prompts": len(rows)}
    result.record[NAME] = {**settings, "texts": text_sets.named(texts)}
    return result
