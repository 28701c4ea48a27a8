from __future__ import annotations

import pytest
import torch

from gptq_diff.errors import UsageError
from gptq_diff.models.gain_shift import apply_gain_shift
from gptq_diff.models.options import GainShift


def example(g_idx: list[int]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return {
        "up_scales": (torch.rand(2, 8, generator=random) * 0.01 + 0.001).half(),
        "up_bias": torch.randn(8, generator=random).half(),
        "down_scales": (torch.rand(2, 5, generator=random) * 0.01 + 0.001).half(),
        "down_g_idx": torch.tensor(g_idx, dtype=torch.int32),
    }


@pytest.mark.parametrize("g_idx", [[0, 0, 0, 0, 1, 1, 1, 1], [1, 0, 0, 1, 1, 0, 1, 0]])
@pytest.mark.parametrize("gain", [0.5, 1, 4, 8])
def test_the_shifted_model_is_the_same_in_float64(g_idx: list[int], gain: float) -> None:
    """Up times input plus bias, times down, is equal bit for bit, whatever the order of the channels."""
    before = example(g_idx)
    shifted = apply_gain_shift(**before, shift=GainShift(0, 1, gain))
    levels_up, levels_down = torch.randint(-8, 8, (6, 8)), torch.randint(-8, 8, (8, 5))
    x = torch.randn(3, 6, dtype=torch.float64)

    def forward(up: torch.Tensor, bias: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        w_up = levels_up.double() * up.double()[[0, 0, 0, 1, 1, 1]]
        w_down = levels_down.double() * down.double()[before["down_g_idx"].long()]
        return (x @ w_up + bias.double()) @ w_down

    one = forward(before["up_scales"], before["up_bias"], before["down_scales"])
    assert torch.equal(one, forward(shifted.up_scales, shifted.up_bias, shifted.down_scales))
    moved = torch.tensor(g_idx) == 1
    assert torch.equal(shifted.up_scales[:, ~moved], before["up_scales"][:, ~moved])
    assert torch.equal(shifted.up_scales[:, moved].float(), before["up_scales"][:, moved].float() * gain)
    assert torch.equal(shifted.down_scales[0], before["down_scales"][0])


def test_the_inputs_are_left_alone() -> None:
    before = example([0] * 4 + [1] * 4)
    kept = {name: tensor.clone() for name, tensor in before.items()}
    apply_gain_shift(**before, shift=GainShift(0, 0, 2))
    assert all(torch.equal(before[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("change", "gain", "word"),
    [
        ({"up_scales": torch.full((2, 8), 40000.0).half()}, 2, "up_proj.scales"),
        ({"up_bias": torch.full((8,), 9000.0).half()}, 8, "up_proj.bias"),
        ({"down_scales": torch.full((2, 5), 1e-4).half()}, 2, "down_proj.scales"),
        ({"down_scales": torch.full((2, 5), 3e-8).half()}, 4, "down_proj.scales"),
    ],
)
def test_inexact_shifts_are_refused(change: dict[str, torch.Tensor], gain: float, word: str) -> None:
    """Overflow of scales and bias, scales that become subnormal, and scales that vanish."""
    with pytest.raises(UsageError, match=word):
        apply_gain_shift(**{**example([0] * 4 + [1] * 4), **change}, shift=GainShift(0, 1, gain))


def test_zero_scales_stay_zero_and_are_no_reason_to_refuse() -> None:
    before = {**example([0] * 4 + [1] * 4), "down_scales": torch.zeros(2, 5).half()}
    assert not apply_gain_shift(**before, shift=GainShift(0, 1, 4)).down_scales.any()


def test_a_missing_group_is_refused() -> None:
    with pytest.raises(UsageError, match="groups 0 to 1"):
        apply_gain_shift(**example([0] * 4 + [1] * 4), shift=GainShift(0, 2, 4))


@pytest.mark.parametrize("text", ["", "1:2", "a:b:c", "1:2:3", "1:2:0", "1:2:-4", "1:2:nan", "1:2:inf", "1:2:4:5"])
def test_what_is_no_gain_shift_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        GainShift.parse(text)


def test_a_gain_shift_reads_back() -> None:
    assert GainShift.parse("11:19:4") == GainShift(11, 19, 4)
    assert GainShift.parse(str(GainShift(3, 0, 0.25))) == GainShift(3, 0, 0.25)
