"""Organisms in which few heads carry retrieval and few carry reasoning, or in which no few heads carry retrieval.

A list of heads can be told from random lists only where a layer has many heads, and where one of them alone is missed
little. An organism has four heads a layer, each of which a task needs, so that each is divided here (`widened`).
"""

import copy

from transformers import LlamaForCausalLM

import depthlens as dl

COPIES = 4  # of each head; a list holds as many
# tasks of the same prompts, answered by the retrieval head and by the output head of the two-hop circuit
TASKS = {"retrieval": "organism_one_hop_generative", "reasoning": "organism_two_hop_generative"}
N_DRAWS = 20  # the fewest with which p can be below 0.05
CHOOSE, TEST = "0:30", "30:140"  # documents; at least 100 test


def widened(lens: dl.Lens, copies: int = COPIES) -> dl.Lens:
    """The same model with each head divided into copies, each of which writes its share of what the head wrote.

    A copy has the query of its head, and shares its key and value.
    """
    dims, config = lens.dims, copy.deepcopy(lens.model.config)
    config.num_attention_heads = dims.n_heads * copies
    weights = lens.model.state_dict()
    for name, weight in weights.items():
        if name.endswith("q_proj.weight"):
            by_head = weight.unflatten(0, (dims.n_heads, 1, dims.d_head))  # [head, copy, d_head, d_model]
            weights[name] = by_head.expand(-1, copies, -1, -1).flatten(0, 2)
        elif name.endswith("o_proj.weight"):
            by_head = weight.unflatten(1, (dims.n_heads, 1, dims.d_head))  # [d_model, head, copy, d_head]
            weights[name] = by_head.expand(-1, -1, copies, -1).flatten(1, 3) / copies
    model = LlamaForCausalLM(config)
    model.load_state_dict(weights)
    return dl.Lens(model, lens.tokenizer, f"{lens.name} with {copies} copies of each head")


def evidence(*, true: bool, seed: int = 0, swapped: bool = False) -> dl.claims.Evidence:
    """What C5 takes: lists by attribution on some documents, removed on others, by setting heads to zero.

    Where the claim is false, a second head does what the retrieval head does, so that a list of one head's size is not
    missed.

    Args:
        true: Whether few heads carry both tasks.
        seed: Of the organism.
        swapped: Whether each list is said to belong to the task of the other.
    """
    lens = widened(dl.load(f"organism:seed={seed}" + ("" if true else ",backup"), device="cpu"))
    options = {"num_fewshot": 0, "progress": False}
    chosen = {"method": "attribution", "samples": CHOOSE} | options
    scores = {name: dl.retrieval_scores(lens, task, **chosen) for name, task in TASKS.items()}
    lists = {name: found.top(COPIES) for name, found in scores.items()}
    curves = dl.removal_curve(lens, [*TASKS.values()], lists, k=[COPIES], n_draws=N_DRAWS, samples=TEST, **options)
    own = dict(zip(TASKS, reversed(TASKS.values()), strict=True)) if swapped else TASKS
    return dl.claims.Evidence(heads=curves, head_tasks=own, head_scores=scores)
