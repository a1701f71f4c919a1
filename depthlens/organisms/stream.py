"""The residual stream of an organism: its blocks, what reads and writes them, and the random numbers that hide them.

The stream is cut into blocks: token T, previous token P, bridge R, output O, and D, which nothing reads. Each has
m = d_head / 2 dimensions for the codes of words and one for each control token. One more dimension is constant and
large, so that RMSNorm is nearly a fixed gain, which is measured layer by layer while the layers are filled bottom-up.
An organism that holds back tokens has more blocks, of one dimension for each of these tokens: H says which of them a
word makes likely, W0, W1, ... which of them each layer that holds them back has seen to.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from depthlens.organisms import language
from depthlens.organisms.options import Options

N_HEADS, D_MODEL, D_HEAD, D_MLP = 4, 256, 64, 256
N_CODE = D_HEAD // 2
BLOCKS = ("T", "P", "R", "O", "D")
CONSTANT_SIZE = 24.0
UNIT = 8.0  # amplitude of a block; noise is measured in it
HABIT = 12.0  # amplitude of H and W
HELD_BACK = (language.SEP, language.QA, language.QB, language.EOS)  # tokens that are no answer


class Draw:
    """Random matrices from one seeded stream. Float64, so that rounding to float32 comes last."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, low: float, high: float, n: int) -> Tensor:
        """Shape [n]."""
        return low + (high - low) * torch.rand(n, generator=self.generator, dtype=torch.float64)

    def rotation(self, n: int) -> Tensor:
        """Shape [n, n]."""
        q, r = torch.linalg.qr(self.normal(n, n))
        return q * r.diagonal().sign()

    def codes(self, n: int, dim: int, steps: int = 400) -> Tensor:
        """Unit vectors, the largest inner product of any two pushed down to about 0.1. Shape [n, dim]."""
        x = torch.nn.functional.normalize(self.normal(n, dim), dim=1)
        for step in range(steps):
            nearest = torch.softmax(100 * (x @ x.T).fill_diagonal_(-torch.inf), dim=1)
            x = torch.nn.functional.normalize(x - 0.3 * (1 - step / steps) * nearest @ x, dim=1)
            # steps enlarge differences: the last bits of a machine's products would give each machine codes of its own
            x = x.round(decimals=6)
        return x


class Stream:
    """Rows that read the stream and columns that write it, in block coordinates; ``basis`` turns them into the model's.

    Attributes:
        flags: Control tokens, in the order of their dimensions.
        gain: What RMSNorm multiplies by where rows are read now, and
        bos_gain: the same at ``<bos>``, which has a norm of its own.
    """

    def __init__(self, options: Options) -> None:
        self.options, self.draw = options, Draw(options.seed)
        self.flags = language.FLAGS + (language.MORE_FLAGS if options.extended else ())
        self.width = N_CODE + len(self.flags)
        self.start = {name: i * self.width for i, name in enumerate(BLOCKS)}
        self.constant_at = self.width * len(BLOCKS)  # the dimension after the blocks
        used = self.constant_at + 1
        if n_writing := len(options.layers("writing_layers")):
            for name in ("H", *(f"W{stage}" for stage in range(n_writing))):
                self.start[name] = used
                used += len(HELD_BACK)
        self.basis = self.draw.rotation(D_MODEL)  # the rest of the stream is free
        self.leak = torch.ones(D_MODEL, 1, dtype=torch.float64)
        self.leak[:used] = options.leak
        self.gain = self.bos_gain = 1.0

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
        row = torch.zeros(1, self.width, dtype=torch.float64)
        row[0, N_CODE + self.flags.index(token)] = 1 / (UNIT * gain)
        return self.placed(block, row)[0]

    def constant(self) -> Tensor:
        """Reads 1 everywhere. Shape [d_model]."""
        row = torch.zeros(D_MODEL, dtype=torch.float64)
        row[self.constant_at] = 1 / (CONSTANT_SIZE * self.gain)
        return row

    def habit(self, block: str, token: str) -> Tensor:
        """Reads 1 where H or a W has a token that is held back. Shape [d_model]."""
        row = torch.zeros(1, len(HELD_BACK), dtype=torch.float64)
        row[0, HELD_BACK.index(token)] = 1 / (HABIT * self.gain)
        return self.placed(block, row)[0]

    def normal_rows(self, n: int) -> Tensor:
        """Random rows of about unit length. Shape [n, d_model]."""
        return self.draw.normal(n, D_MODEL) / math.sqrt(D_MODEL)

    def blurred(self, matrix: Tensor) -> Tensor:
        """A matrix with the noise of planted weights."""
        size = self.options.eps * matrix.norm() / math.sqrt(matrix.numel())
        return matrix + size * self.draw.normal(*matrix.shape)


def rounded(value: float) -> float:
    """Four digits of a measured number, so that the last bits of a machine's sums do not reach the weights."""
    return float(f"{value:.4g}")


def measured_gain(x: Tensor) -> float:
    """What RMSNorm multiplies by, on average. Shape of ``x`` [prompt, pos, d_model]."""
    return rounded(x.double().pow(2).mean(-1).rsqrt().mean().item())
