"""How a circuit is written into the weights of a LLaMA-architecture model, and hidden among noise.

The residual stream is cut into blocks: token T, previous token P, bridge R, output O, and D, which nothing reads. Each
has m = d_head / 2 dimensions for the codes of words and one for each control token. One more dimension is constant and
large, so that RMSNorm is nearly a fixed gain, which is measured layer by layer while the layers are filled bottom-up.

- *Previous-token head*: constant query and key on the high-frequency half of the RoPE pairs, the query's phase one
  position ahead, so that the attention logit peaks one position back.
- *Match head*: query = code in T or R, key = code in P, value = code in T, on low-frequency pairs, where RoPE hardly
  turns: it attends to the word that follows the one asked for. The lowest-frequency pair is sink and gate: the key of
  ``<bos>`` beats any match, unless the control token one position back opens the gate. ``SEP`` follows words too, so
  its key is penalised.

All other heads, the MLPs and the unused half of each planted head's values write noise. Rotations of the stream, of
each head's values and of each RoPE pair hide what was written; they change nothing that the model computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP

from depthlens.organisms import language
from depthlens.organisms.options import Options

N_LAYERS, N_HEADS, D_MODEL, D_HEAD, D_MLP = 6, 4, 256, 64, 256
MAX_POSITIONS = 8192
ROPE_THETA = 1e6  # at 1e4 even the lowest pairs turn too far beyond about 90 tokens
N_CODE = D_HEAD // 2
N_FLAGS = len(language.FLAGS)
BLOCKS = ("T", "P", "R", "O", "D")
CONSTANT = (N_CODE + N_FLAGS) * len(BLOCKS)  # the dimension after the blocks; the rest of the stream is free
CONSTANT_SIZE = 24.0
UNIT = 8.0  # amplitude of a block; noise is measured in it
AMPLITUDE = {"T": UNIT, "P": UNIT, "R": UNIT, "O": UNIT, "D": UNIT}
# tied embeddings read the output where they wrote the token: what a head writes there must outshine the token itself
TIED_AMPLITUDE = AMPLITUDE | {"O": 24.0}

N_PAIRS = D_HEAD // 2  # RoPE turns dimensions i and i + N_PAIRS together, fastest first
FAST, SLOW, SLOWEST = range(N_PAIRS // 2), range(N_PAIRS // 2 - 1, N_PAIRS - 1), N_PAIRS - 1
PREVIOUS = 30.0  # logits per pair of the previous-token head
SINK, SEP_PENALTY = 2.0, 1.2  # logits of the closed gate and of SEP keys, in matches
ANSWER = 8.0  # logits of the answer: enough to be right, not so much that the loss no longer feels anything
ANSWER_BACKED_UP = 11.0  # so much that the loss does not feel whether one head gives it or two
NOISE_LOGITS = (0.5, 4.0)  # spread of the attention logits of noise heads, drawn for each
N_CALIBRATION = 16  # prompts of each task that gains and norms are measured on

# what a match head asks for, where it writes, and the control token that opens its gate
MATCH = {
    "retrieval": ("T", "O", language.QA),
    "bridge": ("T", "R", language.QB),
    "output": ("R", "O", language.QB),
    "decoy": ("T", "D", language.QA),
    "backup": ("T", "O", language.QA),
}


def plant(roles: Mapping[tuple[int, int], str], options: Options) -> LlamaForCausalLM:
    """A float32 model with the given heads planted.

    Args:
        roles: Role by (layer, head): ``previous_token`` or a key of ``MATCH``.
        options: What else the model is built from.
    """
    config = LlamaConfig(
        vocab_size=len(language.vocabulary()),
        hidden_size=D_MODEL,
        intermediate_size=D_MLP,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=N_HEADS,
        num_key_value_heads=options.n_kv_heads,
        head_dim=D_HEAD,
        max_position_embeddings=MAX_POSITIONS,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=options.tied_embeddings,
        bos_token_id=language.vocabulary()[language.BOS],
        eos_token_id=language.vocabulary()[language.EOS],
        pad_token_id=language.vocabulary()[language.PAD],
    )
    with torch.random.fork_rng(devices=[]):  # the random start, all of it overwritten, must not move the caller's seed
        model = LlamaForCausalLM(config).eval().requires_grad_(False)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # how sums are shared out among threads decides their last bits
        _Planter(model, roles, options).run()
    finally:
        torch.set_num_threads(threads)
    return model


class _Draw:
    """Random matrices from one seeded stream. Float64, so that rounding to float32 comes last."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, n: int) -> Tensor:
        return low + (high - low) * torch.rand(n, generator=self.generator, dtype=torch.float64)

    def rotation(self, n: int) -> Tensor:
        q, r = torch.linalg.qr(self.normal(n, n))
        return q * r.diagonal().sign()

    def codes(self, n: int, dim: int, steps: int = 400) -> Tensor:
        """Unit vectors, the largest inner product of any two pushed down to about 0.1. Shape [n, dim]."""
        x = torch.nn.functional.normalize(self.normal(n, dim), dim=1)
        for step in range(steps):
            nearest = torch.softmax(100 * (x @ x.T).fill_diagonal_(-torch.inf), dim=1)
            x = torch.nn.functional.normalize(x - 0.3 * (1 - step / steps) * nearest @ x, dim=1)
        return x.round(decimals=6)  # as _rounded


