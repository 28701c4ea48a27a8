"""A process's memory, sampled from outside."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryUse:
    """Bytes; None where the system does not say (anything but Linux).

    rss: resident set, mapped files included (VmRSS).
    private: anonymous and shared memory (RssAnon + RssShmem): what the process really needs.
    """

    rss: int | None
    private: int | None

    def peak(self, other: MemoryUse) -> MemoryUse:
        """The larger of the two, figure by figure."""
        return MemoryUse(_larger(self.rss, other.rss), _larger(self.private, other.private))


NOTHING = MemoryUse(None, None)


def memory_of(pid: int) -> MemoryUse:
    """What /proc says of that process now; NOTHING when it is gone or there is no /proc."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return NOTHING
    fields = {
        key: int(rest.split()[0]) * 1024
        for key, _, rest in (line.partition(":") for line in text.splitlines())
        if key in {"VmRSS", "RssAnon", "RssShmem"}
    }
    if "VmRSS" not in fields:
        return NOTHING
    return MemoryUse(fields["VmRSS"], fields.get("RssAnon", 0) + fields.get("RssShmem", 0))


def _larger(a: int | None, b: int | None) -> int | None:
    if a is None or b is None:
        return a if b is None else b
    return max(a, b)
