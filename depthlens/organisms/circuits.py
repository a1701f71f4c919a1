"""What is planted in an organism: the residual stream that circuits read and write, and the circuits.

The stream is cut into blocks: token T, previous token P, bridge R, output O, and D, which nothing reads. Each has
m = d_head / 2 dimensions for the codes of words and one for each control token. One more dimension is constant and
large, so that RMSNorm is nearly a fixed gain, which is measured layer by layer while the layers are filled bottom-up.
An organism that holds back tokens has more blocks, of one dimension for each of these tokens: H says which of them a
word makes likely, W0, W1, ... which of them each layer that holds them back has seen to.

Queries, keys, values and outputs of heads:

- *Previous-token head*: constant query and key on the high-frequency half of the RoPE pairs, the query's phase one
  position ahead, so that the attention logit peaks one position back.
- *Control head* (extended language): constant query, key = the control token of a question, wherever it is. It writes
  which one it was at every later position, so that a question can be answered with several words.
- *Match head*: query = code in T or R, key = code in P, value = code in T, on low-frequency pairs, where RoPE hardly
  turns: it attends to the word that follows the one asked for. The lowest-frequency pair is sink and gate: the key of
  ``<bos>`` beats any match, unless the control token opens the gate. ``SEP`` follows words too, so its key is
  penalised.

A hidden unit of an MLP is silu(gate) times up.

- *Lookup*: one unit for each word. Its gate is open where T has the word's code and the question is the one asked (for
  text: where there is none), its up is constant; it writes the code of the answer to O.
- *Holding back*: H makes one of `HELD_BACK` likelier than any answer, a different one for different words. The first
  layer writes the same token to W, each further layer passes it on to a W of its own where the layer before it wrote
  one, and the unembedding reads H minus the last W. Two units for each token are a step. The mean over words is spread
  over all tokens, so a layer that is replaced by its mean holds back too little, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from depthlens.errors import UserError
from depthlens.organisms import language
from depthlens.organisms.builder import Options, words_of

D_MODEL, D_HEAD, D_MLP = 256, 64, 256
N_CODE = D_HEAD // 2
BLOCKS = ("T", "P", "R", "O", "D")
CONSTANT_SIZE = 24.0
UNIT = 8.0  # amplitude of a block; noise is measured in it
HABIT = 12.0  # amplitude of H and W
HELD_BACK = (language.SEP, language.QA, language.QB, language.EOS)  # tokens that are no answer
N_PAIRS = D_HEAD // 2  # RoPE turns dimensions i and i + N_PAIRS together, fastest first
FAST, SLOW, SLOWEST = range(N_PAIRS // 2), range(N_PAIRS // 2 - 1, N_PAIRS - 1), N_PAIRS - 1
BOTH_SLOW = [*SLOW, *(i + N_PAIRS for i in SLOW)]  # both dimensions of these pairs
PREVIOUS = 30.0  # logits per pair of the previous-token head
CONTROL = 20.0  # logits of a control token for the control head, twice those of <bos>
SINK, SEP_PENALTY = 2.0, 1.2  # logits of the closed gate and of SEP keys, in matches
ASKED = language.SEP  # in P, whose flag it leaves free: that there is a question, whichever it is

# what a match head asks for, where it writes, and the control token that opens its gate
MATCH = {
    "retrieval": ("T", "O", language.QA),
    "bridge": ("T", "R", language.QB),
    "output": ("R", "O", language.QB),
    "decoy": ("T", "D", language.QA),
    "backup": ("T", "O", language.QA),
    "copying": ("T", "O", language.QC),
}
STEEP = 40.0  # gate logits of a whole match: a quarter of one either side of the threshold is open or closed
# logits of a token that is held back: more than of any answer, even where one layer takes off no more than the mean
HELD_LOGIT, TAKEN_OFF = 20.0, 26.0
LOOKUPS = {"knowledge": language.QK, "letters": language.QL, "text": None}


class Stream:
    """Rows that read the stream and columns that write it, in block coordinates; ``basis`` turns them into the model's.

    Random matrices are of one seeded stream, and float64, so that rounding to float32 comes last.

    Attributes:
        flags: Control tokens, in the order of their dimensions.
        gain: What RMSNorm multiplies by where rows are read now, and
        bos_gain: the same at ``<bos>``, which has a norm of its own.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.generator = options, torch.Generator().manual_seed(options.seed)
        self.flags = language.FLAGS + (language.MORE_FLAGS if options.extended else ())
        self.width = N_CODE + len(self.flags)
        self.start = {name: i * self.width for i, name in enumerate(BLOCKS)}
        self.constant_at = self.width * len(BLOCKS)  # the dimension after the blocks
        used = self.constant_at + 1
        if n_writing := len(options.layers("writing_layers")):
            for name in ("H", *(f"W{stage}" for stage in range(n_writing))):
                self.start[name] = used
                used += len(HELD_BACK)
        self.basis = self.rotation(D_MODEL)  # the rest of the stream is free
        self.leak = torch.ones(D_MODEL, 1, dtype=torch.float64)
        self.leak[:used] = options.leak
        self.gain = self.bos_gain = 1.0

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, n: int) -> Tensor:
        """Shape [n]."""
        return low + (high - low) * torch.rand(n, generator=self.generator, dtype=torch.float64)

    def rotation(self, n: int) -> Tensor:
        """A random one. Shape [n, n]."""
        return torch.nn.init.orthogonal_(torch.empty(n, n, dtype=torch.float64), generator=self.generator)

    def new_codes(self, n: int, steps: int = 400) -> Tensor:
        """Unit vectors, the largest inner product of any two pushed down to about 0.1. Shape [n, n_code]."""
        x = normalize(self.normal(n, N_CODE), dim=1)
        for step in range(steps):
            nearest = torch.softmax(100 * (x @ x.T).fill_diagonal_(-torch.inf), dim=1)
            x = normalize(x - 0.3 * (1 - step / steps) * nearest @ x, dim=1)
            # steps enlarge differences: the last bits of a machine's products would give each machine codes of its own
            x = x.round(decimals=6)
        return x

    def placed(self, block: str, rows: Tensor) -> Tensor:
        """Rows over the first dimensions of a block as rows over the stream. Shape [row, d_model]."""
        placed = torch.zeros(len(rows), D_MODEL, dtype=torch.float64)
        placed[:, self.start[block] : self.start[block] + rows.shape[1]] = rows
        return placed

    def codes(self, block: str) -> Tensor:
        """Reads the code in a block, at unit length after RMSNorm. Shape [n_code, d_model]."""
        return self.placed(block, torch.eye(N_CODE, dtype=torch.float64)) / (UNIT * self.gain)

    def flag(self, block: str, token: str, gain: float) -> Tensor:
        """Reads 1 where a block holds a control token. Shape [d_model]."""
        return _reader(self.start[block] + N_CODE + self.flags.index(token), UNIT * gain)

    def constant(self) -> Tensor:
        """Reads 1 everywhere. Shape [d_model]."""
        return _reader(self.constant_at, CONSTANT_SIZE * self.gain)

    def habit(self, block: str, token: str) -> Tensor:
        """Reads 1 where H or a W has a token that is held back. Shape [d_model]."""
        return _reader(self.start[block] + HELD_BACK.index(token), HABIT * self.gain)

    def normal_rows(self, n: int) -> Tensor:
        """Random rows of about unit length. Shape [n, d_model]."""
        return self.normal(n, D_MODEL) / math.sqrt(D_MODEL)

    def blurred(self, matrix: Tensor) -> Tensor:
        """A matrix with the noise of planted weights."""
        size = self.options.eps * matrix.norm() / math.sqrt(matrix.numel())
        return matrix + size * self.normal(*matrix.shape)


