"""The largest sums of scaled products of a large linear, whose weight is never whole in memory.

One walk over the weight finds the tile, of 128 rows of K and 64 columns, that holds the largest sum of each kind; the
tile's columns are then unpacked, and the sum looked for among them in float64.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptq_diff.checkpoint.dequant import dequantise_columns
from gptq_diff.diagnose.headroom.arithmetics import ACCUMULATOR, BLOCK, RESULT
from gptq_diff.diagnose.headroom.nearest import Nearest, nearest
from gptq_diff.diagnose.headroom.share import Share
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS
from gptq_diff.kernels.hgemm_model import STEP
from gptq_diff.kernels.tiled import DEPTH, STRIP, LargestSums, TiledWeight, largest_sums, product_of_squares

ROWS = 64
"""Rows of x that are taken together, the longest first."""
Span = tuple[int, int]
"""First and last + 1 of the rows of K that a sum goes over."""


def can_watch(share: Share, names: Sequence[str]) -> bool:
    """Whether these sums are found so: 4 bit, whose blocks are 128 rows in float32; no BLOCK in an order of its own."""
    return share.bits == 4 and DEPTH == BLOCK_ROWS and (share.order_K is None or BLOCK not in names)


def tiled_sums(x_MK: torch.Tensor, share: Share, names: Sequence[str]) -> dict[str, Nearest | None]:
    """As `scaled.scaled_sums`, for a share that is the whole of a large linear. x_MK: float32, finite."""
    assert share.tiled is not None, "asked only where there is one"
    largest = _walk(x_MK, share.tiled, names)
    return {name: _place(name, largest, x_MK, share) for name in names}


def _walk(x_MK: torch.Tensor, weight: TiledWeight, names: Sequence[str]) -> LargestSums:
    """All rows; of many the longest first, until by Cauchy and Schwarz none that is left can pass."""
    if len(x_MK) <= ROWS:
        return largest_sums(x_MK, weight, STEP)
    longest = float(product_of_squares(torch.ones(1, x_MK.shape[1]), weight).max()) ** 0.5
    norm_M, order_M = torch.linalg.vector_norm(x_MK, dim=1).sort(descending=True, stable=True)
    found: LargestSums | None = None
    for start in range(0, len(x_MK), ROWS):
        if found is not None and float(norm_M[start]) * longest * (1 + 1e-5) <= min(_top(n, found) for n in names):
            break
        some = largest_sums(x_MK[order_M[start : start + ROWS]], weight, STEP)
        found = some if found is None else found.larger(some)
    assert found is not None
    return found


def _top(name: str, largest: LargestSums) -> float:
    """The largest magnitude of that kind."""
    return float(_of(name, largest).max())


def _of(name: str, largest: LargestSums) -> torch.Tensor:
    """[strips, blocks]: of every tile; of the result the last one's alone."""
    if name == ACCUMULATOR:
        return largest.steps_SB
    if name == BLOCK:
        return torch.maximum(largest.alone_SB, largest.after_SB)
    result_SB = torch.zeros_like(largest.after_SB)
    result_SB[:, -1] = largest.after_SB[:, -1]
    return result_SB


def _place(name: str, largest: LargestSums, x_MK: torch.Tensor, share: Share) -> Nearest | None:
    tiles_SB = _of(name, largest)
    strip, block = divmod(int(tiles_SB.argmax()), tiles_SB.shape[1])
    columns_C = torch.arange(strip * STRIP, min((strip + 1) * STRIP, share.linear.spec.out_features))
    w_KC = torch.where(share.broken_N[columns_C], 0.0, dequantise_columns(share.linear, columns_C))
    first, last = block * DEPTH, min((block + 1) * DEPTH, x_MK.shape[1])
    spans: dict[str, list[Span]] = {
        ACCUMULATOR: [(0, min(end, last)) for end in range(first + STEP, last + STEP, STEP)],
        BLOCK: [(first, last), (0, last)],
        RESULT: [(0, x_MK.shape[1])],
    }
    x64_MK, w64_KC = x_MK.double(), w_KC.double()
    before_MC = x64_MK[:, :first] @ w64_KC[:first]
    best, at = -1.0, (0, 0, (0, 0))
    for span in spans[name]:
        part = slice(max(span[0], first), span[1]) if name != RESULT else slice(*span)
        sums_MC = x64_MK[:, part] @ w64_KC[part]
        if name != RESULT and span[0] < first:
            sums_MC += before_MC
        where = int(sums_MC.abs().argmax())
        size = float(sums_MC.flatten()[where].abs())
        if size > best:
            best, at = size, (*divmod(where, sums_MC.shape[1]), span)
    row, column, span = at
    rows = torch.arange(*span)
    value = float(x64_MK[row, rows] @ w64_KC[rows, column])
    return nearest(value, x_MK, w_KC[rows, column], row, int(columns_C[column]), rows, None)
