"""How the kernel of a release is compiled: read off its sources, since signatures and ABIs changed between releases."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

from gptq_diff.errors import GptqDiffError
from gptq_diff.upstream.pack import Pack
from gptq_diff.upstream.spec import CompileSpec

BINDINGS = Path(__file__).parent / "bindings"
STABLE_ABI = ("-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020B000000000000ULL")
"""What vLLM's CMakeLists.txt defines for the sources that it writes for torch's stable ABI (torch 2.11 and newer)."""
GPTQMODEL_FLAGS = ("-DENABLE_BF16", "--optimize=2", "-Xptxas=-O2,-dlcm=ca", "-diag-suppress=179,39,177")
"""As GPTQModel's utils/exllamav2.py gives them."""

_GEMM = re.compile(r"\bgptq_gemm\s*\(([^)]*)\)\s*\{")
_ALWAYS = ("a", "b_q_weight", "b_gptq_qzeros", "b_gptq_scales", "use_exllama", "bit")
_G_IDX, _V2_FORMAT = "b_g_idx", "use_v2_format"


def plan(pack: Pack, folder: Path, target: Path, arch: str | None) -> CompileSpec:
    """The order to compile that pack, which lies at `folder`, into a folder below `target`.

    GptqDiffError where its gptq_gemm has a signature that is not known.
    """
    spec = _vllm(pack, folder) if pack.package == "vllm" else _gptqmodel(pack, folder)
    told = asdict(spec)
    ours = sorted(BINDINGS.rglob("*.*"))
    told["sources"] = [pack.digest, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in ours)]
    told["include"] = []  # folders of this machine
    recipe = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]
    return replace(spec, arch=arch or "", digest=pack.digest, recipe=recipe, target=str(target.absolute()))


def _spec(pack: Pack, folder: Path, ops: tuple[str, ...]) -> CompileSpec:
    base = folder.absolute()
    name = re.sub(r"\W", "_", f"gptq_diff_{pack.package}_{pack.version}")
    return CompileSpec(
        package=pack.package, version=pack.version, name=name, sources=tuple(str(base / s) for s in pack.sources),
        include=(str(base / pack.include),), defines=(), cuda_flags=(), ops=ops, arch="", digest="", recipe="",
        target="",
    )  # fmt: skip


def _vllm(pack: Pack, folder: Path) -> CompileSpec:
    spec = _spec(pack, folder, ("_C", "gptq_gemm", "gptq_shuffle"))
    text = pack.text_of(folder, pack.sources[0])
    parameters = gemm_parameters(text)
    known = [name for name in parameters if name not in (_G_IDX, _V2_FORMAT)]
    if tuple(known) != _ALWAYS:
        said = ", ".join(parameters) or "none that could be found"
        raise GptqDiffError(
            f"gptq_gemm of {pack.release} has parameters that are not known: {said}", "take another release"
        )
    flags = {_G_IDX: "-DGPTQ_G_IDX", _V2_FORMAT: "-DGPTQ_V2_FORMAT"}
    defines = [flag for name, flag in flags.items() if name in parameters]
    stable = "torch/csrc/stable" in text or "torch::stable" in text
    binding = BINDINGS / ("gptq_gemm_stable.cpp" if stable else "gptq_gemm.cpp")
    return replace(
        spec, sources=(*spec.sources, str(binding)), include=(*spec.include, str(BINDINGS / "headers")),
        defines=(*defines, *(STABLE_ABI if stable else ())),
    )  # fmt: skip


def _gptqmodel(pack: Pack, folder: Path) -> CompileSpec:
    spec = _spec(pack, folder, ("gptqmodel_exllamav2", "make_q_matrix", "gemm_half_q_half"))
    return replace(spec, cuda_flags=GPTQMODEL_FLAGS)


def gemm_parameters(text: str) -> tuple[str, ...]:
    """Names of the parameters of gptq_gemm, in order, as its definition has them; none where there is no definition."""
    found = _GEMM.search(text)
    if found is None:
        return ()
    return tuple(part.split()[-1].lstrip("&*") for part in found[1].split(",") if part.strip())
