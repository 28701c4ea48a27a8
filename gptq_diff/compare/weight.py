"""The weight that one layer's calls are judged by: whole where that is cheap, tile by tile where it is large."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import dequantise, dequantise_columns
from gptq_diff.compare.exact_answer import Rows, exact_product
from gptq_diff.kernels.tiled import TiledWeight, can_tile, product_and_norms, product_of_squares
from gptq_diff.numerics.partial_sums import STRIP, row_norm2

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.records import LayerSpec


@dataclass(frozen=True)
class Weight:
    """The layer's exact weight and the columns that its own NaN or infinite scales spoil.

    given_KN: float32 [K, N]; None to take it from `linear`.
    bad_N: bool [N]. loaded_bad_N: the same for the checkpoint that the backends loaded, which may be a damaged copy.
    linear: the packed weight that the exact one comes from, for the sums before the scale; None where it is not known.
    memory: float32, may be written to and holds W where it is needed whole: fresh pages cost more than the work.
    """

    spec: LayerSpec
    given_KN: torch.Tensor | None
    bad_N: torch.Tensor
    loaded_bad_N: torch.Tensor
    linear: PackedLinear | None = None
    memory: torch.Tensor | None = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where its calls are judged."""
        return self.bad_N.device

    @cached_property
    def w_KN(self) -> torch.Tensor:  # noqa: N802  shapes are part of the names here
        """float32 [K, N], the whole of it."""
        if self.given_KN is not None:
            return self.given_KN
        assert self.linear is not None, "a weight comes from somewhere"
        return dequantise(self.linear, torch.float32, out=self.memory)

    @cached_property
    def clean_KN(self) -> torch.Tensor:  # noqa: N802
        """The same with bad columns zero."""
        return torch.where(self.bad_N, 0.0, self.w_KN) if bool(self.bad_N.any()) else self.w_KN

    @cached_property
    def _tiled(self) -> TiledWeight | None:
        """The packed form to multiply by, where the whole was not given and would be large."""
        if self.given_KN is not None or self.linear is None or not can_tile(self.linear):
            return None
        return TiledWeight.of(self.linear, self.bad_N)

    def exact(self, rows: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        """The exact answer, float32 [M, N], and the squared norm of every row of W, float64 [K]; bad columns are zero.

        Of a large weight all rows are summed in float64 from sums of 128 products in float32.
        """
        if self._tiled is not None:
            return product_and_norms(rows.x_MK, self._tiled)
        return exact_product(rows, self.clean_KN), row_norm2(self.clean_KN)

    def times_squares(self, x_MK: torch.Tensor) -> torch.Tensor:
        """float64 [M, N]: x times the squares of W, which are never held for more than a strip of columns."""
        if self._tiled is not None:
            return product_of_squares(x_MK, self._tiled).double()
        strips = range(0, self.clean_KN.shape[1], STRIP)
        return torch.cat([x_MK @ self.clean_KN[:, n : n + STRIP].square() for n in strips], dim=1).double()

    def columns(self, n: torch.Tensor) -> torch.Tensor:
        """float32 [K, C]: the columns n (int64 [C]), bad ones zero."""
        if self._tiled is None or self.linear is None:
            return self.clean_KN[:, n]
        return torch.where(self.bad_N[n], 0.0, dequantise_columns(self.linear, n))
