"""Work that is done in one thread behind the run, which gives way to whoever has an engine waiting."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from typing_extensions import Self

GoOn = Callable[[], None]
"""Called again and again by a piece of work, where it may rest; what it raises is to end the work."""
Work = Callable[[GoOn], None]


def unhindered() -> None:
    """A `GoOn` of work that nobody waits for."""


def at_once(work: Work) -> None:
    """In place of `Behind.later`: here and now."""
    work(unhindered)


class _EndedError(Exception):
    """The run has ended before its time: whatever is at work is not needed any more."""


class Behind:
    """A context in which pieces of work are done one after the other, in a thread of their own.

    What the thread and the run do never overlaps where the run asks for that (`alone`): the thread rests meanwhile.
    Left in peace, it waits for all of them and raises what the first that failed has raised; left by an exception, it
    ends the work at its next step. No thread is left in either case.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="behind")
        self._done: list[Future[None]] = []
        self._turn = threading.Condition()
        self._at_work = self._wanted = self._stopped = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                for future in self._done:
                    future.result()
        finally:
            with self._turn:
                self._stopped = True
                self._turn.notify_all()
            self._pool.shutdown(cancel_futures=True)

    def later(self, work: Work) -> None:
        """Do that behind the run, after what was given before."""
        self._done.append(self._pool.submit(self._do, work))

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Inside, the thread rests; entered once it does."""
        try:
            with self._turn:
                self._wanted = True
                self._turn.wait_for(lambda: not self._at_work)
            yield
        finally:
            with self._turn:
                self._wanted = False
                self._turn.notify_all()

    def _do(self, work: Work) -> None:
        try:
            self._go_on()
            work(self._go_on)
        except _EndedError:
            return
        finally:
            self._rest()

    def _go_on(self) -> None:
        with self._turn:
            if self._wanted:
                self._rest()
                self._turn.wait_for(lambda: self._stopped or not self._wanted)
            if self._stopped:
                raise _EndedError
            self._at_work = True

    def _rest(self) -> None:
        with self._turn:  # a condition's lock may be taken by its holder again
            self._at_work = False
            self._turn.notify_all()
