"""The oracle: what W x is, for rows captured by any backend, from one dequantisation of the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from gptq_diff.kernels.exact import wide_product
from gptq_diff.numerics.magnitude import row_absmax

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


def stacked(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """float32: matrices of floating-point numbers below each other, on the device of the first; each is copied once."""
    first = parts[0]
    whole = first.new_empty(sum(len(part) for part in parts), first.shape[1], dtype=torch.float32)
    return torch.cat(list(parts), out=whole)


def stack_inputs(inputs: list[torch.Tensor]) -> Rows:
    """Stack captured inputs ([m, K], float16 or float32) below each other."""
    x_MK = stacked(inputs)
    wide = torch.tensor([x.dtype == torch.float32 for x in inputs])
    wide = wide.repeat_interleave(torch.tensor([x.shape[0] for x in inputs])).to(x_MK.device)
    finite = torch.isfinite(row_absmax(x_MK) if x_MK.shape[1] else x_MK.new_zeros(x_MK.shape[0]))
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
    wide, narrow = _together(rows.wide_M), _together(~rows.wide_M)
    if not bool(rows.wide_M.all()):
        y_MN[narrow] = rows.x_MK[narrow] @ w_KN
    x64 = rows.x_MK[wide].double()
    total = torch.zeros(x64.shape[0], w_KN.shape[1], dtype=torch.float64)
    strip = torch.empty(min(STRIP, w_KN.shape[0]), w_KN.shape[1], dtype=torch.float64)
    for k in range(0, w_KN.shape[0], STRIP):
        part = w_KN[k : k + STRIP]
        total.addmm_(x64[:, k : k + STRIP], strip[: part.shape[0]].copy_(part))
    y_MN[wide] = total.float()
    return y_MN


def _together(chosen_M: torch.Tensor) -> torch.Tensor | slice:
    """The same rows as a slice, which copies nothing, where they lie together."""
    places = torch.nonzero(chosen_M).flatten()
    if not len(places):
        return slice(0, 0)
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) else chosen_M
