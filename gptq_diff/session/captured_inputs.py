"""The inputs that the reference gives every linear: of a finished run, or of prompts that it runs here and now."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Callable, TextIO

import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.session.asked import RunRecord
from gptq_diff.session.capture_all import capture_all, start_record
from gptq_diff.session.finished import finished_captures
from gptq_diff.session.prepare import PromptSource, prepare

REFERENCE = "hf-fp32"


@dataclass(frozen=True)
class InputOf:
    """One call's input: float16 [M, K], rows that are not finite left out."""

    prompt: str
    step: int
    x_MK: torch.Tensor


class CapturedInputs:
    """What a run's reference captured, by prompt. Called with a linear's name: all its inputs below each other."""

    def __init__(self, readers: Mapping[str, CaptureReader]) -> None:
        self._readers = readers

    def calls(self, layer: str) -> list[InputOf]:
        """Every call of that linear, prompt by prompt; CannotJudge where tensors were left out."""
        found = []
        for prompt, reader in self._readers.items():
            for step in range(reader.manifest.steps):
                if not reader.has(step, layer, "in"):
                    raise CannotJudge(
                        f"{reader.directory} lacks the inputs of {layer}: --capture left them out",
                        "give --prompt-file, or a run made with --capture full",
                    )
                x_MK = reader.tensor(step, layer, "in").to(torch.float16)
                found.append(InputOf(prompt, step, x_MK[torch.isfinite(x_MK).all(dim=1)]))
        return found

    def __call__(self, layer: str) -> torch.Tensor:
        """float16 [M, K]."""
        return torch.cat([call.x_MK for call in self.calls(layer)])


def inputs_for(
    checkpoint: Checkpoint, source: PromptSource | None, run: Path | None, stdin: TextIO | None
) -> contextlib.AbstractContextManager[CapturedInputs]:
    """Of the run where one is given, else of these prompts; `-` reads stdin, which is None where it was closed."""
    if run is not None:
        return inputs_of_run(run, checkpoint)
    assert source is not None
    return inputs_of_prompts(checkpoint.path, source, io.BytesIO() if stdin is None else stdin.buffer, lambda *_: None)


@contextlib.contextmanager
def inputs_of_run(root: Path, checkpoint: Checkpoint) -> Iterator[CapturedInputs]:
    """Of a finished run; UsageError where it ran another checkpoint."""
    run = RunDir.open_finished(root)
    record = RunRecord.from_json(run.run())
    ran = record.reference_model or record.model
    if ran.fingerprint != checkpoint.fingerprint(full=record.full_hash):
        raise UsageError(f"the run {root} is of {ran.path}, which is not this checkpoint", "give a run of this one")
    with _readers(run, record) as readers:
        yield CapturedInputs(readers)


@contextlib.contextmanager
def inputs_of_prompts(
    model: Path, source: PromptSource, stdin: BinaryIO, listen: Callable[[str, dict[str, Any]], None]
) -> Iterator[CapturedInputs]:
    """Of the reference, run on these prompts here and now; its tensors go when the block ends."""
    asked = prepare(model, None, source, stdin, REFERENCE, REFERENCE, trust_remote_code=False, capture="full")
    with tempfile.TemporaryDirectory(prefix="gptq-diff-fix-") as place, open_checkpoint(model) as checkpoint:
        run = RunDir.create(Path(place), overwrite=False)
        try:
            record = capture_all(asked, run, start_record(asked, checkpoint, checkpoint), listen)
            failed = next((b.failure for b in record.backends if b.failure is not None), None)
            if failed is not None:
                raise CannotJudge(f"the reference did not run: {failed}")
            with _readers(run, record) as readers:
                yield CapturedInputs(readers)
        finally:
            run.release()


@contextlib.contextmanager
def _readers(run: RunDir, record: RunRecord) -> Iterator[dict[str, CaptureReader]]:
    keys = [key for key in finished_captures(record, run) if key[0] == record.reference]
    readers = {key[1]: run.reader(*key) for key in keys}
    if not readers:
        raise CannotJudge(f"the run {run.root} holds no finished prompt of its reference", "run it again")
    try:
        yield readers
    finally:
        for reader in readers.values():
            reader.close()
