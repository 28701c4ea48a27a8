"""bisect.json: what was asked, and every trial as it ends, so that an interrupted search goes on where it stopped."""

from __future__ import annotations

import contextlib
import fcntl
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptq_diff.bisection.search import UNJUDGED, Verdict
from gptq_diff.errors import UsageError

FILE = "bisect.json"


@dataclass(frozen=True)
class Question:
    """What a search is about; another question needs another directory.

    by: "environments" or "kernels". case: its name, digest: of its file. backends: in place of the case's, or None.
    failure_is_bad: as ByCase has it.
    """

    package: str
    good: str
    bad: str
    by: str
    case: str
    digest: str
    backends: str | None
    failure_is_bad: bool = False


@dataclass(frozen=True)
class Trial:
    """One release that was tried; seconds: that it took."""

    version: str
    verdict: Verdict
    seconds: float


@dataclass
class Record:
    """The file, as it grows."""

    directory: Path
    question: Question
    trials: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Keep it, at once."""
        self.trials.append(trial)
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        part = self.directory / f"{FILE}.part"
        part.write_text(json.dumps(self.to_json(), indent=1), encoding="utf-8")
        part.replace(self.directory / FILE)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        trials = [
            {"version": t.version, "verdict": t.verdict.kind, "said": t.verdict.said, "seconds": t.seconds}
            for t in self.trials
        ]
        return {"schema_version": 1, "question": asdict(self.question), "trials": trials}

    @property
    def known(self) -> dict[str, Verdict]:
        """Version -> what was said of it last."""
        return {trial.version: trial.verdict for trial in self.trials}


@contextlib.contextmanager
def claimed(directory: Path, question: Question, *, overwrite: bool, retry: bool) -> Iterator[Record]:
    """The record in that directory, begun or gone on with, and nobody else's meanwhile.

    overwrite: forget what was tried. retry: try again what could not be judged. UsageError for a directory of something
    else, of another question, or in use.
    """
    file = directory / FILE
    if directory.exists() and (not directory.is_dir() or (any(directory.iterdir()) and not file.is_file())):
        raise UsageError(f"{directory} exists and is no bisection", "give another --out")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("ab")
    except OSError as e:
        raise UsageError(f"{directory} cannot be written: {e.strerror or e}", "give another --out") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{directory} is in use by another bisection", "wait, or give another --out") from None
        record = Record(directory, question)
        if file.is_file() and not overwrite:
            record.trials = _read(file, question)
            if retry:
                record.trials = [trial for trial in record.trials if trial.verdict.kind != UNJUDGED]
        record.write()
        yield record


def _read(file: Path, question: Question) -> list[Trial]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        asked = Question(**raw["question"])
        trials = [
            Trial(str(t["version"]), Verdict(str(t["verdict"]), str(t["said"])), float(t["seconds"]))
            for t in raw["trials"]
        ]
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise UsageError(f"{file} is damaged: {e}", "--overwrite begins anew, or give another --out") from e
    if asked != question:
        differs = next(name for name in asdict(asked) if getattr(asked, name) != getattr(question, name))
        raise UsageError(
            f"{file.parent} holds a bisection of another question: {differs} was {getattr(asked, differs)!r}",
            "--overwrite begins anew, or give another --out",
        )
    return trials
