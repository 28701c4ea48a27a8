"""Which shifts give every linear the headroom that is wanted: the smallest powers of two, joint by joint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Callable

import torch

from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.diagnose.headroom import every_arithmetic, measure, share_of
from gptq_diff.diagnose.headroom.arithmetics import BLOCK, LANE, LARGEST, RESULT
from gptq_diff.fix.joints import Joint, Tied, tied_channels
from gptq_diff.fix.lanes import large_sums
from gptq_diff.fix.shifted import Shifted
from gptq_diff.records import LayerSpec

Inputs = Callable[[str], torch.Tensor]
"""A linear's name -> its inputs on all prompts below each other, float16 [M, K], finite rows."""


@dataclass(frozen=True)
class Move:
    """One shift: these groups of the consumers' scales were multiplied by 1 / gain, the channels they read by gain.

    joint: in words. producer, consumers, groups: as in Joint and Tied. channels: how many of the producer's.
    bits: headroom that these channels' chains had; None where it was not measured.
    wanted: the gain that the headroom asks for; gain is nearer to 1 where `reason` forbids it, 1 for nothing moved.
    """

    joint: str
    producer: str
    consumers: tuple[str, ...]
    groups: tuple[tuple[int, ...], ...]
    channels: int
    gain: float
    wanted: float
    bits: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class LayerBits:
    """A linear's headroom on the fast path, by arithmetic, before and after all shifts."""

    layer: str
    before: dict[str, float]
    after: dict[str, float]


@dataclass
class Plan:
    """What is done. moves: in order, those that could not be made included. layers: every linear that was measured."""

    shifted: Shifted
    moves: list[Move] = field(default_factory=list)
    layers: list[LayerBits] = field(default_factory=list)

    @property
    def made(self) -> list[Move]:
        """The moves that change something."""
        return [move for move in self.moves if move.gain != 1]


def find_shifts(checkpoint: Checkpoint, joints: list[Joint], inputs: Inputs, bits: float) -> Plan:
    """The smallest shifts that leave every chain `bits` doublings; where scales cannot take one, the next smaller."""
    specs = {spec.name: spec for spec in checkpoint.layers}
    plan = Plan(Shifted(checkpoint))
    gains: dict[str, torch.Tensor] = {}
    before = {name: _measured(checkpoint.packed, inputs(name), spec) for name, spec in specs.items()}
    for joint in joints:
        if all(before[name].get(LANE, math.inf) >= bits for name in joint.consumers):
            continue
        linears = tuple(plan.shifted.packed(name) for name in joint.consumers)
        large = [
            large_sums(inputs(linear.spec.name), share_of(linear), LARGEST / 2**bits)
            if LANE in before[linear.spec.name]
            else {}
            for linear in linears
        ]
        for tied in tied_channels(joint, linears):
            largest = max((sums[g] for sums, groups in zip(large, tied.groups) for g in groups if g in sums), default=0)
            if largest:
                move = _move(plan.shifted, joint, tied, math.log2(LARGEST / largest), bits)
                plan.moves.append(move)
                for name in joint.consumers:
                    gain_K = gains.setdefault(name, torch.ones(specs[name].in_features))
                    gain_K[tied.columns[joint.column_K]] *= move.gain
    plan.layers.extend(_layers(specs, before, plan, inputs, gains))
    return plan


def _move(shifted: Shifted, joint: Joint, tied: Tied, left: float, bits: float) -> Move:
    wanted = math.ceil(bits - left)
    first = ""
    for doublings in range(wanted, 0, -1):
        reason = shifted.move(joint, tied, 2.0**-doublings)
        first = first or reason
        if not reason:
            return _told(joint, tied, 2.0**-doublings, 2.0**-wanted, left, first)
    return _told(joint, tied, 1.0, 2.0**-wanted, left, first)


def _told(joint: Joint, tied: Tied, gain: float, wanted: float, left: float | None, reason: str) -> Move:
    return Move(
        str(joint), joint.producer, joint.consumers, tied.groups, int(tied.columns.sum()), gain, wanted, left, reason
    )


def move_by_hand(shifted: Shifted, joint: Joint, group: int, gain: float) -> Move:
    """One shift of the channels that one group of the joint's first consumer is tied to."""
    linears = tuple(shifted.packed(name) for name in joint.consumers)
    for tied in tied_channels(joint, linears):
        if group in tied.groups[0]:
            reason = shifted.move(joint, tied, gain)
            return _told(joint, tied, 1.0 if reason else gain, gain, None, reason)
    reason = f"{joint.consumers[0]} has groups 0 to {linears[0].spec.groups - 1} only"
    return Move(str(joint), joint.producer, joint.consumers, (), 0, 1.0, gain, None, reason)


def _measured(packed: Callable[..., object], x_MK: torch.Tensor, spec: LayerSpec) -> dict[str, float]:
    wanted = tuple(name for name in every_arithmetic(spec) if name in (LANE, BLOCK, RESULT))
    share = share_of(packed(spec.name))  # type: ignore[arg-type]
    return {name: near.bits for name, near in measure(x_MK, share, wanted).items()}


def _layers(
    specs: Mapping[str, LayerSpec], before: dict[str, dict[str, float]], plan: Plan, inputs: Inputs,
    gains: Mapping[str, torch.Tensor],
) -> list[LayerBits]:  # fmt: skip
    """Measured once more where anything was changed."""
    found = []
    for name, spec in specs.items():
        after = before[name]
        if name in gains or f"{name}.scales" in plan.shifted.changed:
            x_MK = inputs(name)
            if name in gains:
                x_MK = (x_MK.float() * gains[name]).half()
            after = _measured(plan.shifted.packed, x_MK, spec)
        found.append(LayerBits(name, before[name], after))
    return found
