"""Where shipped chunks wait for the sink: in order, within a bound, handled beside the engine or by itself.

Python's interpreter lock is shared with the engine, whose process is what a prefill waits for. So the thread does
nothing while a step runs and there is room, and works when it is woken: between steps once half the room is used up,
where there is none left, and at the end.
"""

from __future__ import annotations

import threading
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Callable, Generic, TypeVar

Item = TypeVar("Item")
MANY = 512
"""Items that may wait whatever they hold."""


class Drain(Generic[Item]):
    """Calls `work` with every item put into it, in order.

    most: bytes that waiting items may hold together; one item may always wait.
    beside: whether a thread of its own works; else whoever calls `wake`, `put` or `finish`.
    waited: how often `room_for` found no room: the engine stood still then.
    """

    def __init__(self, work: Callable[[Item], None], most: int, *, beside: bool) -> None:
        self._work = work
        self._most = most
        self._items: deque[tuple[Item, int]] = deque()
        self._held = 0
        self._changed = threading.Condition()
        self._executor = ThreadPoolExecutor(1) if beside else None  # starts its thread with its first task
        self._task: Future[None] | None = None
        self.waited = 0

    def put(self, item: Item, nbytes: int) -> None:
        """Let it wait."""
        with self._changed:
            self._items.append((item, nbytes))
            self._held += nbytes

    def wake_if_crowded(self) -> None:
        """Work off what waits where that is much. Raises what `work` raised before."""
        if self._held > self._most // 2 or len(self._items) > MANY:
            self.wake()

    def room_for(self, nbytes: int) -> None:
        """Block until that many bytes more may wait."""
        if not self._room(nbytes):
            self.waited += 1
            self._until(lambda: self._room(nbytes))

    def wake(self) -> None:
        """Work off what waits. Raises what `work` raised before."""
        if self._executor is None:
            self._work_off()
            return
        if self._task is not None and self._task.done():
            self._task.result()
            self._task = None
        if self._task is None and self._items:
            self._task = self._executor.submit(self._work_off)
            self._task.add_done_callback(self._tell)

    def finish(self) -> None:
        """Until nothing waits. Raises what `work` raised."""
        self._until(lambda: not self._items and (self._task is None or self._task.done()))
        self.wake()

    def stop(self) -> None:
        """End the thread; what still waits is dropped."""
        with self._changed:
            self._items.clear()
        if self._executor is not None:
            self._executor.shutdown()

    def _room(self, nbytes: int) -> bool:
        return self._held + nbytes <= self._most or not self._held

    def _until(self, reached: Callable[[], bool]) -> None:
        """Wake whoever works until that is so, or `work` raises."""
        while not reached():
            self.wake()
            with self._changed:
                self._changed.wait_for(lambda: reached() or self._task is None or self._task.done())

    def _tell(self, _task: Future[Any]) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work_off(self) -> None:
        while True:
            with self._changed:
                if not self._items:
                    return
                item, nbytes = self._items.popleft()
            self._work(item)
            with self._changed:
                self._held -= nbytes
                self._changed.notify_all()
