"""What the figures were measured on; nothing that names the machine."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import gptq_diff

PACKAGES = ("torch", "transformers", "numpy", "numba", "safetensors")


def machine() -> dict[str, object]:
    """CPU, cores, memory, versions, date, and how busy the machine was with other work before the measurement."""
    import torch  # not before the caller has set what OpenMP reads when it is loaded

    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gptq_diff": gptq_diff.__version__,
        **{name: version(name) for name in PACKAGES},
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "gomp_spincount": os.environ.get("GOMP_SPINCOUNT", "default"),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def _cpu() -> str:
    """The model as the kernel names it, with family and model numbers, since virtual machines cut the name short."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    numbers = [f"{key} {fields[key]}" for key in ("cpu family", "model") if key in fields]
    return f"{fields.get('model name', platform.processor())} ({', '.join(numbers)})"
