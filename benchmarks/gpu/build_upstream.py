"""exllama kernels of AutoGPTQ, GPTQModel and vLLM, compiled from upstream's own sources, none of which are kept here.

The folder given as --sources holds, unmodified:
- `autogptq-0.7.1/exllama`, `autogptq-0.7.1/exllamav2`: autogptq_extension of the tag v0.7.1 of
  https://github.com/AutoGPTQ/AutoGPTQ (the source distribution lacks the .cuh files),
- source packs of the other two, as `gptq-diff kernels fetch gptqmodel==7.7.0 vllm==0.33.0 --out SOURCES` writes them.

Needs nvcc, ninja and a torch with CUDA headers. A build that fails is an answer, not an accident: its log is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gptq_diff.built_file import read_built
from gptq_diff.errors import GptqDiffError
from gptq_diff.kernels.exllama_live import LiveExllama
from gptq_diff.kernels.gptqmodel_ops import ExllamaV1, ExllamaV2
from gptq_diff.kernels.released import loaded_ops
from gptq_diff.releases import Release
from gptq_diff.upstream.compile import compile_release, cuda_headers
from gptq_diff.upstream.fetch import Where, pack_of
from gptq_diff.upstream.installer import Installer
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.plan import plan
from gptq_diff.upstream.store import Store

LOG_LENGTH = 6000
"""Characters of a failed build's output that are kept: its end, where compilers sum up."""


@dataclass(frozen=True)
class Upstream:
    """What AutoGPTQ compiles: files in a folder below the sources, which is on the include path too."""

    folder: str
    files: tuple[str, ...]


_V1 = ("exllama_ext.cpp", "cuda_buffers.cu", *(f"cuda_func/{n}.cu" for n in ("column_remap", "q4_matmul", "q4_matrix")))
_V2 = ("cuda/q_matrix.cu", "cuda/q_gemm.cu")

MODULES = {
    "auto-gptq-exllama": Upstream("autogptq-0.7.1/exllama", _V1),
    "auto-gptq-exllamav2": Upstream("autogptq-0.7.1/exllamav2", ("ext.cpp", *_V2)),
}
"""With the flags that AutoGPTQ's setup.py gives, which are none."""
RELEASES = {
    "gptqmodel-exllamav2": Release("gptqmodel", "7.7.0"),
    "vllm-0.33.0-gptq-gemm": Release("vllm", "0.33.0"),
}
"""Compiled as `gptq-diff kernels build` does."""
KERNELS = (*MODULES, "gptqmodel-exllamav2")
EVERY = (*MODULES, *RELEASES)


def build(name: str, sources: Path, builds: Path) -> Any:
    """The compiled module, or ops; compiled once, later calls load it.

    RuntimeError or GptqDiffError with what nvcc said, or with what is missing.
    """
    if name in RELEASES:
        return loaded_ops(library(name, sources, builds), RELEASES[name])
    from torch.utils import cpp_extension

    upstream, place = MODULES[name], builds.absolute() / name
    folder = sources.absolute() / upstream.folder
    place.mkdir(parents=True, exist_ok=True)
    return cpp_extension.load(
        name=f"upstream_{name.replace('-', '_')}", sources=[str(folder / file) for file in upstream.files],
        extra_include_paths=[str(folder), *cuda_headers()], build_directory=str(place), with_cuda=True, verbose=False,
    )  # fmt: skip


def library(name: str, sources: Path, builds: Path) -> Path:
    """The library of one of RELEASES, compiled unless it was before; GptqDiffError as `build`."""
    release = RELEASES[name]
    pack = pack_of(release, Store(builds), Where(None, sources, Installer), print)
    made = compile_release(plan(read_pack(pack), pack, Store(builds).builds(release), None), os.environ)
    folder = Path(str(made.folder))
    return folder / read_built(folder).library


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
    started, error, file = time.perf_counter(), None, None
    try:
        if asked.kernel in RELEASES:
            file = str(library(asked.kernel, asked.sources, asked.builds).absolute())
        else:
            build(asked.kernel, asked.sources, asked.builds)
    except (RuntimeError, OSError, ImportError, GptqDiffError) as e:
        error = str(e)[-LOG_LENGTH:]
        for place in (asked.sources, asked.builds):  # the log is kept as data: it names no folder of this machine
            error = error.replace(f"{place.absolute()}/", "").replace(str(place), place.name)
    seconds = round(time.perf_counter() - started, 1)
    asked.out.write_text(json.dumps({"built": error is None, "seconds": seconds, "error": error, "library": file}))


if __name__ == "__main__":
    main()
