"""How circuits are written into the weights of a LLaMA-architecture model, and hidden among noise.

`depthlens.organisms.circuits` says how the residual stream is cut up and what is planted. All other heads, the other
units of the MLPs and the unused half of each planted head's values write noise. Rotations of the stream, of each head's
values and of each RoPE pair hide what was written; they change nothing that the model computes.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from depthlens.organisms import circuits, language
from depthlens.organisms.builder import N_HEADS, Options, Truth, truth
from depthlens.organisms.circuits import D_HEAD, D_MLP, D_MODEL, HABIT, HELD_BACK, N_CODE, UNIT

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

STATED_LAYERS = 6  # the number of layers that the noise is stated for
ANSWER = 8.0  # logits of the answer: enough to be right, not so much that the loss no longer feels anything
ANSWER_BACKED_UP = 11.0  # so much that the loss does not feel whether one head gives it or two
NOISE_LOGITS = (0.5, 4.0)  # spread of the attention logits of noise heads, drawn for each
N_CALIBRATION = 16  # prompts of each task that gains and norms are measured on


@dataclass(frozen=True, eq=False)
class Organism:
    """A built organism.

    Attributes:
        model: The model, float32, in evaluation mode.
        tokenizer: One token a word, ``<bos>`` in front.
        truth: Which heads do what, and the options.

    Example:
        >>> organism = dl.organisms.build()
        >>> mine = dl.Lens(organism.model, organism.tokenizer, "mine")
    """

    model: LlamaForCausalLM
    tokenizer: PreTrainedTokenizerFast
    truth: Truth


def build(**options: Any) -> Organism:
    """Build an organism in about a second; equal options give equal weights, bit by bit.

    Args:
        options: Those of `Options`.

    Raises:
        UserError: a value that an option cannot have.

    Example:
        >>> organism = dl.organisms.build(seed=3, decoy=True)
        >>> organism.truth.role("decoy")
        L2.H3
    """
    from transformers import LlamaConfig, LlamaForCausalLM  # slow to import

    chosen = Options(**options)
    planted, vocabulary = truth(chosen), language.vocabulary(chosen.extended)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=chosen.n_layers,
        num_attention_heads=N_HEADS,
        num_key_value_heads=chosen.n_kv_heads,
        max_position_embeddings=8192,
        # at 1e4 even the lowest pairs turn too far beyond about 90 tokens
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        bos_token_id=vocabulary[language.BOS],
        eos_token_id=vocabulary[language.EOS],
        pad_token_id=vocabulary[language.PAD],
    )
    # the random start, all of it overwritten, must not move the caller's seed
    with torch.random.fork_rng(devices=[]), ExitStack() as undo:
        undo.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)  # how sums are shared out among threads decides their last bits
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
        _Planter(model, planted).run()
    return Organism(model, language.tokenizer(chosen.extended), planted)


class _Planter:
    """Fills a model bottom-up, measuring on calibration prompts what the layers below do."""

    def __init__(self, model: LlamaForCausalLM, planted: Truth) -> None:
        options = planted.options
        self.model, self.options = model, options
        self.roles = {(h.layer, h.head): h.role for h in planted.heads}
        self.stream = circuits.Stream(options)
        self.written = options.noise * UNIT * (STATED_LAYERS / options.n_layers) ** 0.5
        self.group = N_HEADS // options.n_kv_heads
        self.ids = language.vocabulary(options.extended)
        drawn = [language.sample(N_CALIBRATION, task, seed=-1 - options.seed) for task in language.TASKS]
        words = [(language.BOS, *text.split()) for texts in drawn for text in texts]
        self.tokens = torch.tensor([[self.ids[word] for word in of_text] for of_text in words])

    def run(self) -> None:
        """Write every weight of the model."""
        body, s = self.model.model, self.stream
        words = self._embed()
        codes = {token: words[i, :N_CODE] for token, i in self.ids.items()}
        x = body.embed_tokens(self.tokens)  # [prompt, pos, d_model]
        rotary = body.rotary_emb(x, torch.arange(x.shape[1])[None])
        for layer, module in enumerate(body.layers):
            self._measure(x)
            x = x + self._attention(layer, module.self_attn, module.input_layernorm(x), rotary)
            self._measure(x)
            x = x + self._mlp(module.mlp, module.post_attention_layernorm(x), circuits.planted(s, codes, layer))
        s.gain = circuits.measured_gain(x[:, -1:])
        self._unembed(words)

    def _measure(self, x: Tensor) -> None:
        self.stream.gain, self.stream.bos_gain = circuits.measured_gain(x[:, 1:]), circuits.measured_gain(x[:, :1])

    # -- embedding and unembedding --------------------------------------------------------------------------

    def _embed(self) -> Tensor:
        """Write the embedding; returns the vector of each token within a block. Shape [d_vocab, block]."""
        s, n_vocab = self.stream, len(self.ids)
        flags = [self.ids[token] for token in s.flags]
        others = [i for i in range(n_vocab) if i not in flags]
        vectors = torch.zeros(n_vocab, s.width, dtype=torch.float64)
        vectors[flags, N_CODE:] = torch.eye(len(flags), dtype=torch.float64)
        vectors[others, :N_CODE] = s.new_codes(len(others))
        rows = s.blurred(s.placed("T", vectors * UNIT))
        rows[:, s.constant_at] += circuits.CONSTANT_SIZE
        if self.options.writing_layers:
            for i, word in enumerate(language.words()):
                # not by the word's letter, so that no letter makes a token likelier
                rows[self.ids[word], s.start["H"] + i // len(language.LETTERS) % len(HELD_BACK)] += HABIT
        self.model.model.embed_tokens.weight.copy_(rows @ s.basis.T)
        return vectors

    def _unembed(self, vectors: Tensor) -> None:
        """Give a perfect answer its logits."""
        s = self.stream
        answer = ANSWER_BACKED_UP if "backup" in self.roles.values() else ANSWER
        vectors = vectors.clone()
        vectors[[self.ids[token] for token in s.flags]] = 0  # control tokens are never answers
        rows = s.blurred(s.placed("O", vectors * (answer / (UNIT * s.gain))))
        if n_writing := len(self.options.layers("writing_layers")):
            last = f"W{n_writing - 1}"
            held = [circuits.HELD_LOGIT * s.habit("H", t) - circuits.TAKEN_OFF * s.habit(last, t) for t in HELD_BACK]
            rows[[self.ids[token] for token in HELD_BACK]] = s.blurred(torch.stack(held))
        self.model.lm_head.weight.copy_(rows @ s.basis.T)

    # -- layers -----------------------------------------------------------------------------------------------

    def _attention(self, layer: int, attn: LlamaAttention, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Write the heads of a layer; returns what they add to the stream."""
        s = self.stream
        tokens = normed[:, 1:].double()
        quiet, frequencies = _away_from_constants(normed), self.model.model.rotary_emb.inv_freq.double()
        queries, keys, values, outputs = [], [], [], []
        for first in range(0, N_HEADS, self.group):
            heads = [(layer, h) for h in range(first, first + self.group)]
            roles = {self.roles[head] for head in heads if head in self.roles}
            turn = circuits.pair_turn(s)
            code_turn, value_turn = s.rotation(N_CODE), s.rotation(D_HEAD)
            spreads = s.uniform(*NOISE_LOGITS, len(heads))
            key = turn(circuits.head_key(s, roles, code_turn, spreads.mean()))
            value, n_used = circuits.head_value(s, roles, quiet)
            keys.append(key @ s.basis.T)
            values.append(value_turn @ value)
            for head, spread in zip(heads, spreads, strict=True):
                output = s.normal(D_MODEL, D_HEAD) * s.leak
                if role := self.roles.get(head):
                    query = turn(circuits.head_query(s, role, code_turn, frequencies))
                    output[:, :n_used] = 0
                    output *= self._scale(tokens @ value.T @ (s.basis @ output).T)
                    output += circuits.head_output(s, role)
                else:
                    query = s.normal(D_HEAD, D_MODEL)
                    query *= D_HEAD * spread / (query.norm() * key.norm())
                queries.append(query @ s.basis.T)
                outputs.append(s.basis @ output @ value_turn.T)
        attn.q_proj.weight.copy_(torch.cat(queries))
        attn.k_proj.weight.copy_(torch.cat(keys))
        attn.v_proj.weight.copy_(torch.cat(values))
        attn.o_proj.weight.copy_(torch.eye(D_MODEL))  # for the output of each head: [prompt, pos, n_heads, d_head]
        z = attn(normed, position_embeddings=rotary, attention_mask=None)[0].unflatten(-1, (N_HEADS, D_HEAD))
        for h, output in enumerate(outputs):
            if (layer, h) not in self.roles:
                output *= self._scale(z[:, 1:, h].double() @ output.T)
        attn.o_proj.weight.copy_(torch.cat(outputs, dim=1))
        return attn.o_proj(z.flatten(-2))

    def _mlp(self, mlp: LlamaMLP, normed: Tensor, planted: tuple[Tensor, ...]) -> Tensor:
        """Write an MLP of noise and of planted units, which come first; returns what it adds to the stream."""
        s, (gate, up, written) = self.stream, planted
        mlp.gate_proj.weight.copy_(s.normal_rows(D_MLP))
        mlp.up_proj.weight.copy_(s.normal_rows(D_MLP) @ _away_from_constants(normed))
        down = s.basis @ (s.normal(D_MODEL, D_MLP) * s.leak)
        n = len(gate)
        down[:, :n] = 0
        mlp.gate_proj.weight[:n] = (gate @ s.basis.T).float()
        mlp.up_proj.weight[:n] = (up @ s.basis.T).float()
        mlp.down_proj.weight.copy_(down)
        down = down * self._scale(mlp(normed[:, 1:]))
        down[:, :n] = s.basis @ written
        mlp.down_proj.weight.copy_(down)
        return mlp(normed)

    def _scale(self, written: Tensor) -> float:
        """Factor that gives vectors the mean norm of noise. Shape of ``written`` [..., d_model]."""
        return circuits.rounded(self.written / written.norm(dim=-1).mean().item())


def _away_from_constants(normed: Tensor) -> Tensor:
    """Projector that removes the mean stream and that of ``<bos>``: left in, noise would be one huge constant.

    Shape of ``normed`` [prompt, pos, d_model], of the result [d_model, d_model].
    """
    constants = torch.stack([normed[:, 1:].mean((0, 1)), normed[:, 0].mean(0)], dim=1).double()
    span = torch.linalg.qr(constants).Q
    return torch.eye(D_MODEL, dtype=torch.float64) - span @ span.T
