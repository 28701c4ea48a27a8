"""Opening a run that has ended: its record as far as it came, and the checkpoints that belong to it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint, resolve_model
from gptq_diff.errors import CannotJudge, CheckpointError, UsageError
from gptq_diff.records import ModelInfo
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.unfinished import CAPTURED, alone_with, as_far_as_it_came


@dataclass(frozen=True)
class Opened:
    """A run that has ended.

    loaded, judge: what the backends loaded and what the judge reads; in place of one that is not there, why.
    """

    run: RunDir
    record: RunRecord
    loaded: Checkpoint | str
    judge: Checkpoint | str

    @property
    def interrupted(self) -> bool:
        """Whether some backend has not had its turn."""
        return self.record.state not in CAPTURED

    @property
    def missing(self) -> str:
        """Why a checkpoint is not there; "" where both are."""
        return next((found for found in (self.loaded, self.judge) if isinstance(found, str)), "")

    def checkpoints(self) -> tuple[Checkpoint, Checkpoint]:
        """What the backends loaded, what the judge reads; CannotJudge where one of them is not here."""
        if isinstance(self.loaded, str) or isinstance(self.judge, str):
            raise CannotJudge(self.missing, "give --model DIR where it lies")
        return self.loaded, self.judge


def open_run(root: Path, model: str | None = None, reference_model: str | None = None) -> Opened:
    """The run in that folder. model, reference_model: where its checkpoints are, if they have moved.

    CaptureError for a folder that holds none or a damaged one; UsageError where a checkpoint given by hand is not the
    run's.
    """
    run = RunDir.open_finished(root)
    record = as_far_as_it_came(run, RunRecord.from_json(run.run()))
    return Opened(run, record, *_checkpoints(record, model, reference_model))


@contextlib.contextmanager
def open_alone(root: Path, model: str | None = None, reference_model: str | None = None) -> Iterator[Opened]:
    """The same with nobody else writing to the run meanwhile; UsageError where somebody does."""
    with alone_with(RunDir.open_finished(root)):
        yield open_run(root, model, reference_model)


def _checkpoints(
    record: RunRecord, model: str | None, reference_model: str | None
) -> tuple[Checkpoint | str, Checkpoint | str]:
    loaded = _find(model, record.model, "--model", full=record.full_hash)
    if record.reference_model is None:
        if reference_model is not None:
            raise UsageError("this run had no --reference-model", "leave it out")
        return loaded, loaded
    return loaded, _find(reference_model, record.reference_model, "--reference-model", full=record.full_hash)


def _find(given: str | None, known: ModelInfo, option: str, *, full: bool) -> Checkpoint | str:
    """The checkpoint of the run: where the user says, or where it was; there it may be gone or changed since."""
    if given is not None:
        found = open_checkpoint(resolve_model(given))
        if found.fingerprint(full) != known.fingerprint:
            raise UsageError(
                f"{option} {given} is not the checkpoint of this run: its fingerprint differs",
                f"the run used {known.path}; give a copy of it",
            )
        return found
    try:
        found = open_checkpoint(Path(known.path))
        fingerprint = found.fingerprint(full)
    except CheckpointError as e:
        return str(e) if Path(known.path).is_dir() else f"the checkpoint {known.path} is not here"
    return found if fingerprint == known.fingerprint else f"the checkpoint {known.path} is another one than in this run"
