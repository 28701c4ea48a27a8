"""Making many things in the order in which they are written, several at a time: numpy lets go of Python's lock."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Callable, TypeVar

import torch

Made = TypeVar("Made")

MOST_THREADS = 16
"""Each holds what it makes and what that is made of, some hundred megabytes for the largest linears."""


def threads_here() -> int:
    """Threads to make with: the cores that this process may use, within MOST_THREADS."""
    return min(len(os.sched_getaffinity(0)), MOST_THREADS)


def in_order(tasks: Iterable[Callable[[], Made]], threads: int) -> Iterator[Made]:
    """What the tasks give, in their order; as many are at work, or done and waiting, as there are threads."""
    torch_threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting: deque[Future[Made]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(task))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(torch_threads)
