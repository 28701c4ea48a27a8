"""A process's memory, sampled from outside, and how a GPU's memory that did not suffice is recognised."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class MemoryUse:
    """Bytes; None where the system does not say (anything but Linux).

    rss: resident set, mapped files included (VmRSS).
    private: anonymous and shared memory (RssAnon + RssShmem): what the process really needs.
    gpu: on all GPUs, as the process itself tells (engines.base.Engine.gpu_peak); None where it uses none.
    """

    rss: int | None
    private: int | None
    gpu: int | None = None

    def peak(self, other: MemoryUse) -> MemoryUse:
        """The larger of the two, figure by figure."""
        return MemoryUse(
            _larger(self.rss, other.rss), _larger(self.private, other.private), _larger(self.gpu, other.gpu)
        )


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


_TOO_LITTLE = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUDA driver error: out of memory",
    "CUDA error: CUBLAS_STATUS_ALLOC_FAILED",
    "Free memory on device",  # vLLM, before it loads anything
    "No available memory for the cache blocks",  # vLLM, after it has
    "To serve at least one request with the models's max seq len",
)
"""What torch, CUDA's libraries and vLLM say where a GPU's memory does not suffice."""
_SAID_LENGTH = 200


def ran_out_of_gpu_memory(error: BaseException) -> str | None:
    """The sentence for an error that comes from too little GPU memory, or from one that does; None for any other."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = " ".join(str(cause).split())
        if type(cause).__name__ == "OutOfMemoryError" or any(words in text for words in _TOO_LITTLE):
            at = min((text.find(words) for words in _TOO_LITTLE if words in text), default=0)
            said = text[at:]
            return f"ran out of GPU memory: {said if len(said) <= _SAID_LENGTH else said[: _SAID_LENGTH - 1] + '…'}"
        cause = cause.__cause__ or cause.__context__
    return None