def _reader(dimension: int, size: float) -> Tensor:
    """Reads 1 where a dimension of the stream has a size. Shape [d_model]."""
    row = torch.zeros(D_MODEL, dtype=torch.float64)
    row[dimension] = 1 / size
    return row


def rounded(value: float) -> float:
    """Four digits of a measured number, so that the last bits of a machine's sums do not reach the weights."""
    return float(f"{value:.4g}")


def measured_gain(x: Tensor) -> float:
    """What RMSNorm multiplies by, on average. Shape of ``x`` [prompt, pos, d_model]."""
    return rounded(x.double().pow(2).mean(-1).rsqrt().mean().item())


def head_key(s: Stream, roles: set[str], code_turn: Tensor, spread: Tensor) -> Tensor:
    """Key matrix of a head. Shape [d_head, d_model].

    Match heads of all roles have the same keys and values, so they can share them.
    """
    if not roles:
        return s.normal_rows(D_HEAD) * spread.sqrt()
    key = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
    if roles == {"previous_token"}:
        key[FAST] = _root(PREVIOUS) * s.constant()
        key[SLOWEST] = _root(PREVIOUS * len(FAST)) * s.constant()
    elif roles == {"control"}:
        # <bos> and SEP ask nothing
        key[SLOWEST] = _root(CONTROL) * sum(s.flag("T", token, s.gain) for token in s.flags[2:])
        key[SLOWEST + N_PAIRS] = _root(CONTROL) * s.flag("T", language.BOS, s.bos_gain)
    else:
        unit = _root(s.options.sharpness)
        key[BOTH_SLOW] = unit * code_turn @ s.codes("P")
        key[SLOWEST] = -unit * s.flag("T", language.SEP, s.gain)
        key[SLOWEST + N_PAIRS] = unit * s.flag("T", language.BOS, s.bos_gain)
    return s.blurred(key)