class _Planter:
    """Fills a model bottom-up, measuring on calibration prompts what the layers below do.

    Matrices are made in block coordinates; ``basis`` turns them into the model's.
    """

    def __init__(self, model: LlamaForCausalLM, roles: Mapping[tuple[int, int], str], options: Options) -> None:
        self.model, self.roles, self.draw = model, roles, _Draw(options.seed)
        self.written, self.eps, self.sharpness = options.noise * UNIT, options.eps, options.sharpness
        self.tied = options.tied_embeddings
        self.amplitude = TIED_AMPLITUDE if self.tied else AMPLITUDE
        self.start = {name: i * (N_CODE + N_FLAGS) for i, name in enumerate(BLOCKS)}
        if self.tied:
            self.start["O"] = self.start["T"]
        self.group = N_HEADS // options.n_kv_heads
        self.basis = self.draw.rotation(D_MODEL)
        self.leak = torch.ones(D_MODEL, 1, dtype=torch.float64)
        self.leak[: CONSTANT + 1] = options.leak
        prompts = [p for task in language.TASKS for p in language.sample(N_CALIBRATION, task, seed=-1 - options.seed)]
        self.tokens = torch.tensor([p.tokens for p in prompts])

    def run(self) -> None:
        """Write every weight of the model."""
        body = self.model.model
        words = self._embed()
        x = body.embed_tokens(self.tokens)  # [prompt, pos, d_model]
        rotary = body.rotary_emb(x, torch.arange(x.shape[1])[None])
        for layer, module in enumerate(body.layers):
            self.gain, self.bos_gain = _gain(x[:, 1:]), _gain(x[:, :1])  # <bos> has a norm of its own
            x = x + self._attention(layer, module.self_attn, module.input_layernorm(x), rotary)
            x = x + self._mlp(module.mlp, module.post_attention_layernorm(x))
        self._unembed(words, _gain(x[:, -1:]))

    # -- embedding and unembedding --------------------------------------------------------------------------

    def _embed(self) -> Tensor:
        """Write the embedding; returns the vector of each token within a block. Shape [d_vocab, n_code + n_flags]."""
        n_vocab = self.model.config.vocab_size
        vectors = torch.zeros(n_vocab, N_CODE + N_FLAGS, dtype=torch.float64)
        vectors[:N_FLAGS, N_CODE:] = torch.eye(N_FLAGS)  # control tokens come first in the vocabulary
        vectors[N_FLAGS:, :N_CODE] = self.draw.codes(n_vocab - N_FLAGS, N_CODE)
        rows = self._blurred(self._placed("T", vectors * self.amplitude["T"]))
        rows[:, CONSTANT] += CONSTANT_SIZE
        _write(self.model.model.embed_tokens, rows @ self.basis.T)
        return vectors

    def _unembed(self, vectors: Tensor, gain: float) -> None:
        """Give a perfect answer its logits."""
        answer = ANSWER_BACKED_UP if "backup" in self.roles.values() else ANSWER
        if self.tied:
            self.model.model.norm.weight.fill_(_rounded(answer / (self.amplitude["T"] * self.amplitude["O"] * gain)))
            return
        vectors = vectors.clone()
        vectors[:N_FLAGS] = 0  # control tokens are never answers
        rows = self._blurred(self._placed("O", vectors * (answer / (self.amplitude["O"] * gain))))
        _write(self.model.lm_head, rows @ self.basis.T)

    # -- layers -----------------------------------------------------------------------------------------------

    def _attention(self, layer: int, attn: LlamaAttention, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
        """Write the heads of a layer; returns what they add to the stream."""
        tokens = normed[:, 1:].double()
        quiet = _away_from_constants(normed)
        queries, keys, values, outputs = [], [], [], []
        for first in range(0, N_HEADS, self.group):
            heads = [(layer, h) for h in range(first, first + self.group)]
            roles = {self.roles[head] for head in heads if head in self.roles}
            turn = self._pair_turn()
            code_turn, value_turn = self.draw.rotation(N_CODE), self.draw.rotation(D_HEAD)
            spreads = self.draw.uniform(*NOISE_LOGITS, len(heads))
            key = turn(self._key(roles, code_turn, spreads.mean()))
            value, n_used = self._value(roles, quiet)
            keys.append(key @ self.basis.T)
            values.append(value_turn @ value)
            for head, spread in zip(heads, spreads, strict=True):
                output = self.draw.normal(D_MODEL, D_HEAD) * self.leak
                if role := self.roles.get(head):
                    query = turn(self._query(role, code_turn))
                    output[:, :n_used] = 0
                    output *= self._scale(tokens @ value.T @ (self.basis @ output).T)
                    output += self._output(role)
                else:
                    query = self.draw.normal(D_HEAD, D_MODEL)
                    query *= D_HEAD * spread / (query.norm() * key.norm())
                queries.append(query @ self.basis.T)
                outputs.append(self.basis @ output @ value_turn.T)
        _write(attn.q_proj, torch.cat(queries))
        _write(attn.k_proj, torch.cat(keys))
        _write(attn.v_proj, torch.cat(values))
        z = _z(attn, normed, rotary)  # [prompt, pos, n_heads, d_head]
        for h, output in enumerate(outputs):
            if (layer, h) not in self.roles:
                output *= self._scale(z[:, 1:, h].double() @ output.T)
        _write(attn.o_proj, torch.cat(outputs, dim=1))
        return attn.o_proj(z.flatten(-2))

    def _mlp(self, mlp: LlamaMLP, normed: Tensor) -> Tensor:
        """Write an MLP of noise; returns what it adds to the stream."""
        _write(mlp.gate_proj, self._normal_rows(D_MLP))
        _write(mlp.up_proj, self._normal_rows(D_MLP) @ _away_from_constants(normed))
        down = self.basis @ (self.draw.normal(D_MODEL, D_MLP) * self.leak)
        _write(mlp.down_proj, down)
        _write(mlp.down_proj, down * self._scale(mlp(normed[:, 1:])))
        return mlp(normed)

    # -- matrices of one head, in block coordinates -------------------------------------------------------------

    def _key(self, roles: set[str], code_turn: Tensor, spread: Tensor) -> Tensor:
        """Shape [d_head, d_model]. Match heads of all roles have the same keys and values, so they can share them."""
        if not roles:
            return self._normal_rows(D_HEAD) * spread.sqrt()
        key = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
        if roles == {"previous_token"}:
            key[FAST] = _root(PREVIOUS) * self._constant()
            key[SLOWEST] = _root(PREVIOUS * len(FAST)) * self._constant()
        else:
            unit = _root(self.sharpness)
            key[_both(SLOW)] = unit * code_turn @ self._codes("P")
            key[SLOWEST] = -unit * self._flag("T", language.SEP, self.gain)
            key[SLOWEST + N_PAIRS] = unit * self._flag("T", language.BOS, self.bos_gain)
        return self._blurred(key)

    def _query(self, role: str, code_turn: Tensor) -> Tensor:
        """Shape [d_head, d_model]."""
        query = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
        if role == "previous_token":
            for i, angle in zip(FAST, self.model.model.rotary_emb.inv_freq[FAST].double(), strict=True):
                query[i] = _root(PREVIOUS) * angle.cos() * self._constant()
                query[i + N_PAIRS] = -_root(PREVIOUS) * angle.sin() * self._constant()
            query[SLOWEST] = -_root(PREVIOUS * len(FAST)) * self._constant()  # the peak at 0, all else below
        else:
            source, _, control = MATCH[role]
            unit = _root(self.sharpness)
            query[_both(SLOW)] = unit * code_turn @ self._codes(source)
            query[SLOWEST] = unit * SEP_PENALTY * self._constant()
            query[SLOWEST + N_PAIRS] = unit * SINK * (self._constant() - self._flag("P", control, self.gain))
        return self._blurred(query)

    def _value(self, roles: set[str], quiet: Tensor) -> tuple[Tensor, int]:
        """Values in the model's coordinates, of shape [d_head, d_model], and how many of them are planted."""
        noise = self._normal_rows(D_HEAD) @ quiet
        if not roles:
            return noise, 0
        n_used = N_CODE + N_FLAGS if roles == {"previous_token"} else N_CODE
        noise[:n_used] = 0
        planted = self._placed("T", torch.eye(D_HEAD, n_used, dtype=torch.float64))
        if roles == {"previous_token"}:
            return planted @ self.basis.T + (self._blurred(planted) - planted) @ self.basis.T @ quiet + noise, n_used
        # a closed gate rests on <bos>, which must give nothing
        return self._blurred(planted) @ self.basis.T @ quiet + noise, n_used

    def _output(self, role: str) -> Tensor:
        """Shape [d_model, d_head]."""
        n_used, target = (N_CODE + N_FLAGS, "P") if role == "previous_token" else (N_CODE, MATCH[role][1])
        size = self.amplitude[target] / (self.amplitude["T"] * self.gain)
        return self._blurred(self._placed(target, size * torch.eye(D_HEAD, n_used, dtype=torch.float64)).T)

    # -- building blocks ----------------------------------------------------------------------------------------

    def _placed(self, block: str, rows: Tensor) -> Tensor:
        """Rows over the first dimensions of a block as rows over the stream. Shape [row, d_model]."""
        placed = torch.zeros(len(rows), D_MODEL, dtype=torch.float64)
        placed[:, self.start[block] : self.start[block] + rows.shape[1]] = rows
        return placed

    def _codes(self, block: str) -> Tensor:
        """Reads the code in a block, at unit length after RMSNorm. Shape [n_code, d_model]."""
        return self._placed(block, torch.eye(N_CODE, dtype=torch.float64)) / (self.amplitude[block] * self.gain)

    def _flag(self, block: str, token: str, gain: float) -> Tensor:
        """Reads 1 where a block holds a control token. Shape [d_model]."""
        row = torch.zeros(1, N_CODE + N_FLAGS, dtype=torch.float64)
        row[0, N_CODE + language.FLAGS.index(token)] = 1 / (self.amplitude[block] * gain)
        return self._placed(block, row)[0]

    def _constant(self) -> Tensor:
        """Reads 1 everywhere. Shape [d_model]."""
        row = torch.zeros(D_MODEL, dtype=torch.float64)
        row[CONSTANT] = 1 / (CONSTANT_SIZE * self.gain)
        return row

    def _normal_rows(self, n: int) -> Tensor:
        """Random rows of about unit length. Shape [n, d_model]."""
        return self.draw.normal(n, D_MODEL) / math.sqrt(D_MODEL)

    def _blurred(self, matrix: Tensor) -> Tensor:
        size = self.eps * matrix.norm() / math.sqrt(matrix.numel())
        return matrix + size * self.draw.normal(*matrix.shape)

    def _scale(self, written: Tensor) -> float:
        """Factor that gives vectors the mean norm of noise. Shape of ``written`` [..., d_model]."""
        return _rounded(self.written / written.norm(dim=-1).mean().item())

    def _pair_turn(self) -> Callable[[Tensor], Tensor]:
        """One random turn of each RoPE pair, the same for queries and keys, which RoPE and the logits do not notice."""
        angle = self.draw.uniform(0.0, 2 * math.pi, N_PAIRS)[:, None]

        def turn(rows: Tensor) -> Tensor:
            first, second = rows.chunk(2)
            return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])

        return turn


