"""Memory that judging has freed, handed back to the system now and then.

glibc takes tensors of up to 32 MB from its heap once such a size was freed, and what stays, the figures of rows, comes
to lie among them: of a prompt of 4,000 tokens each linear left 20 MB behind that no later tensor fitted into.
"""

from __future__ import annotations

import ctypes
import sys

WORTH = 1 << 29
"""Bytes after which it is done: a page that is handed back costs as much as a fresh one when it is wanted again."""


class Freed:
    """Counts what was freed since memory was last handed back."""

    def __init__(self) -> None:
        self._bytes = 0

    def add(self, size: int) -> None:
        """So many bytes more were allocated and freed."""
        self._bytes += size
        if self._bytes >= WORTH:
            self._bytes = 0
            hand_back()


def hand_back() -> None:
    """All free memory of the C library's heap, where that is glibc (malloc_trim(3)); elsewhere nothing is done."""
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
