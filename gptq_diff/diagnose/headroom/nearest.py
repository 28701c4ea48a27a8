"""The sum that comes nearest to overflow, and the product that carries it there."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.diagnose.headroom.arithmetics import bits_left


@dataclass(frozen=True)
class Nearest:
    """The sum of largest magnitude that one arithmetic makes in some calls.

    bits: log2(65504 / |value|). value: signed. row: of x, as stacked by the caller; column: of y.
    channel: of x, whose product is the largest of the sum's sign. activation: x there.
    weight: what it is multiplied by: code - zero in an unscaled arithmetic, else the dequantised weight.
    terms: products in the sum.
    """

    bits: float
    value: float
    row: int
    column: int
    channel: int
    activation: float
    weight: float
    terms: int


def nearest(
    value: float, x_MK: torch.Tensor, w_T: torch.Tensor, row: int, column: int, rows_T: torch.Tensor,
    order_K: torch.Tensor | None,
) -> Nearest | None:  # fmt: skip
    """The record of a sum over the rows rows_T of K, whose weights in that column are w_T; None where it is zero."""
    bits = bits_left(value)
    if bits is None:
        return None
    x_T, w_T = x_MK[row, rows_T].double(), w_T.double()
    at = int((x_T * w_T * (1.0 if value > 0 else -1.0)).argmax())
    channel = int(rows_T[at])
    if order_K is not None:
        channel = int(order_K[channel])
    return Nearest(bits, value, row, column, channel, float(x_T[at]), float(w_T[at]), len(rows_T))
