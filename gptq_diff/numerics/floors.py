"""How much error each kernel's own rounding explains: the error models behind the noise floor.

Every formula gives, for each row of one call, the expected square of the error's l2 norm over the N outputs. A
rounding errs in proportion to the partial sum that it rounds, so all that is needed is how large partial sums are.
Two quantities of a row carry that: its **energy** E = sum_k x_k^2 sum_j w_kj^2, and |y|^2 of the exact output. If
every order of the K products is equally likely, the sum of t of them has the expected squared norm

    t/K * E + t (t - 1) / (K (K - 1)) * (|y|^2 - E)

exactly: each product is in it with probability t/K, each pair with t (t - 1) / (K (K - 1)) (sampling without
replacement, W. G. Cochran, Sampling Techniques, 1977, section 2.3). Random signs have |y|^2 = E, so partial sums grow
with t; equal signs have |y|^2 far above E, and they grow with t^2. Where the order is not like any other (halves that
cancel, all weight in the first channel) `gptq_diff.numerics.partial_sums` computes the sums themselves.

A rounding to float16 errs by ulp/sqrt(12) rms (https://en.wikipedia.org/wiki/Quantization_(signal_processing)); for
a significand that is spread logarithmically that is HALF_RMS times the value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

FACTOR = 3.0
"""How many times the expected rounding error is still explained by it: the judge's threshold."""
FEWEST_ROWS = 8
"""Rows from which a column's mean is judged: 8 independent errors pass 9 times their mean twice in 10^12."""
HALF_RMS = 2.0**-10 / math.sqrt(12.0) * math.sqrt(0.5 * (1 - 0.25) / math.log(2.0))
"""rms relative error of rounding to float16: 2^-10/sqrt(12) times sqrt(mean of 1/m^2), m log-uniform in [1, 2)."""
SINGLE_RMS = HALF_RMS * 2.0**-13
"""The same for float32."""
BRAIN_RMS = HALF_RMS * 2.0**3
"""The same for bfloat16, whose subnormals lie out of reach."""
SUBNORMAL_RMS = 2.0**-24 / math.sqrt(12.0)
"""rms error of rounding to a float16 subnormal, absolute; adding two halves is exact there."""
BLOCK_K = 128
"""Rows of K whose sum the exllama kernel adds to the output in one piece (vLLM: BLOCK_KN_SIZE)."""
V1_BLOCK = 384
"""The same for exllama v1, at most: 384 for a few widths, else 256."""
MMA_K = 16
"""Rows of K that a tensor core adds up before an fp16 accumulator is rounded."""
LANE = {4: 4, 3: 16, 2: 8}
"""Products in one fp16 chain of the exllama kernel; 8 bit has none."""
WORD = {3: 32, 2: 16, 8: 8}
"""Rows of K after which a block's sum is rounded to float16; 4 bit keeps it in float32 to the block's end."""


@dataclass(frozen=True)
class Rows:
    """What the formulas need to know of a call's rows.

    energy_M, exact2_M: float64 [M], see the module's docstring.
    k: K. n: N, the outputs that are rounded (a sum of weights where they are weighted). bits: of the weight.
    Columns are judged by the same formulas, [calls, N] in place of [M].
    """

    energy_M: torch.Tensor
    exact2_M: torch.Tensor
    k: int
    n: float | torch.Tensor
    bits: int

    def sums2(self, terms: npt.NDArray[np.float64], times: float = 1.0) -> torch.Tensor:
        """Expected sum of squared norms of partial sums with that many terms each, all of it `times` over."""
        t = np.minimum(terms, self.k)
        single = times * float(t.sum()) / self.k
        pairs = times * float((t * (t - 1)).sum()) / (self.k * max(self.k - 1, 1))
        return self.energy_M * single + (self.exact2_M - self.energy_M) * pairs


def _upto(last: float, step: int = 1, first: int | None = None) -> npt.NDArray[np.float64]:
    """Numbers of terms first (default step), first + step, ... up to the first that reaches `last`."""
    start = step if first is None else first
    return np.arange(start, last + step - 1e-9, step, dtype=np.float64)


def _output(rows: Rows) -> torch.Tensor:
    """Rounding y itself to float16."""
    return HALF_RMS**2 * rows.exact2_M + rows.n * SUBNORMAL_RMS**2


def _single(rows: Rows) -> torch.Tensor:
    """Accumulating in float32, one product after the other, on average over all orders of the products.

    Blocks that are added up apart round less on average, but not always: gptq_diff.numerics.orders knows.
    """
    return SINGLE_RMS**2 * rows.sums2(_upto(rows.k))


def exact(rows: Rows) -> torch.Tensor:
    """float32 products and sums of exact weights."""
    return _single(rows) + rows.n * 2.0**-149


def fp16(rows: Rows) -> torch.Tensor:
    """Weights rounded to float16, float32 sums, the result rounded to float16."""
    return HALF_RMS**2 * rows.energy_M + _single(rows) + _output(rows)


