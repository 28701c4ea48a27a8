"""exllama kernels of AutoGPTQ and GPTQModel, compiled from upstream's own sources, none of which are kept here.

The folder given holds, unmodified:
- `autogptq-0.7.1/exllama`, `autogptq-0.7.1/exllamav2`: autogptq_extension of the tag v0.7.1 of
  https://github.com/AutoGPTQ/AutoGPTQ (the source distribution lacks the .cuh files),
- `gptqmodel-7.7.0/exllamav2`: gptqmodel_ext of the source distribution gptqmodel-7.7.0.tar.gz on PyPI,
- `vllm-0.33.0/csrc`: quantization/gptq and torch_utils.h of csrc in the source distribution vllm-0.33.0.tar.gz on PyPI.

Needs nvcc, ninja and a torch with CUDA headers. A build that fails is an answer, not an accident: its log is kept.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_diff.kernels.exllama_live import LiveExllama
from gptq_diff.kernels.gptqmodel_ops import ExllamaV1, ExllamaV2

LOG_LENGTH = 6000
"""Characters of a failed build's output that are kept: its end, where compilers sum up."""


@dataclass(frozen=True)
class Upstream:
    """What upstream compiles, and how.

    folder: below the sources, and on the include path. files: in it. flags: nvcc's, besides those that torch adds.
    ops: namespace below torch.ops that it registers; "" for a Python module. binding: a file beside this one that
    registers the ops, where upstream's own registers all of its library. defines: for every compiler.
    """

    folder: str
    files: tuple[str, ...]
    flags: tuple[str, ...] = ()
    ops: str = ""
    binding: str = ""
    defines: tuple[str, ...] = ()


_V1 = ("exllama_ext.cpp", "cuda_buffers.cu", *(f"cuda_func/{n}.cu" for n in ("column_remap", "q4_matmul", "q4_matrix")))
_V2 = ("cuda/q_matrix.cu", "cuda/q_gemm.cu")

KERNELS = {
    "auto-gptq-exllama": Upstream("autogptq-0.7.1/exllama", _V1),
    "auto-gptq-exllamav2": Upstream("autogptq-0.7.1/exllamav2", ("ext.cpp", *_V2)),
    "gptqmodel-exllamav2": Upstream(
        "gptqmodel-7.7.0/exllamav2", ("ext_gptq.cpp", *_V2),
        ("-DENABLE_BF16", "--optimize=2", "-Xptxas=-O2,-dlcm=ca", "-diag-suppress=179,39,177"), "gptqmodel_exllamav2",
    ),
}  # fmt: skip
"""With the flags that AutoGPTQ's setup.py (none) and GPTQModel's utils/cpp.py give."""

GEMMS = {
    "vllm-0.33.0-gptq-gemm": Upstream(
        "vllm-0.33.0/csrc", ("quantization/gptq/q_gemm.cu",), ops="_C", binding="gptq_gemm_binding.cpp",
        defines=("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020B000000000000ULL"),
    ),
}  # fmt: skip
"""gptq_gemm under vLLM's own names; with what vLLM's CMakeLists.txt defines for the stable ABI."""
EVERY = {**KERNELS, **GEMMS}


def build(name: str, sources: Path, builds: Path) -> Any:
    """The compiled module, or namespace of ops; compiled once, later calls load it. RuntimeError with nvcc's output."""
    from torch.utils import cpp_extension

    upstream = EVERY[name]
    folder, place = sources.absolute() / upstream.folder, builds.absolute() / name
    place.mkdir(parents=True, exist_ok=True)
    made = cpp_extension.load(
        name=library_name(name), sources=source_files(name, sources), extra_cflags=list(upstream.defines),
        extra_include_paths=[str(folder), *cuda_headers()], extra_cuda_cflags=[*upstream.flags, *upstream.defines],
        build_directory=str(place), is_python_module=not upstream.ops, with_cuda=True, verbose=False,
    )  # fmt: skip
    return getattr(torch.ops, upstream.ops) if upstream.ops else made


def library_name(name: str) -> str:
    """Of the compiled module: its file in `builds`/name is called so, with .so after it."""
    return f"upstream_{name.replace('-', '_').replace('.', '_')}"


def source_files(name: str, sources: Path) -> list[str]:
    """Upstream's files, and ours that binds them."""
    upstream = EVERY[name]
    files = [sources.absolute() / upstream.folder / file for file in upstream.files]
    if upstream.binding:
        files.append(Path(__file__).with_name(upstream.binding).absolute())
    return [str(file) for file in files]


def cuda_headers() -> list[str]:
    """CUDA's headers as pip installs them beside torch: nvcc's own folder may lack cuBLAS and cuSPARSE."""
    packages = Path(sysconfig.get_paths()["purelib"])
    return [str(place) for place in sorted(packages.glob("nvidia/*/include")) if (place / "cublas_v2.h").is_file()]


def live(name: str, ops: Any, path: str | None = None, device: str = "cuda:0") -> LiveExllama:
    """The compiled kernel, to multiply single linears with."""
    if name == "auto-gptq-exllama":
        return ExllamaV1(ops, path, device)
    return ExllamaV2(ops, gptqmodel=name.startswith("gptqmodel"), path=path, device=device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--builds", type=Path, required=True)
    parser.add_argument("--kernel", choices=list(EVERY), required=True)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    started, error = time.perf_counter(), None
    try:
        build(asked.kernel, asked.sources, asked.builds)
    except (RuntimeError, OSError, ImportError) as e:
        error = str(e)[-LOG_LENGTH:]
        for place in (asked.sources, asked.builds):  # the log is kept as data: it names no folder of this machine
            error = error.replace(f"{place.absolute()}/", "")
    seconds = round(time.perf_counter() - started, 1)
    asked.out.write_text(json.dumps({"built": error is None, "seconds": seconds, "error": error}))


if __name__ == "__main__":
    main()