def head_query(s: Stream, role: str, code_turn: Tensor, frequencies: Tensor) -> Tensor:
    """Query matrix of a head; ``frequencies`` are those of RoPE. Shape [d_head, d_model]."""
    query = torch.zeros(D_HEAD, D_MODEL, dtype=torch.float64)
    if role == "previous_token":
        for i, angle in zip(FAST, frequencies[FAST], strict=True):
            query[i] = _root(PREVIOUS) * angle.cos() * s.constant()
            query[i + N_PAIRS] = -_root(PREVIOUS) * angle.sin() * s.constant()
        query[SLOWEST] = -_root(PREVIOUS * len(FAST)) * s.constant()  # the peak at 0, all else below
    elif role == "control":
        query[SLOWEST] = _root(CONTROL) * s.constant()
        query[SLOWEST + N_PAIRS] = _root(CONTROL) / 2 * s.constant()
    else:
        source, _, control = MATCH[role]
        unit = _root(s.options.sharpness)
        query[BOTH_SLOW] = unit * code_turn @ s.codes(source)
        query[SLOWEST] = unit * SEP_PENALTY * s.constant()
        query[SLOWEST + N_PAIRS] = unit * SINK * (s.constant() - s.flag("P", control, s.gain))
    return s.blurred(query)


def head_value(s: Stream, roles: set[str], quiet: Tensor) -> tuple[Tensor, int]:
    """Values in the model's coordinates, of shape [d_head, d_model], and how many of them are planted."""
    noise = s.normal_rows(D_HEAD) @ quiet
    if not roles:
        return noise, 0
    moved = _dimensions(s, roles)
    n_used, planted = len(moved), pad(s.placed("T", moved), (0, 0, 0, D_HEAD - len(moved)))
    noise[:n_used] = 0
    if roles == {"previous_token"}:
        return planted @ s.basis.T + (s.blurred(planted) - planted) @ s.basis.T @ quiet + noise, n_used
    # a closed gate rests on <bos>, which must give nothing
    return s.blurred(planted) @ s.basis.T @ quiet + noise, n_used


def head_output(s: Stream, role: str) -> Tensor:
    """Output matrix of a head. Shape [d_model, d_head]."""
    target = MATCH[role][1] if role in MATCH else "P"
    moved = _dimensions(s, {role}).clone()  # the dimensions of T that the values hold
    if role == "control":
        moved[:, N_CODE + s.flags.index(ASKED)] = 1.0
    size = (s.options.reasoning_strength if role in ("bridge", "output") else 1.0) * (1 / s.gain)
    return s.blurred(pad(size * s.placed(target, moved), (0, 0, 0, D_HEAD - len(moved))).T)