def bf16(rows: Rows) -> torch.Tensor:
    """Weights rounded to bfloat16, float32 sums, the result rounded to bfloat16."""
    return BRAIN_RMS**2 * (rows.energy_M + rows.exact2_M) + _single(rows) + rows.n * 2.0**-149


def exllama_fast(rows: Rows) -> torch.Tensor:
    """The fused path (vLLM csrc/quantization/gptq/q_gemm.cu): lanes, words, then blocks of 128 rows of K."""
    lane, word = LANE.get(rows.bits), WORD.get(rows.bits)
    block = min(BLOCK_K, rows.k)
    blocks = rows.k / block
    rounded = rows.sums2(_upto(rows.k, BLOCK_K, 2 * BLOCK_K))  # the first block meets zero and is added exactly
    if lane is not None:
        rounded += rows.sums2(_upto(lane), rows.k / lane)
    if word is not None:  # the scaled word (or the lanes' sum), then the block's running sum
        rounded += rows.sums2(_upto(word, word), rows.k / word) + rows.sums2(_upto(block, word), blocks)
    else:
        rounded += rows.sums2(_upto(block, block), blocks)
    steps = math.ceil(rows.k / (word or BLOCK_K))
    return HALF_RMS**2 * rounded + rows.n * steps * SUBNORMAL_RMS**2


def exllama_v1(rows: Rows) -> torch.Tensor:
    """The fused path of auto_gptq's exllama v1 (v0.7.1, autogptq_extension/exllama/matrix.cuh and q4_matmul.cu).

    Two lanes of a float16 pair take every other row of K; each adds four unscaled products, and that sum times the
    scale to its own running sum, all rounded to float16. The lanes are added after 256 rows of K (384 for a few widths:
    the larger figure is taken), and blocks to the output.
    """
    block = min(V1_BLOCK, rows.k)
    blocks, lanes = rows.k / block, 2 * rows.k / block
    rounded = rows.sums2(_upto(LANE[4]), rows.k / LANE[4])
    rounded += rows.sums2(_upto(block / 2, LANE[4]), lanes)
    rounded += rows.sums2(_upto(block, block), blocks) + rows.sums2(_upto(rows.k, block, 2 * block))
    return HALF_RMS**2 * rounded + rows.n * math.ceil(rows.k / 8) * SUBNORMAL_RMS**2


def exllama_reconstruct(rows: Rows) -> torch.Tensor:
    """float16 weights, then a matmul that rounds its accumulator to float16 after every 16 rows of K.

    A stated upper figure, not a model of one cuBLAS algorithm: cuBLAS may keep more precision and split K. On an H100
    this gives the 2.6e-3 that was measured at K=5120 and the worst of what was measured at K=27648 (6e-3).
    """
    rounded = rows.energy_M + rows.sums2(_upto(rows.k, MMA_K))
    return HALF_RMS**2 * rounded + rows.n * math.ceil(rows.k / MMA_K) * SUBNORMAL_RMS**2


def int4pack(rows: Rows) -> torch.Tensor:
    """GPTQModel's TorchAtenLinear: torch's int4pack product on a CPU (aten/src/ATen/native/cpu/int4mm_kernel.cpp).

    Weights are (code - 8) * scale + offset in float32, sums too; only y is rounded to float16. The offset
    (8 - zero) * scale comes in float16: exact for zero 8, else gptq_diff.compare.refine knows what its rounding does.
    """
    return _single(rows) + _output(rows)


def marlin(rows: Rows) -> torch.Tensor:
    """As fp16; with one scale a column Marlin rounds the unscaled sum and then the scaled one, hence y twice."""
    return fp16(rows) + _output(rows)


HALF_WEIGHTS = frozenset({"fp16", "vllm-cpu-w4a16", "machete", "marlin", "auto-gptq-torch", "gptqmodel-torch"})
"""Paths that round scaled weights to float16 and sum in float32.

vllm-cpu-w4a16: vLLM's csrc/cpu/cpu_wna16.cpp. auto-gptq-torch: auto_gptq's nn_modules/qlinear/qlinear_cuda_old.py and
qlinear_cuda.py, `scales * (weight - zeros)` in float16, then torch.matmul in float16. gptqmodel-torch: the same in
GPTQModel's nn_modules/qlinear/torch.py.
"""

MODELS = {
    "exact": exact,
    **dict.fromkeys(HALF_WEIGHTS, fp16),
    "bf16": bf16,
    "marlin": marlin,
    "exllama-fast": exllama_fast,
    "exllama-v1": exllama_v1,
    "gptqmodel-int4pack": int4pack,
    "exllama-reconstruct": exllama_reconstruct,
}
"""Error models by the name of the path that ran."""


def expected_error2(path: str, rows: Rows) -> torch.Tensor:
    """float64 [M]: expected squared l2 norm of each row's error; KeyError for a path nobody stated a model for."""
    return MODELS[path](rows)
