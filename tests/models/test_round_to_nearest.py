from __future__ import annotations

import pytest
import torch

from gptq_diff.models.options import QuantFormat
from gptq_diff.models.round_to_nearest import quantise_linear
from tests.models.decode import decode


def tensors_of(linear) -> dict[str, torch.Tensor]:
    return {f"w.{part}": getattr(linear, part) for part in ("qweight", "qzeros", "scales", "g_idx")}


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("sym", [True, False])
@pytest.mark.parametrize("desc_act", [True, False])
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_every_weight_is_within_half_a_step(bits: int, sym: bool, desc_act: bool, group_size: int) -> None:
    """The decoded weight is the given one to half a scale; the extreme of a symmetric group, to a whole one."""
    quant = QuantFormat(bits, group_size, sym, desc_act, "gptq", False)
    w_NK = torch.randn(32, 96, generator=torch.Generator().manual_seed(bits))
    linear = quantise_linear("m.w", w_NK, quant, seed=3)
    tensors = tensors_of(linear)
    assert linear.scales.dtype == torch.float16
    assert linear.scales.shape[0] == {32: 3, 64: 2, -1: 1}[group_size]
    got = torch.from_numpy(decode(tensors, "w", bits))
    step = linear.scales.double()[linear.g_idx.long()]
    error = (got - w_NK.T.double()).abs() / step
    assert float(error.max()) <= 1.02  # the shortened range and the rounding of scales
    assert float((error <= 0.51).double().mean()) > 0.9


def test_the_symmetric_4_bit_formula() -> None:
    """scale = max|w| / 7.5 in float16, code = round(w / scale) + 8 within 0 to 15, computed here weight by weight."""
    w_NK = torch.randn(8, 128, generator=torch.Generator().manual_seed(0))
    linear = quantise_linear("m.w", w_NK, QuantFormat(4, 64, True, False, "gptq", False), seed=0)
    got = decode(tensors_of(linear), "w", 4)
    for n in range(8):
        for group in range(2):
            members = w_NK[n, group * 64 : group * 64 + 64].tolist()
            scale = float(torch.tensor(max(map(abs, members)) / 7.5).half())
            for k, weight in enumerate(members):
                code = min(15, max(0, round(weight / scale) + 8))
                assert got[group * 64 + k, n] == (code - 8) * scale


def test_a_group_of_zeros_stays_zero() -> None:
    linear = quantise_linear("m.w", torch.zeros(8, 64), QuantFormat(4, 64, True, False, "gptq", False), seed=0)
    assert not decode(tensors_of(linear), "w", 4).any()


def test_linears_that_share_an_input_share_g_idx() -> None:
    """Engines fuse q, k, v and gate, up, and keep one g_idx for each."""
    quant = QuantFormat(4, 32, True, True, "gptq", False)
    made = {
        part: quantise_linear(f"model.layers.0.{part}", torch.randn(32, 64), quant, seed=0).g_idx
        for part in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj")
    }
    assert torch.equal(made["self_attn.q_proj"], made["self_attn.k_proj"])
    assert torch.equal(made["self_attn.q_proj"], made["self_attn.v_proj"])
    assert not torch.equal(made["self_attn.q_proj"], made["self_attn.o_proj"])
    assert not torch.equal(made["self_attn.q_proj"], made["mlp.up_proj"])
    assert made["self_attn.q_proj"].tolist() != sorted(made["self_attn.q_proj"].tolist())
    assert sorted(made["self_attn.q_proj"].tolist()) == [0] * 32 + [1] * 32
