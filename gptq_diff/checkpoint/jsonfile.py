"""JSON objects from files that somebody else wrote."""

from __future__ import annotations

import json
from pathlib import Path

from gptq_diff.errors import CheckpointError

_LARGEST_BYTES = 100_000_000  # what safetensors allows a header; an index of a 1T model has about 10 MB


def parse_object(data: bytes, where: str) -> dict[str, object]:
    """The JSON object in `data`; `where` names its place in the sentence of the error."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, absurd numbers, absurd nesting
        raise CheckpointError(f"{where} is not valid JSON ({error}); fetch the file again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} must be a JSON object, not {type(value).__name__}; fetch the file again")
    return value


def read_object(path: Path) -> dict[str, object]:
    """The JSON object in a file."""
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            raise CheckpointError(f"{path} has more than {_LARGEST_BYTES} bytes, which no real config or index has")
        return parse_object(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}; check its permissions") from error
