"""A model under conditions in plain torch and transformers: a copy of it whose forward methods obey them.

Conditions are in force in the order in which they were entered. Hooks that the copied model has stay, and come before
what a condition does around them. The noise is drawn and scaled here again.
"""

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import depthlens as dl

NEAR_TIE = 1e-3  # nats between the two likeliest tokens below which rounding decides what is written
OWN: dict[str, Any] = {}  # functions of modes of one's own, by name
PATHS = {"": "", "norm": "input_layernorm", "attn": "self_attn", "mlp": "mlp"}
PATHS |= {"q": "self_attn.q_proj", "o": "self_attn.o_proj", "down": "mlp.down_proj"}  # of a layer's parts


def module(model: nn.Module, name: str) -> Any:
    """A part by its short name: "" (the whole model), model, embed, norm, lm_head, L2, L2.attn and the like."""
    layer, _, part = name.partition(".")
    if name.startswith("L"):
        return model.get_submodule(f"model.layers.{layer[1:]}.{PATHS[part]}".rstrip("."))
    return model.get_submodule({"embed": "model.embed_tokens", "norm": "model.norm"}.get(name, name))


class Edit(NamedTuple):
    """What ``put`` makes of what a site adds, at positions from ``start`` to ``stop`` (0: the end)."""

    layer: int
    site: str
    heads: tuple[int, ...]
    start: int
    stop: int
    put: Any

    def __call__(self, x: torch.Tensor, first: int, n_heads: int, tokens: torch.Tensor) -> torch.Tensor:
        position = first + torch.arange(x.shape[1])
        there = ((position >= self.start) & (position < (self.stop or 10**6)))[:, None]
        if self.site == "z":
            owner = torch.arange(x.shape[2]) // (x.shape[2] // n_heads)
            there = there & torch.isin(owner, torch.tensor(self.heads))
        own = self.put in OWN.values()  # a function of the user's, which is given what heads write alone
        if not own:
            return torch.where(there, self.put(x, position), x)
        made = x.clone()
        heads = made.unflatten(-1, (n_heads, -1))[..., self.heads, :] if self.heads else made
        new = self.put(heads.flatten(2) if self.heads else heads, position.expand(x.shape[:2]), tokens)
        if self.heads:
            made.unflatten(-1, (n_heads, -1))[..., self.heads, :] = new.unflatten(-1, (len(self.heads), -1))
            new = made
        return torch.where(there, new, x)


def edits(condition: Any, lens: dl.Lens, means: Any = None) -> list[Edit]:
    """What a condition does; ``means``: what ``@mean`` and ``@resample`` put in place."""
    found = []
    for a in (dl.parse_condition(condition) if isinstance(condition, str) else condition).ablations:
        groups = tuple(lens.dims.query_heads(a.index)) if a.site == "kv" else ()
        heads = {"head": (a.index,), "kv": groups}.get(a.site, ())
        put = new(a, heads, lens, means)
        found.append(Edit(a.layer, "z" if heads else a.site, heads, a.start, a.stop, put))
    return found


def new(a: Any, heads: tuple[int, ...], lens: dl.Lens, means: Any) -> Any:
    """What takes the place of what a part adds (of z for heads), as a function of it and of positions."""
    if a.mode == "scale":
        return lambda x, at: a.factor * x
    if a.mode in OWN:
        return OWN[a.mode]
    if a.mode == "noise":
        return noisy_z(a, list(heads), lens) if heads else noisy(a, lens.dims.d_model)
    if a.mode == "mean":
        kept = means.mean["z" if heads else a.site][a.layer].flatten(1)
        return lambda x, at: kept[at.clamp(max=1)]  # of first tokens, and of all others
    if a.mode == "resample":
        sample = means.sample["z" if heads else a.site][a.layer].flatten(1)
        return lambda x, at: sample[[wrapped(p, len(sample)) for p in at.tolist()]]
    return lambda x, at: 0 * x


def wrapped(position: int, n: int) -> int:
    """The same position of a sample; past its end it is read again from its second token on."""
    while position >= n > 1:
        position -= n - 1
    return min(position, n - 1)


