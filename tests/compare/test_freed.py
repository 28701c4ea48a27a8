"""What judging has freed goes back to the system: now and then, where the C library can, and to some effect."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gptq_diff.compare import freed

GROWN = """
import sys
import torch
from gptq_diff.compare.freed import hand_back
from gptq_diff.memory import memory_of
import os

def private():
    return memory_of(os.getpid()).private

torch.empty(30 << 20, dtype=torch.uint8)  # from now on glibc takes such sizes from its heap
before = private()
kept = []
for _ in range(40):
    large = torch.ones(8 << 20, dtype=torch.uint8)
    kept.append(torch.ones(1 << 16, dtype=torch.uint8))
    held = torch.ones((8 << 20) + (len(kept) << 12), dtype=torch.uint8)
    kept.append(torch.ones(1 << 16, dtype=torch.uint8))
    del large, held
grown = private() - before
hand_back()
print(grown, private() - before, sum(t.nbytes for t in kept))
"""


def test_memory_is_handed_back_after_so_many_bytes_and_counted_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not after each linear: fresh pages cost time."""
    done: list[int] = []
    monkeypatch.setattr(freed, "hand_back", lambda: done.append(1))
    count = freed.Freed()
    for i, size in enumerate((freed.WORTH - 1, 1, freed.WORTH // 2, freed.WORTH // 2, 5 * freed.WORTH, 1)):
        count.add(size)
        assert len(done) == (0, 1, 1, 2, 3, 3)[i]


@pytest.mark.parametrize(("platform", "library"), [("darwin", None), ("win32", None), ("linux", SimpleNamespace())])
def test_elsewhere_nothing_is_done(platform: str, library: object, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system, or Linux with another C library, which has no such function."""

    def loaded(_: object) -> object:
        assert library is not None, "no library is looked for"
        return library

    monkeypatch.setattr(ctypes, "CDLL", loaded)
    monkeypatch.setattr(sys, "platform", platform)
    freed.hand_back()


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_what_was_freed_leaves_the_process() -> None:
    """What is still held stays, and little else, however it lies among what was freed."""
    ran = subprocess.run([sys.executable, "-c", GROWN], capture_output=True, check=True, text=True)
    _, left, held = map(int, ran.stdout.split())
    assert left < held + (16 << 20)
