"""Which class stands behind a kernel's name."""

from __future__ import annotations

from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Kernel

VLLM_OPS = {
    "vllm-gptq": None,
    "vllm-exllama-fast": "exllama-fast",
    "vllm-exllama-reconstruct": "exllama-reconstruct",
}
"""vLLM's live gptq_gemm, to replay single linears on a GPU -> the path that is forced."""
TARGETED = {"sim-exllama-targeted": "sim-exllama", "sim-gptq-targeted": "sim-gptq"}
"""Simulators in targeted mode (--simulate) -> the simulator that each asks where its bounds do not hold."""


def make_kernel(name: str) -> Kernel:
    """A new kernel with an empty weight cache; BackendError for a name nobody stands behind."""
    if name == "exact":
        from gptq_diff.kernels.exact import ExactKernel

        return ExactKernel()
    if name == "fp16":
        from gptq_diff.kernels.fp16 import Fp16Kernel

        return Fp16Kernel()
    if name == "bf16":
        from gptq_diff.kernels.bf16 import Bf16Kernel

        return Bf16Kernel()
    if name == "sim-exllama":
        from gptq_diff.kernels.sim_exllama import SimExllama

        return SimExllama()
    if name == "sim-reconstruct":
        from gptq_diff.kernels.sim_reconstruct import SimReconstruct

        return SimReconstruct()
    if name == "sim-gptq":
        from gptq_diff.kernels.sim_gptq import SimGptq

        return SimGptq()
    if name in TARGETED:
        from gptq_diff.kernels.sim_targeted import targeted

        return targeted(TARGETED[name])
    if name in VLLM_OPS:
        from gptq_diff.kernels.vllm_ops import VllmGemm

        return VllmGemm(VLLM_OPS[name])
    if name == "vllm-marlin":
        from gptq_diff.kernels.vllm_ops import VllmMarlin

        return VllmMarlin()
    if name == "vllm-machete":
        from gptq_diff.kernels.vllm_machete import VllmMachete

        return VllmMachete()
    if name == "auto-gptq-exllama":
        from gptq_diff.kernels.gptqmodel_ops import auto_gptq_exllama

        return auto_gptq_exllama()
    if name == "auto-gptq-exllamav2":
        from gptq_diff.kernels.gptqmodel_ops import auto_gptq_exllamav2

        return auto_gptq_exllamav2()
    if name == "gptqmodel-exllamav2":
        from gptq_diff.kernels.gptqmodel_ops import gptqmodel_exllamav2

        return gptqmodel_exllamav2()
    raise BackendError(f"there is no kernel called {name!r}", "see `gptq-diff backends`")
