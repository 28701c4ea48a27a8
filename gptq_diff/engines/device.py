"""Where a model of torch runs, and how much of a GPU's memory it takes."""

from __future__ import annotations

import torch

from gptq_diff.errors import BackendError


def find_device(asked: str) -> torch.device:
    """The device of that name; "auto" is a GPU where torch sees one, else the CPU. BackendError for one not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(asked)
    if device.type == "cuda":
        there = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= there:
            raise BackendError(
                f"there is no {asked} for torch {torch.__version__}: it sees {there} GPUs",
                "take another --device, or an interpreter whose torch is built for CUDA",
            )
    return device


def spare_bytes(device: torch.device) -> int:
    """Bytes on that device that packed weights may take for good: half of what is free, the rest is for computing."""
    if device.type != "cuda":
        return 0
    free, _ = torch.cuda.mem_get_info(device)
    return int(free) // 2


def gpu_peak() -> int | None:
    """The most bytes that this process's tensors took on all GPUs since the last call; None where it uses no GPU.

    As torch's own allocator counts them (`torch.cuda.max_memory_allocated`): without CUDA's context and what libraries
    allocate past torch.
    """
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return None
    peak = 0
    for index in range(torch.cuda.device_count()):
        peak += torch.cuda.max_memory_allocated(index)
        torch.cuda.reset_peak_memory_stats(index)
    return peak
