"""The oracle: what W x is, for rows captured by any backend, from one dequantisation of the layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.kernels.exact import wide_product

STRIP = 512
"""Rows of W that are widened to float64 at a time, into the same memory: fresh pages cost more than the sums."""


@dataclass(frozen=True)
class Rows:
    """Stacked rows of one layer from many calls.

    x_MK: float32 [M, K], rows with a non-finite value set to zero. wide_M: bool, rows captured as float32.
    finite_M: bool, rows whose x was finite.
    """

    x_MK: torch.Tensor
    wide_M: torch.Tensor
    finite_M: torch.Tensor


def stack_inputs(inputs: list[torch.Tensor]) -> Rows:
    """Stack captured inputs ([m, K], float16 or float32) below each other."""
    x_MK = torch.cat([x.to(torch.float32) for x in inputs])
    wide = torch.tensor([x.dtype == torch.float32 for x in inputs])
    wide = wide.repeat_interleave(torch.tensor([x.shape[0] for x in inputs])).to(x_MK.device)
    sums = x_MK.abs().amax(dim=1) if x_MK.shape[1] else x_MK.new_zeros(x_MK.shape[0])
    finite = torch.isfinite(sums)
    if not bool(finite.all()):
        x_MK[~finite] = 0.0
    return Rows(x_MK, wide, finite)


def exact_product(rows: Rows, w_KN: torch.Tensor) -> torch.Tensor:
    """float32 [M, N]: x W; rows captured as float32 are multiplied in float64, so that they can be judged too.

    float32 accumulation errs by about 1e-7 of the products' norm, far below any float16 kernel; the float32
    reference itself needs a better judge than itself. On a GPU, where it costs little, all are multiplied in float64.
    """
    if rows.x_MK.device.type != "cpu":
        return wide_product(rows.x_MK, w_KN)
    if not bool(rows.wide_M.any()):
        return rows.x_MK @ w_KN
    y_MN = torch.empty(len(rows.x_MK), w_KN.shape[1])
    if not bool(rows.wide_M.all()):
        y_MN[~rows.wide_M] = rows.x_MK[~rows.wide_M] @ w_KN
    x64 = rows.x_MK[rows.wide_M].double()
    total = torch.zeros(x64.shape[0], w_KN.shape[1], dtype=torch.float64)
    strip = torch.empty(min(STRIP, w_KN.shape[0]), w_KN.shape[1], dtype=torch.float64)
    for k in range(0, w_KN.shape[0], STRIP):
        part = w_KN[k : k + STRIP]
        total.addmm_(x64[:, k : k + STRIP], strip[: part.shape[0]].copy_(part))
    y_MN[rows.wide_M] = total.float()
    return y_MN
