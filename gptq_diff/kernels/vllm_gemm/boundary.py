"""Up to how many rows gptq_gemm stays on its fast path: found by trying, since it is fixed when vLLM is compiled.

On one 128-row block of K the fast path adds nothing by atomics and treats every row alone, so a row's bits do not
depend on how many rows are beside it. The reconstruct path rounds the scaled weights to float16 and sums in another
order: on a few hundred random columns its bits differ. The fast path is the one that a single row takes.
"""

from __future__ import annotations

from types import ModuleType
from typing import Callable

import torch

from gptq_diff.errors import BackendError
from gptq_diff.kernels.vllm_gemm.op import Gemm, GemmWeight, multiply, shuffle

PROBE_K = 128
PROBE_N = 512
MOST_ROWS = 160
"""Rows tried: vLLM compiles limits of 50 and 24."""


def rows_like_one(product: Callable[[torch.Tensor], torch.Tensor], x_1K: torch.Tensor, most: int = MOST_ROWS) -> int:
    """Largest M for which M equal rows all give the bits of one row alone; BackendError where there is no clear one.

    product: x[M, K] -> y[M, N] on the weight of a probe. All M from 1 to `most` are tried.
    """
    alone = product(x_1K)[0].clone()
    same = [bool(torch.equal(y, alone.expand_as(y))) for y in (product(x_1K.repeat(m, 1)) for m in range(1, most + 1))]
    last = same.index(False) if False in same else most
    if last in (0, most) or any(same[last:]):
        raise BackendError(
            f"gptq_gemm shows no clear border between two paths for 1 to {most} rows "
            f"({sum(same)} of them give the bits of one row)",
            "this release's paths are not understood, so none can be named or forced",
        )
    return last


def probe_weight(ops: ModuleType, bits: int, device: str) -> GemmWeight:
    """A random weight of one 128-row block and one group."""
    draw = torch.Generator().manual_seed(bits)

    def words(rows: int, columns: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31, (rows, columns), generator=draw, dtype=torch.int64).to(torch.int32)

    scales = (0.005 + 0.01 * torch.rand((1, PROBE_N), generator=draw)).to(torch.float16)
    order = torch.empty(0, dtype=torch.int32, device=device)
    weight = GemmWeight(
        words(PROBE_K * bits // 32, PROBE_N).to(device), words(1, PROBE_N * bits // 32).to(device), scales.to(device),
        order, bits, v2=False,
    )  # fmt: skip
    shuffle(ops, weight.qweight, order, bits)
    return weight


def find_boundary(ops: ModuleType, gemm: Gemm, bits: int, device: str) -> int:
    """Rows M up to which this build of gptq_gemm takes its fast path for that bit width."""
    weight = probe_weight(ops, bits, device)
    x_1K = torch.randn((1, PROBE_K), generator=torch.Generator().manual_seed(7)).to(device=device, dtype=torch.float16)
    return rows_like_one(lambda x_MK: multiply(gemm, x_MK, weight), x_1K)
