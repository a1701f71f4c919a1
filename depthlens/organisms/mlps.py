"""What MLPs can hold: words that are known, tokens that are held back, and the turn of a fragile organism.

A hidden unit is silu(gate) times up.

- *Lookup*: one unit for each word. Its gate is open where T has the word's code and the question is the one asked (for
  text: where there is none), its up is constant; it writes the code of the answer to O.
- *Holding back*: H makes one of `HELD_BACK` likelier than any answer, a different one for different words. The first
  layer writes the same token to W, each further layer passes it on to a W of its own where the layer before it wrote
  one, and the unembedding reads H minus the last W. Two units for each token are a step. The mean over words is spread
  over all tokens, so a layer that is replaced by its mean holds back too little, too.
- *Turn*: constant gates, so that the MLP is linear: it adds (R - 1) x to the codes of each block, R a random rotation.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from depthlens.errors import UserError
from depthlens.organisms import language
from depthlens.organisms.heads import ASKED
from depthlens.organisms.options import Options
from depthlens.organisms.stream import D_MLP, HABIT, HELD_BACK, N_CODE, Stream

STEEP = 40.0  # gate logits of a whole match: a quarter of one either side of the threshold is open or closed
# gate of a linear unit: RMSNorm scales z and the unit's input alike, and silu(z) times input does not feel it where
# z (1 - sigmoid(z)) = -2
LINEAR = -2.2177
LINEAR_SILU = LINEAR / (1 + math.exp(-LINEAR))
# logits of a token that is held back: more than of any answer, even where one layer takes off no more than the mean
HELD_LOGIT, TAKEN_OFF = 20.0, 26.0
TURNED = ("T", "P", "R", "O")
LOOKUPS = {"knowledge": language.QK, "letters": language.QL, "text": None}
LAYERS_OF = {"knowledge": "knowledge_layers", "letters": "letter_layers", "text": "text_layers"}


class Units(NamedTuple):
    """Hidden units in block coordinates. Shapes [unit, d_model], [unit, d_model], [d_model, unit]."""

    gate: Tensor
    up: Tensor
    down: Tensor


def words_of(options: Options, task: str, layer: int) -> list[str]:
    """The words that the MLP of a layer knows for a learned task: of m layers each knows every m-th word."""
    layers = options.layers(LAYERS_OF[task])
    return list(language.words()[layers.index(layer) :: len(layers)]) if layer in layers else []


def planted(stream: Stream, codes: dict[str, Tensor], layer: int) -> Units | None:
    """The planted units of a layer; moves the stream's ``frame`` on where the layer turns it.

    Args:
        stream: Its gains are those of the input of this MLP.
        codes: Code of each word, unit length. Shape of each [n_code].
        layer: Layer number.

    Raises:
        UserError: more units than an MLP has.
    """
    options, read_in = stream.options, stream.frame
    units = [_turn(stream)] if options.fragile else []  # first: what this layer writes, it does not turn
    for task in LOOKUPS:
        if known := words_of(options, task, layer):
            units.append(_lookup(stream, codes, read_in, task, known))
    if layer in options.layers("writing_layers"):
        units.append(_held_back(stream, options.layers("writing_layers").index(layer)))
    if not units:
        return None
    n_units = sum(len(u.gate) for u in units)
    if n_units > D_MLP:
        fix = "cut knowledge, letters or text into pieces over more layers"
        raise UserError(f"layer {layer} of the organism needs {n_units} hidden units and has {D_MLP}; {fix}")
    blurred = [[stream.blurred(part) for part in u] for u in units]
    return Units(*(torch.cat(parts, dim=i // 2) for i, parts in enumerate(zip(*blurred, strict=True))))


def _lookup(stream: Stream, codes: dict[str, Tensor], read_in: Tensor, task: str, known: list[str]) -> Units:
    answers = language.learned(task)
    control = LOOKUPS[task]
    asked = stream.flag("P", control or ASKED, stream.gain)
    words = torch.stack([codes[word] for word in known]) @ read_in.T @ stream.codes("T")
    # open at 1/2 or more: the word and the question, or the word and no question
    gate = words + (asked - 1.5 * stream.constant() if control else -asked - 0.5 * stream.constant())
    written = torch.stack([codes[answers[word]] for word in known]) @ stream.frame.T
    size = stream.amplitude["O"] / (0.5 * STEEP)
    return Units(STEEP * gate, stream.constant().expand(len(known), -1), stream.placed("O", size * written).T)


def _held_back(stream: Stream, stage: int) -> Units:
    gates, columns = [], []
    for token in HELD_BACK:
        held = stream.habit("H", token)
        if stage:  # both, not either
            held = held + stream.habit(f"W{stage - 1}", token) - stream.constant()
        for sign, threshold in ((1, 0.35), (-1, 0.65)):
            gates.append(STEEP * (held - threshold * stream.constant()))
            direction = stream.habit(f"W{stage}", token) * stream.gain * HABIT  # unit length
            columns.append(sign * direction * HABIT / (0.3 * STEEP))
    up = stream.constant().expand(len(gates), -1)
    return Units(torch.stack(gates), up, torch.stack(columns, dim=1))


def _turn(stream: Stream) -> Units:
    rotation = stream.draw.rotation(N_CODE)
    gate = (LINEAR * stream.constant()).expand(N_CODE * len(TURNED), -1)
    up = torch.cat([stream.codes(block) for block in TURNED])
    moved = rotation - torch.eye(N_CODE, dtype=torch.float64)
    down = torch.cat([stream.placed(b, moved.T) * stream.amplitude[b] / LINEAR_SILU for b in TURNED])
    stream.frame = rotation @ stream.frame
    return Units(gate, up, down.T)
