"""What a parent asks of a worker, and what the worker says on the way: plain JSON both ways.

The parent writes SPEC.json and reads the events file; nothing goes through pipes, so neither side can block the
other. Standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Job:
    """One prompt through one kernel mode.

    backend: preset name, used in paths and reports.
    kernel: kernel mode of the engine.
    prompt: prompt id.
    out: capture directory, absolute; must not exist.
    forced: ids to feed instead of the model's own choice, or None.
    """

    backend: str
    kernel: str
    prompt: str
    token_ids: tuple[int, ...]
    max_new_tokens: int
    forced: tuple[int, ...] | None
    out: str
    repeat: int = 1

    @property
    def key(self) -> str:
        """The prompt's id, with the number of the repeat from the second one on: the capture's directory name."""
        return capture_key(self.prompt, self.repeat)


def capture_key(prompt: str, repeat: int) -> str:
    """Directory name of a capture below its backend's; no prompt's id holds the `@`, so two never meet."""
    return prompt if repeat == 1 else f"{prompt}@{repeat}"


def prompt_of(key: str) -> str:
    """The prompt's id in a capture key."""
    return key.partition("@")[0]


@dataclass(frozen=True)
class WorkerSpec:
    """One load of an engine and the jobs that share it.

    model: checkpoint directory, absolute. events: file for the worker's JSON lines, absolute.
    parent: process id whose end ends the worker too. route: Preset.route. tensor_parallel: LoadSpec.tensor_parallel.
    original: LoadSpec.original; "" for none.
    """

    engine: str
    model: str
    dtype: str
    device: str
    trust_remote_code: bool
    threads: int
    seed: int
    events: str
    parent: int
    jobs: tuple[Job, ...]
    route: str = ""
    tensor_parallel: int = 1
    original: str = ""

    @property
    def longest(self) -> int:
        """Tokens that the longest job needs, prompt and answer together."""
        return max(len(job.token_ids) + job.max_new_tokens for job in self.jobs)

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> WorkerSpec:
        """The spec in that file."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        jobs = raw.pop("jobs")
        for job in jobs:
            job["token_ids"] = tuple(job["token_ids"])
            job["forced"] = None if job["forced"] is None else tuple(job["forced"])
        return WorkerSpec(jobs=tuple(Job(**job) for job in jobs), **raw)


class Events:
    """The worker's side of the events file: one JSON object a line, written through at once."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def say(self, event: str, **values: object) -> None:
        """Append one event with the time it happened."""
        self._file.write(json.dumps({"event": event, "time": time.time(), **values}, ensure_ascii=False) + "\n")


class EventReader:
    """The parent's side: reads what has been added since the last look.

    A half-written line waits for its end; a whole one that is no event says nothing, since nobody vouches for it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new(self) -> list[dict[str, Any]]:
        """Events since the last call, oldest first."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as f:
            f.seek(self._offset)
            data = f.read()
        whole, newline, _ = data.rpartition(b"\n")
        if not newline:
            return []
        self._offset += len(whole) + 1
        events = (_object(line) for line in whole.split(b"\n"))
        return [event for event in events if "event" in event]


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object on that line, an empty one if there is none."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
