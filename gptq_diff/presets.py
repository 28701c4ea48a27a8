"""The backends a user can ask for by name, and how `--backends` is read. Standard library only: `backends` starts fast.

A new backend is one entry here, an engine or a kernel that does the work, and their tests.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.errors import UsageError
from gptq_diff.records import ORIGINAL, Preset
from gptq_diff.releases import preset_of_release
from gptq_diff.suggest import nearest

_SKELETON = ("torch", "transformers", "safetensors")
_VLLM = ("vllm",)
_AUTO_GPTQ = ("auto_gptq",)
_GPTQMODEL = ("gptqmodel", "optimum", "transformers")

PRESETS: tuple[Preset, ...] = (
    Preset(
        name="hf-fp32",
        engine="transformers",
        kernel="exact",
        dtype="float32",
        summary="the reference: dequantised weights, every product in float32 or better",
        requires=_SKELETON,
    ),
    Preset(
        name="hf-fp16",
        engine="transformers",
        kernel="fp16",
        dtype="float16",
        summary="dequantised to float16, multiplied in float16",
        requires=_SKELETON,
    ),
    Preset(
        name="hf-original",
        engine="transformers",
        kernel=ORIGINAL,
        dtype="float32",
        summary="the unquantised model (--original DIR): shows the error of quantisation itself, is not judged",
        requires=_SKELETON,
        route="original",
    ),
    Preset(
        name="sim-exllama",
        engine="transformers",
        kernel="sim-exllama",
        dtype="float16",
        summary="vLLM's fused fast path (exllama), simulated step for step, however many rows there are",
        requires=_SKELETON,
    ),
    Preset(
        name="sim-reconstruct",
        engine="transformers",
        kernel="sim-reconstruct",
        dtype="float16",
        summary="vLLM's reconstruct path (dequantise, then hgemm), simulated, however many rows there are",
        requires=_SKELETON,
    ),
    Preset(
        name="sim-gptq",
        engine="transformers",
        kernel="sim-gptq",
        dtype="float16",
        summary="what vLLM's gptq users meet, simulated: the fast path for few rows, reconstruct for many",
        requires=_SKELETON,
    ),
    Preset(
        name="vllm",
        engine="vllm",
        kernel="as-chosen",
        dtype="float16",
        summary="vLLM with the kernel that it picks itself, named in the report; its CPU kernel on a CPU",
        requires=_VLLM,
        route="auto",
    ),
    Preset(
        name="vllm-gptq",
        engine="vllm",
        kernel="gptq-by-rows",
        dtype="float16",
        summary="vLLM's gptq_gemm as shipped: the fast path for few rows, reconstruct for many",
        requires=_VLLM,
        route="gptq",
        gpu=True,
    ),
    Preset(
        name="vllm-exllama",
        engine="vllm",
        kernel="exllama-fast",
        dtype="float16",
        summary="vLLM's gptq_gemm on its fused fast path, however many rows there are",
        requires=_VLLM,
        route="gptq",
        gpu=True,
    ),
    Preset(
        name="vllm-reconstruct",
        engine="vllm",
        kernel="exllama-reconstruct",
        dtype="float16",
        summary="vLLM's gptq_gemm on its reconstruct path, however few rows there are",
        requires=_VLLM,
        route="gptq",
        gpu=True,
    ),
    Preset(
        name="gptq-marlin",
        engine="vllm",
        kernel="marlin",
        dtype="float16",
        summary="vLLM with Marlin, checked layer by layer",
        requires=_VLLM,
        route="marlin",
        gpu=True,
    ),
    Preset(
        name="gptq-machete",
        engine="vllm",
        kernel="machete",
        dtype="float16",
        summary="vLLM with Machete (Hopper only), checked layer by layer",
        requires=_VLLM,
        route="machete",
        gpu=True,
    ),
    Preset(
        name="auto-gptq",
        engine="auto_gptq",
        kernel="as-chosen",
        dtype="float16",
        summary="auto_gptq with the kernel that it picks itself, named in the report; its torch path on a CPU",
        requires=_AUTO_GPTQ,
        route="auto",
    ),
    Preset(
        name="auto-gptq-torch",
        engine="auto_gptq",
        kernel="torch",
        dtype="float16",
        summary="auto_gptq on its torch path: dequantised to float16, multiplied by torch",
        requires=_AUTO_GPTQ,
        route="torch",
    ),
    Preset(
        name="auto-gptq-exllama",
        engine="auto_gptq",
        kernel="exllama",
        dtype="float16",
        summary="auto_gptq with exllama v1 (from 8 rows on it reconstructs), checked layer by layer",
        requires=_AUTO_GPTQ,
        route="exllama",
        gpu=True,
    ),
    Preset(
        name="auto-gptq-exllamav2",
        engine="auto_gptq",
        kernel="exllamav2",
        dtype="float16",
        summary="auto_gptq with exllama v2 (above 50 rows it reconstructs), checked layer by layer",
        requires=_AUTO_GPTQ,
        route="exllamav2",
        gpu=True,
    ),
    Preset(
        name="gptqmodel",
        engine="gptqmodel",
        kernel="as-chosen",
        dtype="float16",
        summary="transformers with GPTQModel and the kernel that it picks itself, named in the report",
        requires=_GPTQMODEL,
        route="auto",
    ),
    Preset(
        name="gptqmodel-torch",
        engine="gptqmodel",
        kernel="torch",
        dtype="float16",
        summary="GPTQModel's torch kernel: dequantised to float16, multiplied by torch",
        requires=_GPTQMODEL,
        route="torch",
    ),
    Preset(
        name="gptqmodel-exllamav2",
        engine="gptqmodel",
        kernel="exllamav2",
        dtype="float16",
        summary="GPTQModel's exllama_v2 (above 50 rows it reconstructs), checked layer by layer",
        requires=_GPTQMODEL,
        route="exllamav2",
        gpu=True,
    ),
    Preset(
        name="gptqmodel-marlin",
        engine="gptqmodel",
        kernel="marlin",
        dtype="float16",
        summary="GPTQModel's Marlin, which pads shapes that Marlin does not take, checked layer by layer",
        requires=_GPTQMODEL,
        route="marlin",
        gpu=True,
    ),
)


@dataclass(frozen=True)
class BackendRequest:
    """One entry of `--backends`.

    preset: what to run.
    python: the interpreter or environment to run it under; None means gptq-diff's own.
    """

    preset: Preset
    python: str | None = None


def preset_named(name: str) -> Preset:
    """The preset of that name, a release's kernel (`vllm==0.20.2:exllama`) among them.

    UsageError with the nearest name and the list when there is none.
    """
    for preset in PRESETS:
        if preset.name == name:
            return preset
    released = preset_of_release(name)
    if released is not None:
        return released
    names = [preset.name for preset in PRESETS]
    raise UsageError(f"there is no backend named {name!r}{nearest(name, names)}", f"Backends: {', '.join(names)}.")


def parse_backends(value: str) -> tuple[BackendRequest, ...]:
    """Read `A,B@PYTHON`, in the order given; every name at most once, since results are told apart by it."""
    requests: list[BackendRequest] = []
    for entry in value.split(","):
        name, at, python = (part.strip() for part in entry.partition("@"))
        if not name:
            raise UsageError(
                f"--backends {value!r} has an empty entry", "Separate names with single commas: hf-fp16,sim-gptq."
            )
        if at and not python:
            raise UsageError(
                f"--backends names no interpreter after {name}@",
                f"Write {name}@PYTHON, or {name} alone for gptq-diff's own interpreter.",
            )
        preset = preset_named(name)
        if any(request.preset == preset for request in requests):
            raise UsageError(f"--backends names {name} twice", "Name each backend once.")
        requests.append(BackendRequest(preset, python or None))
    return tuple(requests)
