"""What this machine can do at most: python -m benchmarks.gpu.thirty_two.ceilings --out FILE.json

Copies between pinned host memory and the GPU, copies within the GPU, float64 products, launches, and reading a file
that lies in the page cache. The figures of the other parts are told as multiples of what these allow.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.gpu.thirty_two.prompt import Found, synchronize


def rate(work: Callable[[], object], amount: float, rounds: int = 5) -> float:
    """Amount a second, median of rounds, after one that does not count."""
    seconds = []
    for _ in range(rounds + 1):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return amount / statistics.median(seconds[1:])


def launches_a_second(device: str, count: int = 5000) -> float:
    """Of the cheapest kernel, from Python, one after the other: what the engine's process is made of."""
    small = torch.zeros(64, device=device)

    def many() -> None:
        for _ in range(count):
            small.add_(1.0)

    return rate(many, count, 3)


def read_rate(file: Path, most: int = 2**31) -> float:
    """Bytes a second of a second reading of the file's beginning."""
    buffer = bytearray(64 * 2**20)
    size = min(file.stat().st_size, most)

    def read() -> None:
        with file.open("rb", buffering=0) as f:
            left = size
            while left > 0 and (got := f.readinto(buffer)):
                left -= got

    return rate(read, size, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--megabytes", type=int, default=1024)
    parser.add_argument("--file", type=Path, help="a large file, to be read twice")
    asked = parser.parse_args()
    nbytes, device, gpu = asked.megabytes * 2**20, asked.device, asked.device == "cuda"
    name = torch.cuda.get_device_name() if gpu else "none"
    found = Found(asked.out, what="ceilings of this machine", gpu=name, torch=torch.__version__)
    host = torch.empty(nbytes, dtype=torch.uint8, pin_memory=gpu)
    there, other = (torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2))
    found.add(
        device_to_host_bytes_per_s=rate(lambda: host.copy_(there, non_blocking=True), nbytes),
        host_to_device_bytes_per_s=rate(lambda: there.copy_(host, non_blocking=True), nbytes),
        device_copy_bytes_per_s=rate(lambda: other.copy_(there), 2 * nbytes),
    )
    pageable = torch.ones(min(nbytes, 2**28), dtype=torch.uint8)
    found.add(pageable_to_device_bytes_per_s=rate(lambda: there[: len(pageable)].copy_(pageable), len(pageable)))
    found.add(launches_per_s=launches_a_second(device))
    k = 4096 if gpu else 256
    a, b = (torch.rand(k, k, dtype=torch.float64, device=device) for _ in range(2))
    found.add(float64_flop_per_s=rate(lambda: a @ b, 2 * k**3))
    if asked.file is not None:
        found.add(file_read_bytes_per_s=read_rate(asked.file))


if __name__ == "__main__":
    main()
