"""What --device means to each engine."""

from __future__ import annotations

from collections.abc import Mapping

from gptq_diff.releases import backend_of_release


def device_of(engine: str, asked: str, kernel: str = "") -> str:
    """What a worker of that engine is told (engines.base.LoadSpec.device).

    Without --device the transformers engine stays on the CPU, where every figure of its simulators is the same on every
    machine; the other engines take a GPU where there is one, since it is their GPU kernels that people use. So does it
    for the kernel of a release.
    """
    if asked:
        return asked
    return "cpu" if engine == "transformers" and backend_of_release(kernel) is None else "auto"


def gpu_variables(engine: str, asked: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables for a worker so that its float32 products cannot be TF32, and that vLLM sees the GPU asked for alone.

    vLLM takes the first GPUs that it sees. N of `cuda:N` counts those that the user's own CUDA_VISIBLE_DEVICES leaves.
    """
    if engine == "transformers":
        return {"NVIDIA_TF32_OVERRIDE": "0"}
    kind, _, number = asked.partition(":")
    if engine != "vllm" or kind != "cuda" or not number:
        return {}
    seen = [name for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    index = int(number)
    return {"CUDA_VISIBLE_DEVICES": seen[index] if index < len(seen) else number if not seen else "-1"}
