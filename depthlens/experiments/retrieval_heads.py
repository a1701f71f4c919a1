r"""Which heads copy from the context: by where they look, by what they write, and by what their removal costs.

While the model writes a needle that is in its context, a *detector* scores every head, token by token. A needle is
recalled where greedy decoding writes exactly the answer, so that one teacher-forced pass for each needle shows every
step. The score is the mean over the tokens of a needle, then over recalled needles.

**Loss on needle tokens**: what removing the head (zero ablation of its z) costs on these tokens, in nats per token,
exactly or estimated from gradients. The loss says whether the head matters, not what it does.

Limit: single removals miss heads that can replace each other; `depthlens.pair_sweep` finds pairs of those.

**Detectors.** For a needle whose answer has the tokens y_1 .. y_n, with a_h(i, j) the attention of head h from position
i to j:

* **copy-paste score** (Wu et al. 2024, arXiv 2404.15574), at each answer token: 1 where the top-1 attended position of
  the head is in the needle and holds the token that is being written, else 0;
* **query-to-gold attention** (QRHead, Zhang et al. 2025, arXiv 2506.09944), at each token i of the question: the
  attention mass on the gold sentence, ``sum over j in gold of a_h(i, j)``. It needs no answer token and no match;
* **write-aware score**, at each answer token y_t, written at position i: what the head adds to its logit directly, the
  mean logit of the vocabulary subtracted. With o_h(i) = W_O^h sum over j of a_h(i, j) v_h(j) the output of the head,
  g what the final norm multiplies by and s(i) its scale at i, which is held fixed (o_h centred first, where the norm
  does so),
  ``o_h(i) * s(i) g . (W_U[y_t] - mean over tokens of W_U)``.
  Over all heads, MLPs, biases and the embedding these add up to the logit itself;
* **write from the needle**: the part of the same sum whose j is in the gold sentence;
* **write contrast**: that part, less the rest of the sum times n / (i + 1 - n), where the gold sentence has n tokens
  (Logit-Contribution Scoring, LOCOS, Gema et al. 2026, arXiv 2607.01002). A head that writes the answer from
  everywhere alike scores 0.

Limits. The first two say where a head looks, not what it writes: a decoy scores as high as the head that answers. The
others count the direct path to the logits: what a head gives to later heads and MLPs is missing, and so is what the
final norm does with the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from depthlens import arguments
from depthlens.ablations import BASELINE, AnyHead
from depthlens.analysis.heads.scores import HeadScores
from depthlens.analysis.numbers.means import UNLIMITED
from depthlens.arguments import EvalOptions
from depthlens.engine.engine import Engine
from depthlens.errors import UserError
from depthlens.experiments import attention_patterns
from depthlens.experiments.attribution import EXACT, STEPS, address, losses, removed_alone
from depthlens.experiments.condition_runs import OF_CONDITIONS, OF_TASKS, engine_of, settled, task_options, tasks_record
from depthlens.experiments.texts import measured
from depthlens.models import quantised
from depthlens.models.architectures import wide, wide_type
from depthlens.models.lens import Lens, one_thread
from depthlens.models.placement import moved, place_of
from depthlens.requests import LoglikelihoodRequest
from depthlens.store.answer_cache import AnswerStore
from depthlens.tasks import needles as prompts
from depthlens.tasks.needles import Needle


class Detector(NamedTuple):
    """How a detector scores heads.

    Attributes:
        label: Its name in figures and sentences.
        unit: "" for shares from 0 to 1, or "logits".
        measure: Scores of one needle at each token that the detector looks at. Shape [token, n_layers, n_heads].
    """

    label: str
    unit: str
    measure: Callable[[Lens, Needle], np.ndarray]


def _copy_paste(lens: Lens, needle: Needle) -> Float[np.ndarray, "step n_layers n_heads"]:
    sequence = needle.request.inputs
    targets, tokens, places = (torch.tensor(x, device=lens.device) for x in (needle.targets, sequence, needle.places))

    def hits(pattern: Tensor) -> Tensor:
        top = pattern.argmax(-1)  # [n_heads, step]
        return torch.isin(top, places) & (tokens[top] == targets)

    return _of_patterns(lens, sequence, needle.asked, hits)


def _query_to_gold(lens: Lens, needle: Needle) -> Float[np.ndarray, "query n_layers n_heads"]:
    gold = torch.tensor(needle.gold, device=lens.device)
    return _of_patterns(lens, needle.request.inputs, needle.queries, lambda pattern: pattern[..., gold].sum(-1))


def _of_patterns(
    lens: Lens, sequence: Sequence[int], asked: Sequence[int], score: Callable[[Tensor], Tensor]
) -> Float[np.ndarray, "asked n_layers n_heads"]:
    """A score of every head at every asked position, from its pattern [n_heads, asked, pos]."""
    scores = np.zeros((len(asked), lens.dims.n_layers, lens.dims.n_heads))

    def see(layer: int, pattern: Tensor, _: Tensor) -> None:
        scores[:, layer] = score(pattern).double().cpu().numpy().T

    attention_patterns.read(lens, sequence, asked, see)
    return scores


def _writes(
    lens: Lens, needle: Needle, off: float | Float[Tensor, " step"]
) -> Float[np.ndarray, "step n_layers n_heads"]:
    """What every head adds to the logit of each token of the answer; what is read ``off`` the needle counts so much."""
    arch, dims = lens.arch, lens.dims
    counts = torch.ones(len(needle.steps), len(needle.request.inputs)) * torch.as_tensor(off).reshape(-1, 1)
    counts[:, needle.gold] = 1.0
    counts = counts.to(lens.device)
    added = torch.zeros(len(needle.steps), dims.n_layers, dims.n_heads, dtype=wide_type(lens.dtype))
    unembed, norm, place = arch.unembed.weight, arch.final_norm, place_of(arch.final_norm, lens.device)
    assert isinstance(unembed, Tensor)  # [d_vocab, d_model]
    with torch.no_grad():  # what the norm does to states, but for one number each: the same whatever its formula is
        probes = torch.tensor([[0, 0], [1, -1], [1, 1]], dtype=lens.dtype, device=place).repeat(1, dims.d_model // 2)
        bias, of_signs, of_ones = map(wide, norm(probes))
        centres = torch.allclose(of_ones, bias)  # as LayerNorm: a number that is added to all changes nothing
        gain = (of_signs - bias) * wide(probes[1])
    directions = wide(unembed[needle.targets]) - unembed.mean(0, dtype=wide_type(unembed.dtype))
    towards = moved(_centred(moved(directions, place) * gain, centres), lens.device)  # [step, d_model]

    def see(layer: int, pattern: Tensor, values: Tensor) -> None:
        read = (pattern * counts).unflatten(0, (len(values), -1)) @ wide(values[:, None])
        z = read.flatten(0, 1)  # [n_heads, step, d_head]
        weight = quantised.matrix(arch.o_proj[layer])
        columns = wide(moved(weight, z.device)).unflatten(1, (dims.n_heads, dims.d_head))
        along = torch.einsum("sm,mhd->hsd", towards, columns)  # the direction of the logits in each head's own space
        added[:, layer] = (z * along).sum(-1).T.cpu()

    with torch.no_grad():
        final = attention_patterns.read(lens, needle.request.inputs, needle.asked, see)
        final = moved(final, place)
        plain, normed = _centred(wide(final), centres) * gain, wide(norm(final)) - bias
        scale = (plain * normed).sum(-1) / plain.square().sum(-1)
    return (added * scale.cpu()[:, None, None]).double().numpy()


def _centred(states: Tensor, centres: bool) -> Tensor:
    return states - states.mean(-1, keepdim=True) if centres else states


def _write_contrast(lens: Lens, needle: Needle) -> Float[np.ndarray, "step n_layers n_heads"]:
    n = len(needle.gold)
    return _writes(lens, needle, -n / (torch.tensor(needle.asked) + 1 - n).clamp(min=1))


DETECTORS = {
    "copy_paste": Detector("copy-paste score", "", _copy_paste),
    "query_to_gold": Detector("query-to-gold attention", "", _query_to_gold),
    "write_aware": Detector("write-aware score", "logits", lambda lens, needle: _writes(lens, needle, 1.0)),
    "write_from_needle": Detector("write from the needle", "logits", lambda lens, needle: _writes(lens, needle, 0.0)),
    "write_contrast": Detector("write contrast", "logits", _write_contrast),
}
METHODS = (*DETECTORS, EXACT, *STEPS)


@one_thread
def retrieval_scores(
    lens: Lens,
    tasks: str | Sequence[str] | None = None,
    *,
    method: str = "copy_paste",
    heads: Sequence[AnyHead] | None = None,
    needles: Sequence[Needle] | None = None,
    only_recalled: bool = True,
    **options: Unpack[EvalOptions],
) -> HeadScores:
    """Score every head as a retrieval head: where it looks, what it writes, or what its removal costs.

    Args:
        lens: A loaded model.
        tasks: One lm-eval task or several whose answers are in their prompts; None: haystacks written for the purpose.
        method: ``copy_paste`` (copy-paste score, from 0 to 1), ``query_to_gold`` (attention from the question to the
            sentence with the answer, from 0 to 1), ``write_aware`` (what the head adds to the logit of the answer's
            tokens), ``write_from_needle`` (the part of that which it reads from the sentence with the answer),
            ``write_contrast`` (that part less what it reads from as many tokens elsewhere, on average), ``exact``
            (loss per needle token, in nats, when the head is removed), ``attribution`` (first-order estimate of that
            loss from one forward and one backward pass) or ``integrated_gradients`` (an estimate that costs more and
            holds behind a saturated softmax, see `depthlens.experiments.attribution`).
        heads: Heads to remove, with ``exact``; None for all. This takes long for long prompts, so that it is used to
            check the heads that an estimate ranks first.
        needles: Needles to use, such as those of `depthlens.tasks.written_needles` with other depths and lengths.
        only_recalled: Whether needles count only if the model recalls them. False: their answers are given to the
            model token by token, which says what its heads do then, and not how it would find an answer.
        options: `EvalOptions`: limit, num_fewshot and include_path of ``tasks``; seed of the haystacks, or of the
            choice of examples; batch_tokens, store, progress.

    Returns:
        Means over the needles that count; ``record["needles"]`` says how many are recalled of how many.

    Raises:
        UserError: anything asked for that does not exist, or only recalled needles count and there are none.

    Example:
        >>> copying = dl.retrieval_scores(lens, "organism_one_hop", limit=4)
        >>> copying.top(1)
        [L2.H1]
    """
    chosen = settled(options, without=OF_CONDITIONS)
    arguments.one_of(*METHODS)("method", method)
    removed = removed_alone(lens, heads, method)
    label = "needles"
    source: dict[str, Any]
    if needles is not None:
        source = {"given": len(needles)}
    elif tasks is not None:
        names = arguments.names("tasks", tasks, "kv_retrieval_4")
        needles = prompts.task_needles(lens, names, **task_options(chosen))
        label, source = " ".join([label, *names]), tasks_record(names, chosen)
    else:
        needles, source = prompts.written_needles(lens, seed=chosen["seed"]), {"seed": chosen["seed"]}
    answers = AnswerStore(chosen["store"], lens)
    engine = engine_of(lens, chosen, answers.entry(label))
    recalled = _recalled(engine, needles)
    if only_recalled and not recalled:
        fix = "give shorter contexts, more examples (num_fewshot) or a larger model, or only_recalled=False"
        raise UserError(f"{lens.name} recalls none of {len(needles)} needles: cannot judge its heads; {fix}")
    used = recalled if only_recalled else needles
    source["documents"] = [n.about["doc_hash"] for n in used if "doc_hash" in n.about]  # those that made the scores
    source["needles"] = {"asked": len(needles), "recalled": len(recalled), "only_recalled": only_recalled}
    if detector := DETECTORS.get(method):
        cases = [(n.request, n.targets, n.places, n.asked, n.gold, n.queries) for n in used]
        how: Any = {"cases": cases, "unit": "needle", "progress": chosen["progress"]}
        score, names = detector.measure, lens.dims.head_names
        values = measured(answers, label, f"{method} of needles", used, names, lambda n: score(lens, n).mean(0), **how)
        values = values.reshape(len(used), lens.dims.n_layers, lens.dims.n_heads)
        record = answers.record(method=method, **source)
        limits = UNLIMITED if detector.unit else (0.0, 1.0)  # a share of attention has no unit
        return HeadScores.of_cases(detector.label, detector.unit, values, record, tested=False, limits=limits)
    requests, entry = [_needle_tokens(n) for n in used], answers.entry(label, method=address(method))
    found, _ = losses(lens, requests, method, chosen, entry, heads=removed)
    name = "loss on needle tokens" + ("" if method == EXACT else f", by {method.replace('_', ' ')}")
    n_tokens = np.array([len(q.continuation) for q in requests])[:, None, None]
    record = answers.record(method=method, **source)
    return HeadScores.of_cases(name, "nats", found / n_tokens, record, tested=True, heads=removed)


def _needle_tokens(needle: Needle) -> LoglikelihoodRequest:
    """The needle's tokens alone, after everything before them; tokens between two of them count, too."""
    n = len(needle.request.context)
    tokens = (*needle.request.context, *needle.request.continuation)
    first, last = n + needle.steps[0], n + needle.steps[-1]
    return LoglikelihoodRequest(tokens[:first], tokens[first : last + 1])


@one_thread
def recalled_needles(lens: Lens, needles: Sequence[Needle], **options: Unpack[EvalOptions]) -> list[Needle]:
    """The needles whose answer greedy decoding writes token by token; none where the model recalls none.

    Args:
        lens: A loaded model.
        needles: From `depthlens.tasks.task_needles` or `depthlens.tasks.written_needles`.
        options: `EvalOptions`: batch_tokens, store, progress, and those of workers.

    Example:
        >>> recalled = dl.recalled_needles(lens, needles)
        >>> len(recalled), len(needles)
        (4, 4)
    """
    chosen = settled(options, without=(*OF_CONDITIONS, *OF_TASKS))
    return _recalled(engine_of(lens, chosen, AnswerStore(chosen["store"], lens).entry("needles")), needles)


def _recalled(engine: Engine, needles: Sequence[Needle]) -> list[Needle]:
    """See `recalled_needles`."""
    (answers,) = engine.loglikelihood([n.request for n in needles], [BASELINE], desc="recall")
    return [n for n, answer in zip(needles, answers, strict=True) if answer.is_greedy]
