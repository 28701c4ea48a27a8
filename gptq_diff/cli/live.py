"""What a person sees while a run goes on: a bar per backend, or plain lines where there is no terminal."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.text import Text

from gptq_diff.session.asked import Asked
from gptq_diff.text import one_line


class LiveWatcher:
    """Shows progress on the console (of stderr); `quiet` shows nothing."""

    def __init__(self, asked: Asked, console: Console, *, quiet: bool) -> None:
        self._console = console
        self._quiet = quiet
        self._plain = not console.is_terminal
        captures = len(asked.prompts) * asked.repeats
        self._steps = captures * asked.max_new_tokens
        self._per_capture = asked.max_new_tokens
        self._done: dict[str, int] = {}
        self._layers = 1
        self._progress = Progress(
            TextColumn("{task.fields[name]}"), BarColumn(bar_width=24), TimeElapsedColumn(),
            TextColumn("{task.fields[state]}"), console=console, disable=quiet or self._plain,
        )  # fmt: skip
        self._tasks: dict[str, TaskID] = {
            b.name: self._progress.add_task("", total=self._steps, name=f"{b.name:<16}", state="waiting", start=False)
            for b in asked.backends
        }
        self._judging = self._progress.add_task("", total=None, name=f"{'judging':<16}", state="waiting", start=False)

    def __enter__(self) -> LiveWatcher:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def worker(self, backend: str, event: dict[str, Any]) -> None:
        """Move that backend's bar."""
        task, kind = self._tasks[backend], event["event"]
        if kind == "job":
            self._layers = max(event["layers"], 1)
            self._progress.start_task(task)
            self._progress.update(task, state="running")
        elif kind == "step":
            share = event["step"] + event["index"] / self._layers
            base = self._done.get(backend, 0) * self._per_capture
            self._progress.update(task, completed=base + share, state=one_line(event["layer"], 60))
        elif kind == "done":
            self._done[backend] = self._done.get(backend, 0) + 1
            finished = self._done[backend] * self._per_capture
            self._progress.update(task, completed=finished, state="done" if finished >= self._steps else "running")
            if finished >= self._steps:
                self._progress.stop_task(task)
                self._say(f"{backend}: captured")
        elif kind == "linear":
            self._progress.update(task, state=f"experiments: {one_line(event['layer'], 60)}")
        elif kind == "linear-done":
            self._progress.update(task, state="done")
        elif kind == "further-failed":
            self._progress.update(task, state=f"experiments failed: {one_line(event['reason'], 60)}")
            self._say(f"{backend}: experiments failed: {one_line(event['reason'])}")
        elif kind == "failed":
            self._progress.update(task, state=f"failed: {one_line(event['reason'], 60)}")
            self._progress.stop_task(task)
            self._say(f"{backend}: failed: {one_line(event['reason'])}")

    def judging(self, done: int, total: int) -> None:
        """Move the judging bar."""
        if done == 1:
            self._progress.start_task(self._judging)
        self._progress.update(self._judging, completed=done, total=total, state=f"{done} of {total} linears")
        if done == total:
            self._progress.stop_task(self._judging)
            self._say(f"judged {total} linears")

    def _say(self, line: str) -> None:
        if self._plain and not self._quiet:
            self._console.print(Text(line))