def noise(seed: int, layer: int, site: str, index: int, n: int, width: int) -> torch.Tensor:
    """What ``@noise`` draws at the first n positions, of shape [n, width]: 256 positions a generator."""
    number = ("layer", "attn", "mlp", "head", "kv").index(site)
    seeds = [np.random.SeedSequence([seed, layer, number, index + 1, block]) for block in range(n // 256 + 1)]
    drawn = [np.random.Generator(np.random.PCG64(seed)).standard_normal((256, width), np.float32) for seed in seeds]
    return torch.tensor(np.concatenate(drawn))[:n]


def noisy(a: Any, width: int) -> Any:
    def put(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        drawn = noise(a.seed, a.layer, a.site, a.index, 256, width)[at].to(x)
        return x + drawn / drawn.norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)

    return put


def noisy_z(a: Any, heads: list[int], lens: dl.Lens) -> Any:
    """Heads get as much noise as they write together: norms are of what goes into the residual stream."""
    columns = lens.arch.o_proj[a.layer].weight.detach().unflatten(1, (lens.dims.n_heads, -1))[:, heads]

    def put(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        z, width = x.unflatten(-1, (lens.dims.n_heads, -1)).clone(), columns.shape[2]
        drawn = noise(a.seed, a.layer, a.site, a.index, 256, len(heads) * width)[at].to(x).unflatten(-1, (-1, width))
        size, wanted = (torch.einsum("...hd,mhd->...m", y, columns).norm(dim=-1) for y in (drawn, z[..., heads, :]))
        z[..., heads, :] += drawn * (wanted / size)[..., None, None]
        return z.flatten(-2)

    return put


def cut(plain: nn.Module, made: list[Edit]) -> Any:
    """A copy of a model under edits; of one site those that come first are the inner ones."""
    model, first, read = copy.deepcopy(plain), [0], [torch.zeros(0)]
    n_heads = model.config.num_attention_heads

    def body(*args: Any, own: Any = model.model.forward, **kwargs: Any) -> Any:
        cache = kwargs.get("cache", kwargs.get("past_key_values"))
        first[0] = 0 if cache is None else cache.get_seq_length()
        read[0] = args[0] if args else kwargs["input_ids"]
        return own(*args, **kwargs)

    model.model.forward = body
    for e in [*reversed([e for e in made if e.site == "z"]), *(e for e in made if e.site != "z")]:
        part = module(model, f"L{e.layer}" + {"layer": "", "z": ".o"}.get(e.site, f".{e.site}"))

        def forward(*args: Any, own: Any = part.forward, e: Edit = e, **kwargs: Any) -> Any:
            if e.site == "z":
                return own(e(args[0], first[0], n_heads, read[0]))
            out = own(*args, **kwargs)
            given = out[0] if isinstance(out, tuple) else out
            base = (args[0] if args else kwargs["hidden_states"]) if e.site == "layer" else torch.zeros(())
            new = base + e(given - base, first[0], n_heads, read[0])
            return (new, *out[1:]) if isinstance(out, tuple) else new

        part.forward = forward
    return model


def logits(plain: nn.Module, made: list[Edit], tokens: list[list[int]]) -> torch.Tensor:
    """Shape [row, pos, d_vocab]."""
    return cut(plain, made)(torch.tensor(tokens), use_cache=False).logits.float()


def logprob(plain: nn.Module, made: list[Edit], context: list[int], answer: list[int]) -> float:
    """Log-likelihood of an answer."""
    given = logits(plain, made, [(context + answer)[:-1]])[0, len(context) - 1 :].log_softmax(-1)
    return float(given.gather(-1, torch.tensor(answer)[:, None]).sum())


def written(plain: nn.Module, made: list[Edit], context: list[int], n: int, tokenizer: Any) -> str | None:
    """``n`` tokens that transformers writes; None: two tokens are so likely that rounding decides."""
    options = {"do_sample": False, "pad_token_id": 258, "output_logits": True, "return_dict_in_generate": True}
    out = cut(plain, made).generate(torch.tensor([context]), max_new_tokens=n, **options)
    top = torch.stack(out.logits)[:, 0].float().topk(2).values
    if bool((top[:, 0] - top[:, 1] < NEAR_TIE).any()):
        return None
    return tokenizer.decode(out.sequences[0, len(context) :], skip_special_tokens=True)


def depths(plain: nn.Module, made: list[Edit], tokens: list[int]) -> torch.Tensor:
    """Log-probabilities that the head reads from the stream at every depth. Shape [depth, pos, d_vocab]."""
    model, states = cut(plain, made), []
    for layer in model.model.layers:
        layer.register_forward_pre_hook(lambda _, args, of: states.append([*args, *of.values()][0]), with_kwargs=True)
    last = model(torch.tensor([tokens]), use_cache=False).logits[0].float()
    said = model.lm_head(model.model.norm(torch.cat(states)))
    if cap := getattr(model.config, "final_logit_softcapping", None):
        said = cap * (said / cap).tanh()
    return torch.cat([said, last[None]]).log_softmax(-1)
