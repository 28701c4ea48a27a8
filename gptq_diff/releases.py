"""Kernels of a release, named without installing it: `vllm==0.20.2:exllama`. Standard library only.

A new package, or a new way to call its kernel, is an entry of MODES.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from types import MappingProxyType

from gptq_diff.errors import UsageError
from gptq_diff.records import Preset
from gptq_diff.suggest import nearest

_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*", re.ASCII)
_REQUIRES = ("torch", "transformers", "safetensors")

MODES = MappingProxyType({
    "vllm": MappingProxyType({"exllama": "exllama-fast", "reconstruct": "exllama-reconstruct", "gptq": None}),
    "gptqmodel": MappingProxyType({"exllama_v2": None}),
})  # fmt: skip
"""Package -> mode -> the path that is forced, None for the one that the number of rows picks."""

_SAYS = {
    "exllama": "gptq_gemm on its fused fast path, however many rows there are",
    "reconstruct": "gptq_gemm on its reconstruct path, however few rows there are",
    "gptq": "gptq_gemm as shipped: the fast path for few rows, reconstruct for many",
    "exllama_v2": "exllama_v2 as shipped: the fused path for few rows, reconstruct for many",
}


@dataclass(frozen=True)
class Release:
    """One release of a package that brings GPTQ kernels; `str()` is `vllm==0.20.2`."""

    package: str
    version: str

    def __str__(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def backends(self) -> tuple[str, ...]:
        """What --backends calls its kernels."""
        return tuple(f"{self}:{mode}" for mode in MODES[self.package])


def release_named(text: str) -> Release:
    """The release that `vllm==0.20.2` names; UsageError for another package, or for what is no version."""
    package, equals, version = text.partition("==")
    package = re.sub("[-_.]+", "-", package.strip()).lower()
    if not equals:
        guess = f"{package}==VERSION" if package in MODES else "vllm==VERSION"
        raise UsageError(f"{text!r} names no release", f"write {guess}, for example vllm==0.20.2")
    if package not in MODES:
        raise UsageError(
            f"no kernels are known of the package {package!r}{nearest(package, MODES)}",
            f"There are: {', '.join(MODES)}.",
        )
    version = version.strip()
    if _VERSION.fullmatch(version) is None:
        raise UsageError(f"{version!r} is not a version of {package}", f"write {package}==0.20.2, for example")
    return Release(package, version)


def backend_of_release(name: str) -> tuple[Release, str] | None:
    """Release and mode of `vllm==0.20.2:exllama`; None where the name is of another kind.

    UsageError for a release or a mode that is not known.
    """
    release_text, colon, mode = name.partition(":")
    if "==" not in release_text:
        return None
    release = release_named(release_text)
    if not colon or mode not in MODES[release.package]:
        guess = nearest(mode, MODES[release.package]) if colon else ""
        raise UsageError(f"{name!r} names no kernel of {release}{guess}", f"Kernels: {', '.join(release.backends)}.")
    return release, mode


def preset_of_release(name: str) -> Preset | None:
    """What `vllm==0.20.2:exllama` stands for in --backends; None and UsageError as `backend_of_release`."""
    found = backend_of_release(name)
    if found is None:
        return None
    release, mode = found
    name = f"{release}:{mode}"
    return Preset(
        name=name, engine="transformers", kernel=name, dtype="float16",
        summary=f"{release}'s own {_SAYS[mode]}; built from its sources", requires=_REQUIRES, gpu=True,
    )  # fmt: skip
