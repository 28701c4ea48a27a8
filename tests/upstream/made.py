"""Source distributions made up for tests: the shape of vLLM's and GPTQModel's, and nothing of theirs."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

GEMM = """#include "compat.cuh"
#include "../../torch_utils.h"
#include <cuda_runtime.h>
torch::Tensor gptq_gemm(torch::Tensor a, torch::Tensor b_q_weight,
                        torch::Tensor b_gptq_qzeros,
                        torch::Tensor b_gptq_scales, {more}
                        int64_t bit) {{
  return a;
}}
"""
OLD = GEMM.format(more="torch::Tensor b_g_idx, bool use_exllama,")
MIDDLE = GEMM.format(more="torch::Tensor b_g_idx,\n  bool use_exllama, bool use_v2_format,")
NEW = "#include <torch/csrc/stable/ops.h>\n" + GEMM.format(more="bool use_exllama, bool use_v2_format,")

VLLM = {
    "csrc/quantization/gptq/q_gemm.cu": OLD,
    "csrc/quantization/gptq/compat.cuh": '#pragma once\n  #  include "nested.h"\n',
    "csrc/quantization/gptq/nested.h": '#include "compat.cuh"\n#include "not_in_the_archive.h"\n',
    "csrc/quantization/gptq/unused.cuh": "// nobody includes this\n",
    "csrc/torch_utils.h": "#pragma once\n",
    "csrc/attention/kernel.cu": "// another kernel\n",
    "vllm/__init__.py": "import torch\n",
    "LICENSE": "a licence\n",
    "README.md": "not wanted\n",
}
GPTQMODEL = {
    "gptqmodel_ext/exllamav2/ext_gptq.cpp": '#include "config.h"\n#include "cuda/q_matrix.cuh"\n',
    "gptqmodel_ext/exllamav2/config.h": "",
    "gptqmodel_ext/exllamav2/cuda/q_matrix.cuh": "",
    "gptqmodel_ext/exllamav2/cuda/q_matrix.cu": '#include "q_matrix.cuh"\n#include "config.h"\n',
    "gptqmodel_ext/exllamav2/cuda/q_gemm.cu": "",
    "gptqmodel_ext/exllamav2/ext_awq.cpp": "",
    "gptqmodel_ext/marlin/marlin.cu": "",
}


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
    """One member, of whatever kind."""
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(content), kind, link
    tar.addfile(member, io.BytesIO(content))


def sdist(folder: Path, top: str = "vllm-0.5.1", files: Mapping[str, str] = VLLM, gemm: str | None = None) -> Path:
    """The archive of those files. gemm: in place of q_gemm.cu."""
    folder.mkdir(parents=True, exist_ok=True)
    archive = folder / f"{top}.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        add(tar, top, kind=tarfile.DIRTYPE)
        changed = {} if gemm is None else {"csrc/quantization/gptq/q_gemm.cu": gemm}
        for name, content in {**files, **changed}.items():
            add(tar, f"{top}/{name}", content.encode())
    return archive
