from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

from gptq_diff.memory import NOTHING, MemoryUse, memory_of

MEGABYTE = 10**6


def test_private_memory_is_what_was_allocated(tmp_path: Path) -> None:
    """Anonymous and shared memory count, pages of a mapped file do not, and the resident set holds all of them."""
    file = tmp_path / "mapped"
    file.write_bytes(bytes(40 * MEGABYTE))
    before = memory_of(os.getpid())
    held = bytearray(30 * MEGABYTE)
    shared = mmap.mmap(-1, 20 * MEGABYTE)
    for touched in (held, shared):
        for i in range(0, len(touched), 4096):
            touched[i] = 1
    with file.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[i] for i in range(0, len(mapped), 4096)) == 0
        after = memory_of(os.getpid())
    assert before.private is not None and after.private is not None
    assert before.rss is not None and after.rss is not None
    assert 45 * MEGABYTE < after.private - before.private < 60 * MEGABYTE
    assert after.rss - before.rss > 80 * MEGABYTE
    assert len(held) + len(shared) == 50 * MEGABYTE


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
