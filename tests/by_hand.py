"""What the library computes, written again by hand on the Hugging Face model."""

import numpy as np
import tiny
import torch
from torch.profiler import ProfilerActivity, profile

from depthlens.backends.row_edits import RowEdits
from depthlens.backends.torch import applied
from depthlens.requests import LoglikelihoodRequest
from depthlens.tasks.needles import Needle


def random_tokens(n, seed, alphabet=256):
    return tuple(torch.randint(0, alphabet, (n,), generator=torch.Generator().manual_seed(seed)).tolist())


def attentions(family, tokens, **changes):
    """Attention of every layer by the model's own eager kernel. Each of shape [n_heads, pos, pos]."""
    model = tiny.model(family, **changes)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        return [a[0] for a in model(torch.tensor([list(tokens)]), output_attentions=True).attentions]


def recorded(model, tokens, modules):
    """What modules (by name) read and gave in a pass of a model, [(arguments, output)], and the logits."""
    kept = {}

    def keep(name):
        return lambda module, args, out: kept.update({name: (args, out[0] if isinstance(out, tuple) else out)})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        logits = model(torch.tensor([list(tokens)]), use_cache=False).logits[0].double()
    for handle in handles:
        handle.remove()
    return kept, logits


def logprobs(lens, tokens, heads=(), fraction=1.0):
    """Log-probability of each token but the first, while z of some heads has gone a fraction of the way to 0."""
    d = lens.dims.d_head

    def move(head):
        def hook(module, args):
            z = args[0].clone()
            z[..., head * d : (head + 1) * d] *= 1 - fraction
            return (z,)

        return hook

    handles = [lens.arch.o_proj[layer].register_forward_pre_hook(move(head)) for layer, head in heads]
    with torch.no_grad():
        found = lens.model(torch.tensor([list(tokens)])).logits[0].double().log_softmax(-1)
    for handle in handles:
        handle.remove()
    return found[:-1].gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].numpy()


def scored(model, request):
    """Log-likelihood of a continuation by the model's own pass, and whether each of its tokens is the likeliest."""
    tokens, n = torch.tensor([[*request.context, *request.continuation]]), len(request.context)
    with torch.no_grad():
        logprobs = model(tokens, use_cache=False).logits[0].log_softmax(-1)[n - 1 : -1]
    asked = tokens[0, n:]
    return logprobs.gather(-1, asked[:, None]).sum().item(), bool((logprobs.argmax(-1) == asked).all())


def logprob(model, request):
    return scored(model, request)[0]


def written(lens, request, model=None):
    """What `generate` writes greedily to one prompt, by the lens's model or another one."""
    tokens, n = torch.tensor([request.context]), request.max_new_tokens
    options = {"attention_mask": torch.ones_like(tokens), "max_new_tokens": n, "do_sample": False, "pad_token_id": 258}
    new = (model or lens.model).generate(tokens, **options)[0, len(request.context) :]
    return lens.tokenizer.decode(new, skip_special_tokens=True)


def made_needles():
    """Two needles among random tokens: one with its sentence and question, one without."""
    made = []
    for seed, sentence in ((0, range(5, 30)), (1, ())):
        tokens = random_tokens(45, seed)
        question = tuple(range(32, 38)) if sentence else ()
        needle = Needle(LoglikelihoodRequest(tokens[:40], tokens[40:]), (0, 2, 3), (7, 8, 9))
        made.append(Needle(needle.request, needle.steps, needle.places, {}, tuple(sentence), question))
    return made


def peak_bytes(work):
    """Most memory that torch holds on the CPU while something is done, by its profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorder:
        work()
    events = sorted(recorder.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    return np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max()


def under(lens, conditions, means=None, position_ids=None):
    """A context in which row i of every batch runs under condition i; a single one serves all."""
    return applied(RowEdits(conditions, lens, means, position_ids))


def patched(monkeypatch, module, forward):
    """Have a module compute otherwise by way of its class, so that nothing foreign is on the model."""
    kind, own = type(module), type(module).forward

    def call(self, *args, **kwargs):
        return forward(*args, **kwargs) if self is module else own(self, *args, **kwargs)

    monkeypatch.setattr(kind, "forward", call)
    return lambda *args, **kwargs: own(module, *args, **kwargs)