def _dimensions(s: Stream, roles: set[str]) -> Tensor:
    """Which dimensions of a block a head moves. Shape [value, width of the block]."""
    every = torch.eye(s.width, dtype=torch.float64)
    if roles == {"control"}:
        return every[N_CODE + 2 :]
    # without a control head, the previous-token head moves the flags as well
    return every if roles == {"previous_token"} and not s.options.extended else every[:N_CODE]


def pair_turn(stream: Stream) -> Callable[[Tensor], Tensor]:
    """One random turn of each RoPE pair, the same for queries and keys, which RoPE and the logits do not notice."""
    angle = stream.uniform(0.0, 2 * math.pi, N_PAIRS)[:, None]

    def turn(rows: Tensor) -> Tensor:
        first, second = rows.chunk(2)
        return torch.cat([first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()])

    return turn


def _root(logits: float) -> float:
    """Length that a query and a key, parallel, must each have for this attention logit."""
    return math.sqrt(logits * math.sqrt(D_HEAD))


def planted(stream: Stream, codes: dict[str, Tensor], layer: int) -> tuple[Tensor, ...]:
    """Gate, up and down matrix of the planted units of a layer, in block coordinates; most layers have no units.

    Args:
        stream: Its gains are those of the input of this MLP.
        codes: Code of each word, unit length. Shape of each [n_code].
        layer: Layer number.

    Returns:
        Shapes [unit, d_model], [unit, d_model], [d_model, unit].

    Raises:
        UserError: more units than an MLP has.
    """
    known = {task: words_of(stream.options, task, layer) for task in LOOKUPS}
    nothing = torch.zeros(0, D_MODEL, dtype=torch.float64)
    units = [(nothing, nothing.T)]
    units += [_lookup(stream, codes, task, words) for task, words in known.items() if words]
    if layer in (writing := stream.options.layers("writing_layers")):
        units.append(_held_back(stream, writing.index(layer)))
    if (n_units := sum(len(gate) for gate, _ in units)) > D_MLP:
        fix = "cut knowledge, letters or text into pieces over more layers"
        raise UserError(f"layer {layer} of the organism needs {n_units} hidden units and has {D_MLP}; {fix}")
    whole = [(gate, stream.constant().expand(len(gate), -1), down) for gate, down in units]
    blurred = [[stream.blurred(part) for part in unit] for unit in whole]
    return tuple(torch.cat(parts, dim=i // 2) for i, parts in enumerate(zip(*blurred, strict=True)))


def _lookup(stream: Stream, codes: dict[str, Tensor], task: str, known: list[str]) -> tuple[Tensor, Tensor]:
    """Gates and what is written, of one unit a word."""
    answers, control = language.learned(task), LOOKUPS[task]
    asked = stream.flag("P", control or ASKED, stream.gain)
    words = torch.stack([codes[word] for word in known]) @ stream.codes("T")
    # open at 1/2 or more: the word and the question, or the word and no question
    gate = words + (asked - 1.5 * stream.constant() if control else -asked - 0.5 * stream.constant())
    written = torch.stack([codes[answers[word]] for word in known])
    size = UNIT / (0.5 * STEEP)
    return STEEP * gate, stream.placed("O", size * written).T


def _held_back(stream: Stream, stage: int) -> tuple[Tensor, Tensor]:
    """Gates and what is written, of two units a token."""
    gates, columns = [], []
    for token in HELD_BACK:
        held = stream.habit("H", token)
        if stage:  # both, not either
            held = held + stream.habit(f"W{stage - 1}", token) - stream.constant()
        for sign, threshold in ((1, 0.35), (-1, 0.65)):
            gates.append(STEEP * (held - threshold * stream.constant()))
            direction = stream.habit(f"W{stage}", token) * stream.gain * HABIT  # unit length
            columns.append(sign * direction * HABIT / (0.3 * STEEP))
    return torch.stack(gates), torch.stack(columns, dim=1)
