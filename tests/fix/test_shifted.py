"""Moving powers of two between neighbours: the function stays the same bit for bit, or nothing is changed at all."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.fix.joints import Joint, Tied, tied_channels
from gptq_diff.fix.plan import move_by_hand
from gptq_diff.fix.shifted import Shifted
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors

K, HIDDEN, N, GROUP = 32, 64, 8, 16
"""up: [K, HIDDEN]; down: [HIDDEN, N], of HIDDEN / GROUP groups."""
UP, DOWN, NORM = "mlp.up_proj", "mlp.down_proj", "norm.weight"
GAINS = st.sampled_from([2.0**n for n in range(-6, 7) if n])


class TwoLinears:
    """What Shifted reads of a checkpoint: a norm, and two linears of which one reads the other."""

    def __init__(self, g_idx: list[int] | None = None, *, bias: bool = False) -> None:
        self.tensors = linear_tensors(UP, K, HIDDEN, group_size=GROUP, seed=1, bias=bias)
        self.tensors |= linear_tensors(DOWN, HIDDEN, N, group_size=GROUP, seed=2, g_idx=g_idx)
        self.tensors[NORM] = torch.linspace(0.5, 1.5, HIDDEN).half()
        self._bias = bias

    def packed(self, name: str) -> PackedLinear:
        k, n = (K, HIDDEN) if name == UP else (HIDDEN, N)
        spec = LayerSpec(name, k, n, 4, GROUP, True, name == DOWN, "gptq", self._bias and name == UP)
        parts = (self.tensors[f"{name}.{part}"] for part in ("qweight", "qzeros", "scales", "g_idx"))
        return PackedLinear(spec, *parts, self.tensors.get(f"{name}.bias"))

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]


def shifted(two: TwoLinears) -> Shifted:
    return Shifted(cast(Checkpoint, two))


def weights(of: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return dequantise(of.packed(UP), torch.float64), dequantise(of.packed(DOWN), torch.float64)


JOINT = Joint(UP, (DOWN,), torch.arange(HIDDEN))
ORDERS = st.permutations([group for group in range(HIDDEN // GROUP) for _ in range(GROUP)])


@settings(max_examples=40, deadline=None)
@given(g_idx=ORDERS, moves=st.lists(st.tuples(st.integers(0, HIDDEN // GROUP - 1), GAINS), max_size=6))
def test_the_product_of_both_is_the_same_whatever_is_moved(g_idx: list[int], moves: list[tuple[int, float]]) -> None:
    """Column c of up times row c of down, for every c, in exact arithmetic; up is what the moves that were made say."""
    two = TwoLinears(g_idx)
    now = shifted(two)
    total = dict.fromkeys(range(HIDDEN // GROUP), 1.0)
    for group, gain in moves:
        total[group] *= move_by_hand(now, JOINT, group, gain).gain
    (up, down), (new_up, new_down) = weights(two), weights(now)
    assert torch.equal(up[:, :, None] * down, new_up[:, :, None] * new_down)
    assert torch.equal(new_up, up * torch.tensor([total[group] for group in g_idx], dtype=torch.float64))


@pytest.mark.parametrize("gain", [2.0**-14, 2.0**20])
def test_what_scales_cannot_take_changes_nothing(gain: float) -> None:
    """Subnormal on one side or infinite on the other: the reason is told, and every tensor is as it was."""
    two = TwoLinears()
    now = shifted(two)
    move = move_by_hand(now, JOINT, 1, gain)
    assert "would overflow, lose bits or become subnormal" in move.reason
    assert (move.gain, move.wanted) == (1.0, gain)
    assert now.changed == {}


def test_a_move_says_what_it_did() -> None:
    """The groups of the consumer, and how many channels of the producer follow."""
    move = move_by_hand(shifted(TwoLinears()), JOINT, 2, 0.25)
    assert (move.producer, move.consumers, move.groups, move.channels) == (UP, (DOWN,), ((2,),), GROUP)
    assert (move.gain, move.reason) == (0.25, "")


def test_a_group_that_is_not_there() -> None:
    move = move_by_hand(shifted(TwoLinears()), JOINT, 4, 0.5)
    assert move.reason == f"{DOWN} has groups 0 to 3 only"
    assert move.gain == 1.0


def test_the_producers_bias_moves_with_its_columns() -> None:
    """Else the activation would be another one by the bias times the gain."""
    two = TwoLinears(bias=True)
    now = shifted(two)
    move_by_hand(now, JOINT, 0, 4.0)
    before, after = two.tensors[f"{UP}.bias"], now.changed[f"{UP}.bias"]
    assert torch.equal(after[:GROUP], before[:GROUP] * 4)
    assert torch.equal(after[GROUP:], before[GROUP:])
    packed = now.packed(UP)
    assert packed.bias is not None
    assert torch.equal(packed.bias, after)


def test_a_norms_weight_is_a_producer_too() -> None:
    """Its channels are multiplied, and the consumer's groups divided; the norm's other channels stay."""
    two = TwoLinears()
    now = shifted(two)
    joint = Joint(NORM, (DOWN,), torch.arange(HIDDEN))
    (first, *_) = tied_channels(joint, (two.packed(DOWN),))
    assert isinstance(first, Tied)
    assert now.move(joint, first, 0.5) == ""
    assert torch.equal(now.tensor(NORM)[:GROUP], two.tensors[NORM][:GROUP] / 2)
    assert torch.equal(now.tensor(NORM)[GROUP:], two.tensors[NORM][GROUP:])
    assert torch.equal(now.tensor(f"{DOWN}.scales")[0], two.tensors[f"{DOWN}.scales"][0] * 2)
