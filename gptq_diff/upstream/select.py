"""Which files of a source distribution make the GPTQ kernel: the sources, and what they include."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.errors import GptqDiffError
from gptq_diff.releases import Release
from gptq_diff.upstream.archive import read_members

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"\n]+)"', re.MULTILINE)
_SUFFIXES = (".cu", ".cuh", ".h", ".hpp", ".cpp")
_LICENSE = re.compile(r"licen[cs]e(\.\w+)?", re.IGNORECASE)
_VLLM_SOURCE = re.compile(r"csrc/(?:.+/)?quantization/gptq/q_gemm\.cu")
_GPTQMODEL = "gptqmodel_ext/exllamav2"


@dataclass(frozen=True)
class Selected:
    """What is kept of a release.

    files: path -> content. sources: those that are compiled. include: folder for the compiler's search path.
    """

    files: Mapping[str, bytes]
    sources: tuple[str, ...]
    include: str


def select(archive: Path, release: Release) -> Selected:
    """The kernel sources of that source distribution, with its licence.

    UsageError as read_members; GptqDiffError where the release has no such kernel in a place that is known.
    """
    top = "csrc/" if release.package == "vllm" else f"{_GPTQMODEL}/"

    def wanted(path: str) -> bool:
        return (path.startswith(top) and path.endswith(_SUFFIXES)) or _LICENSE.fullmatch(path) is not None

    members = read_members(archive, release, wanted)
    sources, include = _vllm(members) if release.package == "vllm" else _gptqmodel(members)
    if not sources or not members.keys() >= set(sources):
        looked_for = "csrc/quantization/gptq/q_gemm.cu" if release.package == "vllm" else _GPTQMODEL
        raise GptqDiffError(
            f"the source distribution of {release} has no {looked_for}",
            "its kernels lie elsewhere, or it has none: take another release",
        )
    kept = {path for path in members if _LICENSE.fullmatch(path)} | _closure(members, sources, include)
    return Selected({path: members[path] for path in sorted(kept)}, sources, include)


def _vllm(members: Iterable[str]) -> tuple[tuple[str, ...], str]:
    found = sorted(path for path in members if _VLLM_SOURCE.fullmatch(path))
    return tuple(found[:1]), found[0].partition("/quantization/gptq/")[0] if found else ""


def _gptqmodel(members: Iterable[str]) -> tuple[tuple[str, ...], str]:  # noqa: ARG001  both are called alike
    names = ("ext_gptq.cpp", "cuda/q_matrix.cu", "cuda/q_gemm.cu")
    return tuple(f"{_GPTQMODEL}/{name}" for name in names), _GPTQMODEL


def _closure(members: Mapping[str, bytes], sources: Iterable[str], include: str) -> set[str]:
    """The sources and all that they include in quotes, as far as it is in the archive."""
    todo, found = list(sources), set()
    while todo:
        path = todo.pop()
        if path in found:
            continue
        found.add(path)
        for name in _INCLUDE.findall(members[path].decode("utf-8", errors="replace")):
            near = (posixpath.normpath(posixpath.join(place, name)) for place in (posixpath.dirname(path), include))
            todo += [place for place in near if place in members][:1]
    return found
