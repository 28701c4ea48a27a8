"""What is recorded in an environment: that it is ours, and how far it has come. Written whole, by rename."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_diff.whole_file import write_whole

STATE_FILE = "gptq-diff-environment.json"
LOG_FILE = "gptq-diff-create.log"


@dataclass(frozen=True)
class State:
    """The record of one environment.

    recipe, digest: which recipe, and which version of it. python: interpreter that the environment was begun with.
    steps: how many there are, the making of the virtual environment included; done: how many are finished.
    seconds: that the finished ones took. size: bytes on disk; None until it is finished.
    """

    recipe: str
    digest: str
    python: str
    steps: int
    done: int = 0
    seconds: float = 0.0
    size: int | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing is left to do."""
        return self.done >= self.steps

    def write(self, directory: Path) -> None:
        """Into the environment; a process killed meanwhile leaves the record as it was."""
        record = json.dumps({"schema_version": 1, **asdict(self)}, indent=2)
        write_whole(directory / STATE_FILE, record, flush=True)


def state_of(directory: Path) -> State | None:
    """The record in that directory, or None where there is none that can be read: then it is not ours."""
    try:
        raw = json.loads((directory / STATE_FILE).read_text(encoding="utf-8"))
        return State(
            recipe=str(raw["recipe"]), digest=str(raw["digest"]), python=str(raw["python"]), steps=int(raw["steps"]),
            done=int(raw["done"]), seconds=float(raw["seconds"]),
            size=None if raw["size"] is None else int(raw["size"]),
        )  # fmt: skip
    except (OSError, ValueError, TypeError, KeyError):
        return None
