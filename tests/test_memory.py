from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gptq_diff.errors import BackendError
from gptq_diff.memory import NOTHING, MemoryUse, memory_of, ran_out_of_gpu_memory

MEGABYTE = 10**6


ALLOCATES = """
import mmap, sys
def touch(memory):
    for i in range(0, len(memory), 4096):
        memory[i] = 1
    return memory
print("before", flush=True)
sys.stdin.readline()
held, shared = touch(bytearray(30_000_000)), touch(mmap.mmap(-1, 20_000_000))
with open(sys.argv[1], "rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
    assert sum(mapped[i] for i in range(0, len(mapped), 4096)) == 0
    print("after", flush=True)
    sys.stdin.readline()
"""


def test_private_memory_is_what_was_allocated(tmp_path: Path) -> None:
    """Anonymous and shared memory count, pages of a mapped file do not, and the resident set holds all of them.

    In a process of its own: this one has freed memory that an allocation may be given again.
    """
    file = tmp_path / "mapped"
    file.write_bytes(bytes(40 * MEGABYTE))
    child = subprocess.Popen(
        [sys.executable, "-c", ALLOCATES, file], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdin is not None and child.stdout is not None
    with child:
        seen = []
        for word in ("before", "after"):
            assert child.stdout.readline().strip() == word
            seen.append(memory_of(child.pid))
            child.stdin.write("\n")
            child.stdin.flush()
    before, after = seen
    assert before.private is not None and after.private is not None
    assert before.rss is not None and after.rss is not None
    assert 45 * MEGABYTE < after.private - before.private < 60 * MEGABYTE
    assert after.rss - before.rss > 80 * MEGABYTE


def test_a_process_that_is_gone_has_none() -> None:
    """The worker may end between two samples; a zombie, which has no memory either, is the same."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    while memory_of(child.pid) != NOTHING:
        pass
    child.wait()
    assert memory_of(child.pid) == NOTHING


def test_the_peak_is_taken_figure_by_figure() -> None:
    """A figure that is not known stands back behind one that is."""
    assert MemoryUse(3, 5).peak(MemoryUse(4, 2)) == MemoryUse(4, 5)
    assert NOTHING.peak(MemoryUse(4, 2)) == MemoryUse(4, 2)
    assert MemoryUse(4, None).peak(NOTHING) == MemoryUse(4, None)
    assert MemoryUse(1, 1, 7).peak(MemoryUse(None, None, 9)) == MemoryUse(1, 1, 9)
    assert MemoryUse(1, 1).peak(MemoryUse(2, 2)).gpu is None


TORCH = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 139.72 GiB of which 5.31 MiB is "
    "free. Process 41 has 139 GiB memory in use. Of the allocated memory 3 GiB is allocated by PyTorch, and 2 MiB is "
    "reserved by PyTorch but unallocated."
)
"""As torch 2.11 says it."""
VLLM = (
    "Free memory on device cuda:0 (3.1/139.72 GiB) on startup is less than desired GPU memory utilization (0.9, "
    "125.75 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
"""As vLLM 0.20 says it."""


class TestTooLittleGpuMemory:
    def test_torchs_own_error(self) -> None:
        said = ran_out_of_gpu_memory(torch.OutOfMemoryError(TORCH))
        assert said is not None
        assert said.startswith("ran out of GPU memory: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has")
        assert len(said) < 230

    @pytest.mark.parametrize("text", ["", "no words of ours"])
    def test_it_is_known_by_its_name(self, text: str) -> None:
        assert ran_out_of_gpu_memory(torch.OutOfMemoryError(text)) == f"ran out of GPU memory: {text}"

    def test_an_error_of_ours_that_comes_from_one(self) -> None:
        """Engines turn what their library raises into a sentence; the library's words are what matters."""
        try:
            try:
                raise ValueError(VLLM)
            except ValueError as e:
                raise BackendError(f"vLLM 0.20.2 does not load this model: {e}") from e
        except BackendError as e:
            said = ran_out_of_gpu_memory(e)
        assert said is not None
        assert said.startswith("ran out of GPU memory: Free memory on device cuda:0 (3.1/139.72 GiB) on startup")

    @pytest.mark.parametrize(
        "text",
        [
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
            "To serve at least one request with the models's max seq len (64), (0.25 GiB KV cache is needed, which is",
        ],
    )
    def test_what_cuda_and_vllm_say_in_other_errors(self, text: str) -> None:
        said = ran_out_of_gpu_memory(RuntimeError(text))
        assert said == f"ran out of GPU memory: {' '.join(text.split())}"

    @pytest.mark.parametrize(
        "error",
        [
            RuntimeError("CUDA error: an illegal memory access was encountered"),
            BackendError("vLLM does not load this model: unknown architecture"),
            RuntimeError("[enforce fail at alloc_cpu.cpp:119] data. DefaultCPUAllocator: can't allocate memory"),
        ],
    )
    def test_other_errors_are_not_taken_for_it(self, error: Exception) -> None:
        error.__context__ = error  # a chain that has no end
        assert ran_out_of_gpu_memory(error) is None
