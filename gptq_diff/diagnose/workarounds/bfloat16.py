"""Another dtype: bfloat16 has float32's range, so sums that float16 cannot hold fit, at an eighth of its precision."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from gptq_diff.records import Judgement, Result, Workaround

NAME = "bfloat16"
CURED = frozenset({"accumulator-overflow", "result-overflow"})
"""Causes that a wider range can cure."""
FLOAT16_ONLY = {
    ("vllm", "gptq-by-rows"): "vLLM's gptq_gemm takes float16 only",
    ("vllm", "exllama-fast"): "vLLM's gptq_gemm takes float16 only",
    ("vllm", "exllama-reconstruct"): "vLLM's gptq_gemm takes float16 only",
    ("transformers", "sim-exllama"): "the kernel that is simulated, vLLM's gptq_gemm, takes float16 only",
    ("transformers", "sim-reconstruct"): "the path that is simulated, of vLLM's gptq_gemm, takes float16 only",
    ("transformers", "sim-gptq"): "the kernel that is simulated, vLLM's gptq_gemm, takes float16 only",
}
"""(engine, kernel mode) -> why it cannot be. vLLM 0.5.1 to 0.20.2: GPTQConfig.get_supported_act_dtypes has torch.half
alone; 0.33: ExllamaLinearKernel.can_implement refuses any other."""
NOT_BY_US = {
    "auto_gptq": "auto_gptq's kernels turn what they are given into float16",
    "gptqmodel": "GPTQModel takes it, but is loaded in float16 here",
}
"""Engine -> why it is not tried."""
KERNELS = {("transformers", "fp16"): "bf16"}
"""(engine, kernel mode) -> the mode that stands for it in bfloat16, where that is another."""
TAKEN = frozenset({("vllm", "as-chosen"), ("vllm", "marlin"), ("vllm", "machete")})
"""(engine, kernel mode) that take it as they are."""


def out_of_range(result: Result) -> bool:
    """Whether values were lost that a wider range could hold."""
    lost = result.first_bad is not None and result.first_bad.kind == "overflow"
    return lost or any(f.cause in CURED for f in result.findings)


def refusal(engine: str, kernel: str) -> str | None:
    """Why that kernel is not run in bfloat16; None where it is."""
    if (engine, kernel) in KERNELS or (engine, kernel) in TAKEN:
        return None
    unknown = f"{engine} with {kernel} was never run in it"
    return FLOAT16_ONLY.get((engine, kernel)) or NOT_BY_US.get(engine, unknown)


def not_tried(why: str) -> Workaround:
    """The reason in place of an outcome."""
    return Workaround(NAME, tried=False, works=None, detail=why)


def of_bfloat16(
    result: Result | None, right: Result | None, judged: Sequence[Judgement], in_half: Sequence[Judgement]
) -> Workaround:
    """result, judged: of the load in bfloat16; right: the reference's. in_half: what was judged in float16.

    It works where no value is lost and the tokens are the reference's: error models are of float16, so whether every
    linear agrees is not asked, and the error that is paid is told instead.
    """
    if result is None or not judged:
        return Workaround.run(NAME, "the engine did not finish in bfloat16", works=False)
    lost = [j for j in judged if j.nonfinite or j.inherited_rows]
    if lost:
        return Workaround.run(NAME, f"{lost[0].layer} still loses values", works=False)
    same = right is not None and result.tokens == right.tokens and not result.collapsed
    said = "the reference's tokens" if same else "other tokens than the reference"
    paid = f"a linear errs by {_typical(judged)} of its output, in float16 by {_typical(in_half)} (medians)"
    return Workaround.run(NAME, f"no value is lost, {said}; it costs precision: {paid}", works=same)


def _typical(judged: Sequence[Judgement]) -> str:
    errors = [j.local_l2_rel for j in judged if j.local_l2_rel is not None and not j.nonfinite]
    return f"{statistics.median(errors):.2g}" if errors else "?"
