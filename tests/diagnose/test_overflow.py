"""Lost outputs are put down to the arithmetic that loses just these."""

from __future__ import annotations

import numpy as np
import torch

from gptq_diff.kernels.hgemm_model import simulate_reconstruct
from gptq_diff.kernels.sim_exllama import SimExllama
from tests.diagnose.build import explained, inputs, make, product


def test_fused_lanes_with_the_channel_the_code_and_the_sum() -> None:
    """One activation of 9,000: infinite in the columns whose code there is -8, and nowhere else."""
    d, x = make("model.layers.0.mlp.down_proj", 512), inputs(5)
    x[2, 77] = 9000.0
    y = SimExllama().multiply(x, d.linear).y_MN
    assert not bool(torch.isfinite(y).all())
    (found,) = explained(y, x, d, path="exllama-fast")
    assert found.cause == "accumulator-overflow"
    text = "\n".join(found.evidence)
    assert "row 2" in text
    assert "channel 77 holds an activation of 9,000" in text
    assert "a code of -8 passes 65,504" in found.summary
    assert "just these" in text


def test_a_half_accumulator_of_scaled_products() -> None:
    """Two activations whose products cancel: the running sum passes 65,504 between them."""
    d, x = make("model.layers.0.mlp.down_proj", 512), inputs(3)
    d.codes[8], d.codes[200] = 15, 1
    d.scales[:] = 0.5
    rebuilt = type(d.linear)(**{
        **vars(d.linear), "qweight": _pack(d.codes), "scales": d.scales.half(),
    })  # fmt: skip
    d.linear = rebuilt
    x[1, 8], x[1, 200] = 25000.0, 25000.0
    y = torch.from_numpy(simulate_reconstruct(x.numpy(), d.weight().half().numpy()))
    assert not bool(torch.isfinite(y).all())
    (found,) = explained(y, x, d, path="exllama-reconstruct")
    assert found.cause == "accumulator-overflow"
    assert "scaled products" in found.summary


def test_marlin_with_one_group_narrows_the_unscaled_sum() -> None:
    """The exact answer is the sum times a small scale; the sum itself does not fit."""
    d, x = make("model.layers.0.mlp.down_proj", 512, group_size=512), inputs(4)
    x[0, 100] = 12000.0
    sums = x.double().numpy() @ (d.codes.double() - 8).numpy()
    y = product(x, d.weight())
    y[torch.from_numpy(np.abs(sums) >= 65520)] = float("inf")
    assert not bool(torch.isfinite(y).all())
    (found,) = explained(y, x, d, path="marlin")
    assert found.cause == "accumulator-overflow"
    assert "unscaled sum" in found.summary


def test_lost_outputs_that_no_arithmetic_has_are_unknown() -> None:
    """Infinities sprinkled over a healthy product."""
    d, x = make("model.layers.0.mlp.down_proj", 512), inputs(4)
    y = product(x, d.weight())
    y[0, 3] = y[2, 90] = float("inf")
    (found,) = explained(y, x, d)
    assert found.cause == "unknown"
    assert "2 outputs are infinite or NaN" in found.evidence[0]


def _pack(codes: torch.Tensor) -> torch.Tensor:
    from gptq_diff.checkpoint.packing import pack_rows

    return pack_rows(codes, 4)
