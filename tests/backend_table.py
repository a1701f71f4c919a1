"""Which backend applies which condition on which family, measured; ``python tests/backend_table.py`` writes it.

A cell is the largest difference of any logit from `surgery.cut`, a model with the part really cut out; "not supported"
where the backend refuses the family. The table stands between two markers in docs/equality.md.
"""

import os
from contextlib import suppress
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import surgery
import tiny
import torch

from depthlens import backends
from depthlens.ablations import BASELINE, parse_condition
from depthlens.engine import prefix_tree, wavefront
from depthlens.engine.references import measure_means, sample
from depthlens.errors import UserError

DOCS = Path(__file__).parents[1] / "docs" / "equality.md"
BEGIN, END = "<!-- backend table: begin -->", "<!-- backend table: end -->"
# float32 rounding of one order of operations against another, over five layers with logits of order 10
TOLERANCE = 1e-4
SITES = {"layer": "L2", "attn": "L2.attn", "mlp": "L2.mlp", "head": "L2.H1", "KV": "L2.KV0"}
KINDS = {
    **{f"{s} {m}".strip(): text + m for s, text in SITES.items() for m in ("", "@mean", "@resample")},
    "block": "L1-2",
    "sum": "L0.H1+L2.attn+L3",
    **{"layer [1:]": "L2[1:]", "head [1:]@mean": "L2.H1[1:]@mean", "layer @noise": "L2@noise"},
    **{"attn @noise": "L2.attn@noise3", "mlp @noise": "L2.mlp@noise", "head @noise": "L2.H1@noise"},
    "KV [1:]@noise": "L2.KV0[1:]@noise",
    "sum [n:]": "L0.H1[1:]+L1.attn[3:]+L2[2:]@mean+L3.KV0@mean+L4.mlp",
    "nested": "L0.H1@noise+L1.attn[3:]+L2[2:]@mean+L2.mlp@noise+L3.KV0@noise",
}
WAYS = {"torch, wavefront": "torch", "torch, whole passes": "torch"}
WAYS |= {name: name for name in ("transformer_lens", "nnsight")}
TOKENS = torch.randint(0, 256, (9,), generator=torch.Generator().manual_seed(0))
N_CONTEXT = 6  # of TOKENS; the others are an answer
REFERENCE = [[*TOKENS.tolist(), 9, 8, 7, 6], [1, 2, 3, 5]]  # texts for the means
SAMPLE = [7, 80, 33, 120, 9, 41]  # prompt for resampling, shorter than TOKENS
Table = dict[str, dict[str, dict[str, float | None]]]  # way, family, kind


def reference_of(lens):
    """What @mean and @resample put in place."""
    return sample(lens, measure_means(lens, REFERENCE, "two texts"), SAMPLE)


def logits(way: str, lens, means, conditions):
    """Logits of TOKENS under each condition. Shape [condition, pos, d_vocab]."""
    if way == "torch, wavefront":
        tokens = TOKENS.tolist()
        (packed,) = prefix_tree.pack([tokens], 4096)
        states = wavefront.Wavefront(lens, means, 4096, packed, conditions, packed.paths[0]).run()
        return lens.arch.unembed(lens.arch.final_norm(states))
    return batch_logits(backends.get(WAYS[way], lens, means), conditions)


def batch_logits(backend, conditions):
    """Logits of TOKENS under each condition, one batch. Shape [condition, pos, d_vocab]."""
    rows = TOKENS.repeat(len(conditions), 1)
    wanted = [range(len(TOKENS))] * len(rows)
    out, _ = backend.forward(rows, torch.ones_like(rows), conditions, positions=wanted)
    return torch.stack(out)


@cache
def measure(family: str, kinds: tuple[str, ...] = tuple(KINDS)) -> dict[str, dict[str, float | None]]:
    """Largest difference from the model that was cut, per way and kind; None where the family is refused."""
    lens = surgery.rough_lens(family)
    means = reference_of(lens)
    conditions = [BASELINE, *(parse_condition(KINDS[kind]) for kind in kinds)]
    found: dict[str, dict[str, float | None]] = {}
    for way, drift in drifts(lens, conditions, means).items():
        assert drift is None or drift[0] < TOLERANCE, f"{way}, {family}, baseline: {drift[0]:.1e}"
        found[way] = dict(zip(kinds, drift[1:].tolist(), strict=True)) if drift is not None else dict.fromkeys(kinds)
    return found


def drifts(lens, conditions, means):
    """Largest difference of each condition, the baseline first, from the model that was cut, per way.

    None where the family is refused.
    """
    reference = torch.stack([surgery.logits(lens, c, means, TOKENS) for c in conditions])
    assert (reference[1:] - reference[0]).abs().amax((1, 2)).min() > 0.1, "a condition changes hardly anything"
    found: dict[str, torch.Tensor | None] = {}
    for way in WAYS:
        with suppress(UserError):
            found[way] = (logits(way, lens, means, conditions) - reference).abs().amax((1, 2))
    return dict.fromkeys(WAYS) | found


def render(table: Table) -> str:
    """The tables as markdown, one a way."""
    lines = []
    for way, families in table.items():
        lines += [f"\n`{way}`\n", "| family | " + " | ".join(KINDS) + " |", "|---" * (len(KINDS) + 1) + "|"]
        for family, cells in families.items():
            texts = ["not supported" if v is None else f"{v:.0e}" if v else "0" for v in cells.values()]
            lines.append(f"| {family} | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n"


def whole() -> Table:
    """Every family, by way."""
    return {way: {family: measure(family)[way] for family in tiny.FAMILIES} for way in WAYS}


if __name__ == "__main__":
    torch.set_num_threads(1)
    before, rest = DOCS.read_text().split(BEGIN)
    DOCS.write_text(before + BEGIN + "\n" + render(whole()) + END + rest.split(END)[1])
    print(f"Wrote {DOCS}")