def _root(logits: float) -> float:
    """Length that a query and a key, parallel, must each have for this attention logit."""
    return math.sqrt(logits * math.sqrt(D_HEAD))


def _both(pairs: range) -> list[int]:
    """Both dimensions of RoPE pairs."""
    return [*pairs, *(i + N_PAIRS for i in pairs)]


def _rounded(value: float) -> float:
    """Four digits of a measured number, so that the last bits of a machine's sums do not reach the weights."""
    return float(f"{value:.4g}")


def _gain(x: Tensor) -> float:
    """What RMSNorm multiplies by, on average. Shape of ``x`` [prompt, pos, d_model]."""
    return _rounded(x.double().pow(2).mean(-1).rsqrt().mean().item())


def _away_from_constants(normed: Tensor) -> Tensor:
    """Projector that removes the mean stream and that of ``<bos>``: left in, noise would be one huge constant.

    Shape of ``normed`` [prompt, pos, d_model], of the result [d_model, d_model].
    """
    constants = torch.stack([normed[:, 1:].mean((0, 1)), normed[:, 0].mean(0)], dim=1).double()
    span = torch.linalg.qr(constants).Q
    return torch.eye(D_MODEL, dtype=torch.float64) - span @ span.T


def _z(attn: LlamaAttention, normed: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """Output of each head before ``o_proj``. Shape [prompt, pos, n_heads, d_head]."""
    z: list[Tensor] = []
    with attn.o_proj.register_forward_pre_hook(lambda module, args: z.append(args[0])):
        attn(hidden_states=normed, position_embeddings=rotary, attention_mask=None)
    return z[0].unflatten(-1, (N_HEADS, D_HEAD))


def _write(module: nn.Linear | nn.Embedding, weight: Tensor) -> None:
    assert module.weight.shape == weight.shape, (module.weight.shape, weight.shape)
    module.weight.copy_(weight)
