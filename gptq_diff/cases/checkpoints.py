"""The checkpoints of a case: built once and kept in the user's cache, then damaged, or given headroom, in a copy."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from gptq_diff.cases.case import Case
from gptq_diff.checkpoint.reader import open_checkpoint, resolve_model
from gptq_diff.errors import UsageError
from gptq_diff.models.build import build_model
from gptq_diff.session.captured_inputs import CapturedInputs, inputs_of_prompts
from gptq_diff.session.fix_run import fix_for_headroom
from gptq_diff.session.prepare import PromptSource


class NotHere(Exception):  # noqa: N818  the case is skipped with this reason
    """What the case needs is not on this machine."""


def sound_checkpoint(case: Case, progress: Callable[[str], None]) -> Path:
    """The directory of the case's model, built if need be; NotHere where a path is not."""
    model = case.model
    if model.build is not None:
        return build_model(model.build, model.options, None, progress)
    assert model.path is not None
    return _directory(case, model.path)


def reference_checkpoint(case: Case) -> Path | None:
    """The directory of what the reference reads, where the case names one; NotHere where it is not here."""
    return None if case.model.reference_path is None else _directory(case, case.model.reference_path)


def _directory(case: Case, path: str) -> Path:
    beside = case.file.parent / Path(path).expanduser()
    if beside.is_dir():
        return beside.absolute()
    try:
        return resolve_model(path).absolute()
    except UsageError as e:
        raise NotHere(f"its model is not here: {e}") from e


def healthy_inputs(path: Path, source: PromptSource) -> AbstractContextManager[CapturedInputs]:
    """What the reference gives every linear on these prompts."""
    return inputs_of_prompts(path, source, io.BytesIO(), lambda *_: None)


def with_headroom(case: Case, path: Path, source: PromptSource, place: Path) -> Path:
    """A copy with the headroom that the case asks for on its own prompts; the checkpoint itself where it asks none."""
    if case.model.headroom_bits is None:
        return path
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(parents=True, exist_ok=True)
    with open_checkpoint(path) as checkpoint, healthy_inputs(path, source) as inputs:
        fix_for_headroom(checkpoint, inputs, case.model.headroom_bits, place)
    return place
