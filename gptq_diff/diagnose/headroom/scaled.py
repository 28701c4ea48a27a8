"""Sums of scaled products: hgemm's running accumulator, the fast path's blocks, and the result."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.headroom.arithmetics import ACCUMULATOR, BLOCK, RESULT
from gptq_diff.diagnose.headroom.nearest import Nearest, nearest
from gptq_diff.diagnose.headroom.share import Share
from gptq_diff.diagnose.headroom.tiled_sums import can_watch, tiled_sums
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS
from gptq_diff.kernels.hgemm_model import STEP

NAMES = (ACCUMULATOR, BLOCK, RESULT)
ROWS = 64
"""Rows of x that are taken together at first, the longest ones: often none that is left can pass them."""
MOST_ROWS = 256
"""Rows that are taken together in the end: many small sums cost more than they are, and keep other threads waiting."""
TOGETHER = 2**28
"""Sums that a GPU makes at a time, 1 GiB of them."""


def scaled_sums(x_MK: torch.Tensor, share: Share, wanted: tuple[str, ...]) -> dict[str, Nearest | None]:
    """The largest sums of those of ACCUMULATOR, BLOCK and RESULT that are wanted.

    x_MK: float16, finite. Products of the exact weight, no rounding to half in between.
    """
    names, x_MK = tuple(name for name in NAMES if name in wanted), x_MK.float()
    if share.tiled is not None and can_watch(share, names):
        return tiled_sums(x_MK, share, names)
    if share.order_K is None or BLOCK not in names:
        return _largest(x_MK, share.w_KN, names, share.bits, None)
    found = _largest(x_MK, share.w_KN, tuple(name for name in names if name != BLOCK), share.bits, None)
    x_MK, w_KN = x_MK[:, share.order_K], share.w_KN[share.order_K]
    return {**found, **_largest(x_MK, w_KN, (BLOCK,), share.bits, share.order_K)}


def _largest(
    x_MK: torch.Tensor, w_KN: torch.Tensor, names: tuple[str, ...], bits: int, order_K: torch.Tensor | None
) -> dict[str, Nearest | None]:
    tops = {name: _Top() for name in names}
    _longest_rows_first(x_MK, w_KN, tops, bits)
    found: dict[str, Nearest | None] = {}
    places: dict[tuple[int, int], tuple[int, int]] = {}
    for name, top in tops.items():
        rows, span = torch.arange(top.first, top.last, device=w_KN.device), (top.first, top.last)
        if span not in places:
            sums_MN = x_MK[:, top.first : top.last] @ w_KN[top.first : top.last]
            places[span] = divmod(int(sums_MN.abs_().argmax()), sums_MN.shape[1])
        row, column = places[span]
        value = float(x_MK[row, rows].double() @ w_KN[rows, column].double())
        found[name] = nearest(value, x_MK, w_KN[rows, column], row, column, rows, order_K)
    return found


class _Top:
    """The largest magnitude that was seen, and the rows of K, first to last - 1, that it is the sum of."""

    def __init__(self) -> None:
        self.size, self.first, self.last = 0.0, 0, 0

    def see(self, sums_MN: torch.Tensor, first: int, last: int) -> None:
        low, high = torch.aminmax(sums_MN)
        self.take(max(-float(low), float(high)), first, last)

    def take(self, size: float, first: int, last: int) -> None:
        """The same of a sum whose largest magnitude is known."""
        if size > self.size:
            self.size, self.first, self.last = size, first, last


def _longest_rows_first(x_MK: torch.Tensor, w_KN: torch.Tensor, tops: dict[str, _Top], bits: int) -> None:
    """Walk for all rows; of many the longest first, until by Cauchy and Schwarz none that is left can pass."""
    if len(x_MK) <= ROWS or not tops:
        _walk(x_MK, w_KN, tops, bits)
        return
    longest = float(torch.linalg.vector_norm(w_KN, dim=0).max())
    norm_M, order_M = torch.linalg.vector_norm(x_MK, dim=1).sort(descending=True, stable=True)
    start, rows = 0, ROWS
    while start < len(x_MK):
        if float(norm_M[start]) * longest * (1 + 1e-5) <= min(top.size for top in tops.values()):
            break
        _walk(x_MK[order_M[start : start + rows]], w_KN, tops, bits)
        start, rows = start + rows, min(2 * rows, MOST_ROWS)


def _walk(x_MK: torch.Tensor, w_KN: torch.Tensor, tops: dict[str, _Top], bits: int) -> None:
    """Add up K piece by piece and show every sum that float16 would hold.

    4 bit keeps a block's sum in float32 to its end; 2 and 3 bit add it up word by word in float16, and so does 8 bit,
    which rounds each scaled word before.
    """
    accumulator, block, result = (tops.get(name) for name in NAMES)
    in_features = x_MK.shape[1]
    if result is not None:
        result.see(x_MK @ w_KN, 0, in_features)
    if accumulator is None and block is None:
        return
    if bits == 4 and w_KN.device.type != "cpu":
        _walk_together(x_MK, w_KN, accumulator, block)
        return
    step = min(STEP, CHAINS[bits].word) if bits != 4 else STEP if accumulator is not None else BLOCK_ROWS
    running = x_MK.new_zeros(len(x_MK), w_KN.shape[1])
    before = running.clone()
    for first in range(0, in_features, step):
        last = min(first + step, in_features)
        running.addmm_(x_MK[:, first:last], w_KN[first:last])
        ends = last % BLOCK_ROWS == 0 or last == in_features
        if accumulator is not None and (last % STEP == 0 or ends):
            accumulator.see(running, 0, last)
        if block is None:
            continue
        if bits == 8:
            block.see(x_MK[:, first:last] @ w_KN[first:last], first, last)
        if bits != 4 or ends:
            block.see(running - before, first // BLOCK_ROWS * BLOCK_ROWS, last)
        if ends:
            block.see(running, 0, last)
            before.copy_(running)


def _walk_together(x_MK: torch.Tensor, w_KN: torch.Tensor, accumulator: _Top | None, block: _Top | None) -> None:
    """The walk of 4 bit on a GPU, where a launch costs more than the sums: many pieces of K in one product."""
    rows, (in_features, columns) = len(x_MK), w_KN.shape
    step = BLOCK_ROWS if accumulator is None and in_features % BLOCK_ROWS == 0 else STEP
    per_block = BLOCK_ROWS // step
    together = max(TOGETHER // (rows * columns * per_block), 1) * BLOCK_ROWS
    before_MN = x_MK.new_zeros(rows, columns)
    for first in range(0, in_features, together):
        last = min(first + together, in_features)
        x_SMk = x_MK[:, first:last].reshape(rows, -1, step).transpose(0, 1)
        sums_SMN = torch.bmm(x_SMk, w_KN[first:last].reshape(-1, step, columns)).cumsum_(dim=0).add_(before_MN)
        if accumulator is not None:
            for s, size in enumerate(_sizes(sums_SMN)):
                accumulator.take(size, 0, first + (s + 1) * step)
        if block is not None:
            ends = list(range(per_block - 1, len(sums_SMN), per_block))
            if len(sums_SMN) % per_block:
                ends.append(len(sums_SMN) - 1)
            after_BMN = sums_SMN[ends]
            starts_BMN = torch.cat([before_MN[None], after_BMN[:-1]])
            pairs = zip(ends, _sizes(after_BMN), _sizes(after_BMN - starts_BMN))
            for b, (end, after, alone) in enumerate(pairs):
                stop = first + (end + 1) * step
                block.take(alone, first + b * BLOCK_ROWS, stop)
                block.take(after, 0, stop)
        before_MN = sums_SMN[-1].clone()


def _sizes(sums_SMN: torch.Tensor) -> list[float]:
    """The largest magnitude of every matrix."""
    found: list[float] = torch.linalg.vector_norm(sums_SMN, ord=float("inf"), dim=(1, 2)).tolist()
    return found
