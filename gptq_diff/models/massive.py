"""How the random models come to have a massive activation on the first token, as real models do.

Real models put a huge value into one down_proj input channel on the first token (Sun et al., "Massive Activations in
Large Language Models", https://arxiv.org/abs/2402.17762; in SmolLM2-135M it is 2900). Here it is planted:

- A few channels of the residual stream are reserved: linears neither read nor write them but as said below.
- OWN is 1 in the embeddings of tokens that can begin a prompt (`qwen_tokenizer.openers`), 0 elsewhere. LEVEL is 1.9
  in every embedding. Rows of the embedding have a root mean square of exactly 1.
- In block 0 query head 0 is zero, so it attends to all tokens so far alike; it copies OWN into channel MEAN, which
  then holds the share of openers up to here: 1 at the first position.
- One column of gate_proj reads OWN + MEAN - LEVEL, which is 0.1 on the first token and at most 0 wherever less than
  nine tenths of the text so far are openers; up_proj reads OWN + MEAN. Scaled to 55 each, their product is about 3000
  on the first token and nothing elsewhere. (A prompt that starts with a space, a line end or the name of a role has
  none; openers that follow each other at the start, say the pieces of a long word, all have it.)
- down_proj writes that channel to the SINK channels alone, with opposite signs in even and odd blocks, so that the
  residual stream stays small over any number of blocks.

The norm before the MLP is scaled up at OWN, MEAN and LEVEL by the root mean square that the first token is expected
to have there, so that every block sees the same values. Measured in float32: 2900 to 3300 in the tiny model's four
blocks, 2400 to 3300 in 64 blocks of the 32B's width. A narrow model of more than eight blocks drifts down to 600,
because there the SINK is most of the root mean square.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from gptq_diff.models.random_qwen_shape import QwenShape
from gptq_diff.records import LayerSpec

OWN, MEAN, LEVEL, FIRST_SINK = 0, 1, 2, 3
LEVEL_VALUE = 1.8994140625  # the float16 nearest 1.9
MASSIVE = 3000.0  # the planted activation
ATTENTION_RMS = 0.2  # what o_proj and down_proj add to every other channel of the residual stream
MLP_RMS = 0.2
_SINK_SCALE = 6e-4  # an eighth of it is still a normal float16, so gain shifts up to 8 are exact there


@dataclass(frozen=True)
class Entry:
    """One planted weight: level * scale at [row, column], with that scale for its whole group and column."""

    row: int
    column: int
    level: int
    scale: float


@dataclass(frozen=True)
class Plan:
    """What is planted into one random linear: rows and columns that become zero, then single weights."""

    zero_rows: tuple[int, ...] = ()
    zero_columns: tuple[int, ...] = ()
    entries: tuple[Entry, ...] = ()


def sinks(shape: QwenShape) -> range:
    """The SINK channels: one in 640."""
    return range(FIRST_SINK, FIRST_SINK + max(1, shape.hidden // 640))


def full_level(bits: int) -> int:
    """The code - zero that planted weights use: 7, or the largest there is below 4 bits."""
    return min(7, (1 << (bits - 1)) - 1)


def plan_for(part: str, spec: LayerSpec, shape: QwenShape, block: int) -> Plan:
    """What is planted into the linear `part` of that block."""
    reserved = (OWN, MEAN, LEVEL, *sinks(shape))
    level, column = full_level(spec.bits), shape.massive_channel
    if part == "mlp.gate_proj":
        slope = math.sqrt(MASSIVE) / (2 - LEVEL_VALUE) / level
        return Plan(reserved, (column,), _sum(column, slope, {OWN: level, MEAN: level, LEVEL: -level}))
    if part == "mlp.up_proj":
        return Plan(reserved, (column,), _sum(column, math.sqrt(MASSIVE) / 2 / level, {OWN: level, MEAN: level}))
    if part == "mlp.down_proj":
        sign = 1 if block % 2 else -1
        return Plan((column,), reserved, tuple(Entry(column, n, sign * level, _SINK_SCALE) for n in sinks(shape)))
    if block == 0 and part == "self_attn.q_proj":
        return Plan(reserved, tuple(range(shape.head_dim)))
    if block == 0 and part == "self_attn.v_proj":
        return Plan(reserved, (0,), (Entry(OWN, 0, level, 1 / level),))
    if part == "self_attn.o_proj":
        return Plan((), reserved, (Entry(0, MEAN, level, 1 / level),) if block == 0 else ())
    return Plan(reserved)


def first_token_rms(shape: QwenShape, block: int, bits: int) -> float:
    """The expected root mean square of the residual stream on the first token, before the MLP of that block."""
    grown = ATTENTION_RMS**2 * (block + 1) + MLP_RMS**2 * block
    sunk = full_level(bits) * _SINK_SCALE * MASSIVE if block % 2 else 0.0
    return math.sqrt(1 + grown + (1 + len(sinks(shape)) * sunk**2) / shape.hidden)


def _sum(column: int, scale: float, levels: dict[int, int]) -> tuple[Entry, ...]:
    return tuple(Entry(row, column, level, scale) for row, level in levels.items())
