"""What a parent asks of a worker, and what the worker says on the way: plain JSON both ways.

The parent writes SPEC.json and reads the events file; nothing goes through pipes, so neither side can block the
other. Standard library only, Python 3.9 syntax.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Union

from gptq_diff.whole_file import write_whole


@dataclass(frozen=True)
class Plant:
    """A fault to plant in the kernel, or the engine's model, while a job runs (gptq_diff.faults).

    kind: of faults.catalogue.KINDS. layer: a quantised linear. size: 0 (mild) to 1 (gross). seed: of what is drawn.
    """

    kind: str
    layer: str
    size: float
    seed: int


@dataclass(frozen=True)
class Job:
    """One prompt through one kernel mode.

    backend: preset name, used in paths and reports.
    kernel: kernel mode of the engine.
    prompt: prompt id.
    out: capture directory, absolute; must not exist.
    forced: ids to feed instead of the model's own choice, or None.
    plant: a fault to run it with, or None.
    forget: empty the engine's prefix cache before, where it has one.
    """

    backend: str
    kernel: str
    prompt: str
    token_ids: tuple[int, ...]
    max_new_tokens: int
    forced: tuple[int, ...] | None
    out: str
    repeat: int = 1
    plant: Plant | None = None
    forget: bool = False

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
class LinearCall:
    """One call of a kernel on rows of a stored x, made so often, and what of y is kept.

    rows: of the stored x, in the order they are given to the kernel; one may come several times.
    halvings: x is divided by two so often before.
    kept: spans (first, last + 1) of K that are left of x, zero elsewhere; empty for all of it. zero: x is all zeros.
    repeats: calls made. dirty: memory of the sizes of y is filled with NaN and freed before each, so that the allocator
    hands it out again: best effort, nobody can make it do so.
    keep: rows of y, as given to the kernel, that are stored; empty for all of them.
    """

    name: str
    rows: tuple[int, ...]
    halvings: int = 0
    kept: tuple[tuple[int, int], ...] = ()
    zero: bool = False
    repeats: int = 1
    dirty: bool = False
    keep: tuple[int, ...] = ()


@dataclass(frozen=True)
class LinearJob:
    """Calls of one kernel mode on one linear by itself.

    x: safetensors file with the tensor "x" [M, K], absolute. out: safetensors file to write, by rename; absolute.
    """

    backend: str
    kernel: str
    layer: str
    x: str
    calls: tuple[LinearCall, ...]
    out: str

    @property
    def key(self) -> str:
        """What it is told by: the file that it writes."""
        return self.out


AnyJob = Union[Job, LinearJob]


def _job_from(raw: dict[str, Any]) -> AnyJob:
    """A capture, or calls of a linear, which are told by having any."""
    values = dict(raw)
    if "calls" not in values:
        values["token_ids"] = tuple(values["token_ids"])
        values["forced"] = None if values["forced"] is None else tuple(values["forced"])
        values["plant"] = None if values.get("plant") is None else Plant(**values["plant"])
        return Job(**values)
    values["calls"] = tuple(_call_from(call) for call in values["calls"])
    return LinearJob(**values)


def _call_from(raw: dict[str, Any]) -> LinearCall:
    values = {**raw, "rows": tuple(raw["rows"]), "keep": tuple(raw["keep"])}
    values["kept"] = tuple((first, last) for first, last in raw["kept"])
    return LinearCall(**values)


@dataclass(frozen=True)
class WorkerSpec:
    """One load of an engine and the jobs that share it.

    model: checkpoint directory, absolute. events: file for the worker's JSON lines, absolute.
    parent: process id whose end ends the worker too. route: Preset.route. tensor_parallel: LoadSpec.tensor_parallel.
    original: LoadSpec.original; "" for none.
    follow_up: directory, absolute, where further jobs come after these ("" for none): see `round_file`.
    room: tokens that a further job may need, prompt and answer together. prefix_cache: LoadSpec.prefix_cache.
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
    jobs: tuple[AnyJob, ...]
    route: str = ""
    tensor_parallel: int = 1
    original: str = ""
    follow_up: str = ""
    room: int = 0
    prefix_cache: bool = False

    @property
    def longest(self) -> int:
        """Tokens that the longest job needs, prompt and answer together."""
        captures = (job for job in self.jobs if isinstance(job, Job))
        needed = [len(job.token_ids) + job.max_new_tokens for job in captures]
        return max([self.room, *needed])

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), ensure_ascii=False), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> WorkerSpec:
        """The spec in that file."""
        raw = json.loads(path.read_text(encoding="utf-8"))
        jobs = tuple(_job_from(job) for job in raw.pop("jobs"))
        return WorkerSpec(jobs=jobs, **raw)


def round_file(follow_up: Path, number: int) -> Path:
    """Where the worker looks for its further jobs: the first round is number 1."""
    return follow_up / f"round-{number}.json"


def hand_out(jobs: Sequence[AnyJob], path: Path) -> None:
    """Write a round of further jobs, whole or not at all; none of them ends the worker."""
    write_whole(path, json.dumps([asdict(job) for job in jobs], ensure_ascii=False))


def handed_out(path: Path) -> tuple[AnyJob, ...] | None:
    """The jobs of that round; None while it has not been handed out."""
    if not path.exists():
        return None
    return tuple(_job_from(job) for job in json.loads(path.read_text(encoding="utf-8")))


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
