"""What this run ran on, for reports: named facts only, no environment variables, no host or user names."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from pathlib import Path

PROC = Path("/proc")
"""Where Linux tells about processors and drivers; absent elsewhere."""


def environment() -> dict[str, str | None]:
    """Interpreter, package versions, processor, GPU; None for what is not there. Does not import torch."""
    facts: dict[str, str | None] = {"python": platform.python_version()}
    facts["platform"] = f"{platform.system()} {platform.machine()}"
    for name in ("torch", "transformers", "numpy", "numba", "safetensors"):
        facts[name] = _version(name)
    facts["cpu"] = _cpu()
    facts["gpu"] = _gpu()
    facts["cuda"] = _cuda_driver()
    return facts


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> str | None:
    return _value(_lines(PROC / "cpuinfo"), "model name") or platform.processor() or None


def _gpu() -> str | None:
    """The first NVIDIA GPU's name, as its driver tells it."""
    names = (_value(_lines(place), "Model") for place in sorted(PROC.glob("driver/nvidia/gpus/*/information")))
    return next((name for name in names if name), None)


def _cuda_driver() -> str | None:
    """The NVIDIA driver's version; not the rest of its line, which names who built it where."""
    first = next(iter(_lines(PROC / "driver" / "nvidia" / "version")), "")
    found = re.search(r"\b\d+(\.\d+){1,2}\b", first)
    return f"driver {found[0]}" if found else None


def _lines(file: Path) -> list[str]:
    """Lines of a file of the system; none where there is no such file or it may not be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _value(lines: list[str], key: str) -> str | None:
    """What stands behind `key :` in the first line that begins with it."""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)
