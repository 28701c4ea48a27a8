"""The tree of errors that a person is told about in one sentence.

GptqDiffError            anything this tool refuses or fails at, on purpose; never a traceback
├── UsageError           exit 2: bad arguments or bad input; the sentence says what, where, what to do
│   ├── CheckpointError  the model directory cannot be read as a GPTQ checkpoint
│   └── PromptError      the prompt file cannot be used
├── NothingFound         exit 1: the command worked and there was nothing to find
└── CannotJudge          exit 3: a backend or a capture failed, so there is no verdict
    ├── CaptureError     a capture is incomplete, or a tap did not see what it must
    └── BackendError     an engine could not be started or does not take this model
"""

from __future__ import annotations


class GptqDiffError(Exception):
    """An error with an exit code and a hint that says what to do; `str(error)` is the whole sentence."""

    exit_code = 3

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(GptqDiffError):
    """Bad arguments or bad input."""

    exit_code = 2


class CheckpointError(UsageError):
    """The model directory cannot be read as a GPTQ checkpoint."""


class PromptError(UsageError):
    """The prompt file cannot be used."""


class NothingFound(GptqDiffError):  # noqa: N818  an outcome, not a failure
    """The command worked and there was nothing to find."""

    exit_code = 1


class CannotJudge(GptqDiffError):  # noqa: N818  an outcome, not a failure
    """A backend or a capture failed, so there is no verdict."""

    exit_code = 3


class CaptureError(CannotJudge):
    """A capture is incomplete, or a tap did not see what it must."""


class BackendError(CannotJudge):
    """An engine could not be started, or does not take this model."""
