"""Products with a packed linear that is unpacked tile by tile: faster for a large one, and its weight takes no memory.

Dequantising a linear of 27648 x 5120 writes 566 MB that are read again for the product; here 128 KB at a time stay in a
second-level cache. What remains is nearly the multiply-adds alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

import numpy as np
import numpy.typing as npt
import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packing import unpack_zeros
from gptq_diff.kernels import compiler
from gptq_diff.kernels.strips import STRIP, share_strips

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

LARGE = 1 << 22
"""Weights of a linear from which on tiles pay: below, the whole weight in float32 fits into a cache by itself."""
ROWS = 512
"""Rows of x that are multiplied at a time, to bound what their sums take."""
BAND = 256
DEPTH = 128


def can_tile(linear: PackedLinear) -> bool:
    """Whether products with that linear are made in tiles: it is large, on the CPU, and compiled loops run here."""
    spec = linear.spec
    large = spec.in_features * spec.out_features >= LARGE
    return large and linear.qweight.device.type == "cpu" and compiler.available()


@dataclass(frozen=True)
class TiledWeight:
    """A packed weight as the loops take it: mapped words, and zeros and scales in float32.

    qweight: int32 [K * bits / 32, N]. zeros_GN, scales_GN: float32. group_K: int64.
    """

    qweight: npt.NDArray[np.int32]
    zeros_GN: npt.NDArray[np.float32]
    scales_GN: npt.NDArray[np.float32]
    group_K: npt.NDArray[np.int64]
    bits: int

    @staticmethod
    def of(linear: PackedLinear, left_out_N: torch.Tensor | None = None) -> TiledWeight:
        """That linear; the columns of the mask left_out_N (bool [N]) count as zero, whatever their scales are."""
        spec = linear.spec
        scales_GN = linear.scales.to(torch.float32)
        if left_out_N is not None and bool(left_out_N.any()):
            scales_GN = torch.where(left_out_N, 0.0, scales_GN)
        zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format).to(torch.float32)
        return TiledWeight(
            linear.qweight.contiguous().numpy(), zeros_GN.contiguous().numpy(), scales_GN.contiguous().numpy(),
            group_of_row(linear).contiguous().numpy(), spec.bits,
        )  # fmt: skip

    @property
    def columns(self) -> int:
        """N."""
        return int(self.qweight.shape[1])

    @property
    def packed(self) -> tuple[Any, ...]:
        """As the loops take it."""
        return self.qweight, self.zeros_GN, self.scales_GN, self.group_K, self.bits


def product(x_MK: torch.Tensor, weight: TiledWeight, *, half_weight: bool = False) -> torch.Tensor:
    """float32 [M, N]: x W, summed in float32; x float16 or float32 on the CPU.

    half_weight: every weight is rounded to float16 before.
    """
    from gptq_diff.kernels.tiled import loops

    def multiply(x_BMK: Any, first: int, last: int, y_MN: Any) -> None:
        loops.multiply(x_BMK, weight.packed, first, last, half_weight, y_MN)

    return torch.cat([torch.from_numpy(y_MN) for y_MN in _products(x_MK, weight, np.float32, multiply)])


def product_and_norms(x_MK: torch.Tensor, weight: TiledWeight) -> tuple[torch.Tensor, torch.Tensor]:
    """X W as float32 [M, N], better than float32 sums give it, and the squared norm of every row of W, float64 [K].

    128 products are summed in float32, such sums in float64.
    """
    from gptq_diff.kernels.tiled import loops

    norms: list[npt.NDArray[np.float32]] = []

    def multiply(x_BMK: Any, first: int, last: int, y_MN: Any) -> None:
        norm2_KL = np.zeros((len(weight.group_K), loops.LANES), np.float32)
        loops.multiply_with_norms(x_BMK, weight.packed, first, last, y_MN, norm2_KL)
        norms.append(norm2_KL)

    parts, norm2_K = [], torch.zeros(len(weight.group_K), dtype=torch.float64)
    for i, y_MN in enumerate(_products(x_MK, weight, np.float64, multiply)):
        parts.append(torch.from_numpy(y_MN).to(torch.float32))
        if i == 0:
            norm2_K = _added(norms)
        norms.clear()
    return torch.cat(parts), norm2_K


@dataclass(frozen=True)
class Watched:
    """A product, and how large the sums on the way are: of every 128 rows of K, and the running sum after each.

    The first running sum is the first of the others, and counts once.
    y_MN: float32. squares_MN: float32, the squares of all these sums added up. top_M: float32, the largest magnitude of
    any of them. norm2_K: float64, the squared norm of every row of W.
    """

    y_MN: torch.Tensor
    squares_MN: torch.Tensor
    top_M: torch.Tensor
    norm2_K: torch.Tensor


def watched_product(x_MK: torch.Tensor, weight: TiledWeight) -> Watched:
    """X W in float32 with its sums watched; x finite, and few rows of it (a dozen bytes are held for every output)."""
    from gptq_diff.kernels.tiled import loops

    bands, x_BMK = -(-weight.columns // BAND), blocks(x_MK)
    y_MN, squares_MN = (np.zeros((len(x_MK), bands * BAND), np.float32) for _ in range(2))
    top_BM = np.zeros((bands, len(x_MK)), np.float32)
    norms: list[npt.NDArray[np.float32]] = []

    def work(first: int, last: int) -> None:
        norm2_KL = np.zeros((len(weight.group_K), loops.LANES), np.float32)
        loops.multiply_watched(x_BMK, weight.packed, first, last, y_MN, squares_MN, top_BM, norm2_KL)
        norms.append(norm2_KL)

    share_strips(work, bands, (len(x_MK) + 4) * len(weight.group_K) * BAND, torch.get_num_threads())
    y, squares = (torch.from_numpy(t_MN[:, : weight.columns]) for t_MN in (y_MN, squares_MN))
    return Watched(y, squares, torch.from_numpy(top_BM).amax(dim=0), _added(norms))


def _added(norms: list[npt.NDArray[np.float32]]) -> torch.Tensor:
    """float64 [K]: what the pieces of work found, put together."""
    return torch.from_numpy(sum(norm2_KL.sum(axis=1, dtype=np.float64) for norm2_KL in norms))


def product_of_squares(x_MK: torch.Tensor, weight: TiledWeight) -> torch.Tensor:
    """float32 [M, N]: x W^2, each weight squared; x float32."""
    from gptq_diff.kernels.tiled import loops

    def multiply(x_BMK: Any, first: int, last: int, y_MN: Any) -> None:
        loops.multiply_squares(x_BMK, weight.packed, first, last, y_MN)

    return torch.cat([torch.from_numpy(y_MN) for y_MN in _products(x_MK, weight, np.float32, multiply)])


@dataclass(frozen=True)
class LargestSums:
    """The largest magnitude of a sum in every tile, float32 [strips of 64 columns, blocks of 128 rows of K].

    steps_SB: of the running sum after any step within the tile. alone_SB: of the sum of the tile's rows alone.
    after_SB: of the running sum after the tile.
    """

    steps_SB: torch.Tensor
    alone_SB: torch.Tensor
    after_SB: torch.Tensor

    def larger(self, other: LargestSums) -> LargestSums:
        """The larger of both, tile by tile."""
        return LargestSums(
            torch.maximum(self.steps_SB, other.steps_SB), torch.maximum(self.alone_SB, other.alone_SB),
            torch.maximum(self.after_SB, other.after_SB),
        )  # fmt: skip


def largest_sums(x_MK: torch.Tensor, weight: TiledWeight, step: int) -> LargestSums:
    """Add x W up, ascending, `step` rows of K at a time in float32, and keep what is largest in every tile."""
    from gptq_diff.kernels.tiled import loops

    bands, x_BMK = -(-weight.columns // BAND), blocks(x_MK)
    running_MN = np.zeros((len(x_MK), bands * BAND), np.float32)
    largest_SBT = np.zeros((bands * (BAND // STRIP), len(x_BMK), 3), np.float32)

    def work(first: int, last: int) -> None:
        loops.largest_sums(x_BMK, weight.packed, first, last, step, running_MN, largest_SBT)

    share_strips(work, bands, (len(x_MK) + 4) * len(weight.group_K) * BAND, torch.get_num_threads())
    steps, alone, after = torch.from_numpy(largest_SBT).unbind(dim=2)
    return LargestSums(steps, alone, after)


def _products(
    x_MK: torch.Tensor, weight: TiledWeight, dtype: type[Any], multiply: Callable[[Any, int, int, Any], None]
) -> Iterator[npt.NDArray[Any]]:
    """What `multiply` adds to zeros [m, N] of that dtype, some rows of x after the other; threads share the bands."""
    bands = -(-weight.columns // BAND)
    for m in range(0, max(len(x_MK), 1), ROWS):
        x_BMK = blocks(x_MK[m : m + ROWS])
        y_MN = np.zeros((x_BMK.shape[1], bands * BAND), dtype)

        def work(first: int, last: int, x_BMK: Any = x_BMK, y_MN: Any = y_MN) -> None:
            multiply(x_BMK, first, last, y_MN)

        share_strips(work, bands, (x_BMK.shape[1] + 4) * len(weight.group_K) * BAND, torch.get_num_threads())
        yield y_MN[:, : weight.columns]


def blocks(x_MK: torch.Tensor) -> npt.NDArray[np.float32]:
    """X as float32 [blocks, M, 128], K filled up with zeros: rows of x would lie a power of two apart, and collide."""
    rows, in_features = x_MK.shape
    padded = torch.nn.functional.pad(x_MK.detach().to(torch.float32), (0, -in_features % DEPTH))
    return padded.view(rows, -1, DEPTH).transpose(0, 1).contiguous().numpy()
