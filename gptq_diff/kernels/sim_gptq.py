"""The kernel `sim-gptq`: the path that vLLM's `gptq_gemm` takes for this many rows, simulated."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.kernels.weight_store import DEFAULT_BUDGET
from gptq_diff.records import LayerSpec, Support


class SimGptq(Kernel):
    """Up to 50 rows (24 for 8 bit) the fast path, above it reconstruction; the path that ran is the error model.

    The limits are MAX_Q_GEMM_ROWS and MAX_Q_GEMM_ROWS_8BIT of
    https://github.com/vllm-project/vllm/blob/v0.20.2/csrc/quantization/gptq/q_gemm.cu. vLLM counts the rows of its
    whole batch; here they are those of one prompt.
    """

    name = "sim-gptq"
    on_host = True
    takes_half = True

    def __init__(self, cache_bytes: int = DEFAULT_BUDGET) -> None:
        self._fast = SimExllama(cache_bytes // 3)
        self._reconstruct = SimReconstruct(cache_bytes - cache_bytes // 3)  # halves take twice the bytes of codes

    def supports(self, spec: LayerSpec) -> Support:
        """What both paths take."""
        return self._reconstruct.supports(spec)

    def arithmetic(self, rows: int, linear: PackedLinear) -> str:
        """That of the path which so many rows take."""
        return self._for(rows, linear).arithmetic(rows, linear)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """float16 [M, N] on the CPU, by the path that M picks."""
        return self._for(x_MK.shape[0], linear).multiply(x_MK, linear)

    def _for(self, rows: int, linear: PackedLinear) -> SimExllama | SimReconstruct:
        return self._fast if rows <= CHAINS[linear.spec.bits].fast_rows else self._reconstruct
