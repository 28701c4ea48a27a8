"""The quantised linear of the transformers skeleton: kernel call, tap, then bias."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from gptq_diff.capture.bias_step import bias_step
from gptq_diff.engines.shelf import Shelf, on_the_cpu
from gptq_diff.kernels.base import Kernel, Product

if TYPE_CHECKING:
    from gptq_diff.capture.tap import Tap
    from gptq_diff.checkpoint.packed import PackedLinear


@dataclass
class Switchboard:
    """What all quantised linears of one model share: the kernel in force, its stand-in, the tap, and the device.

    refused: layers the kernel cannot take; they run on `stand_in`, untapped, and count as skipped.
    """

    kernel: Kernel
    stand_in: Kernel
    refused: dict[str, str] = field(default_factory=dict)
    tap: Tap | None = None
    shelf: Shelf = field(default_factory=on_the_cpu)
    _given: torch.Tensor | None = field(default=None, repr=False)
    _rows_MK: torch.Tensor | None = field(default=None, repr=False)

    def rows_of(self, x: torch.Tensor, *, half: bool = False) -> torch.Tensor:
        """X [..., K] as [M, K], as float16 if asked; the very same object for linears given one and the same x.

        By that the tap knows on a GPU what q, k and v share, where comparing the values would make it wait.
        """
        if self._given is not x or self._rows_MK is None:
            x_MK = x.reshape(-1, x.shape[-1])
            self._given, self._rows_MK = x, x_MK.to(torch.float16) if half else x_MK
        return self._rows_MK

    def forget(self) -> None:
        """Let go of the input last seen."""
        self._given = self._rows_MK = None


class QuantLinear(nn.Module):
    """y = kernel(x) + bias; the tap sits between the two, so that the kernel is judged and not the addition."""

    def __init__(self, linear: PackedLinear, board: Switchboard) -> None:
        super().__init__()
        self._linear = linear
        self._board = board
        self.in_features = linear.spec.in_features
        self.out_features = linear.spec.out_features
        self._has_bias = linear.bias is not None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., N] in the dtype of x [..., K]."""
        board, name = self._board, self._linear.spec.name
        x_MK = board.rows_of(x, half=board.kernel.takes_half)
        product = self.product(x_MK)
        product_MN = y_MN = product.y_MN.to(x.dtype)
        tap = board.tap if name not in board.refused else None
        if tap is not None:
            tap.record(name, x_MK, y_MN, product.path)
        if self._linear.bias is not None:
            y_MN = y_MN + self._linear.bias.to(device=x.device, dtype=x.dtype)
        if tap is not None and self._has_bias and tap.asks_bias:
            tap.record_bias(bias_step(name, product_MN[:1], y_MN[:1]))
        return y_MN.reshape(*x.shape[:-1], self.out_features)

    def product(self, x_MK: torch.Tensor) -> Product:
        """The kernel's own answer, without bias, in the dtype and on the device of x."""
        board, name = self._board, self._linear.spec.name
        kernel = board.stand_in if name in board.refused else board.kernel
        product = kernel.multiply(x_MK, self._linear if kernel.on_host else board.shelf.linear(self._linear))
        return Product(product.y_MN.to(device=x_MK.device, dtype=x_MK.dtype), product.path)
