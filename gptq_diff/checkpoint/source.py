"""From what a user writes after --model to a directory."""

from __future__ import annotations

import re
from pathlib import Path

from gptq_diff.errors import CheckpointError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", re.ASCII)
_NEVER_FETCHED = ["*.bin", "*.pt", "*.pth", "*.ckpt", "*.gguf", "*.onnx", "*.h5", "*.msgpack"]


def resolve_model(model: str, download: bool = False) -> Path:
    """The directory of a model: `model` itself, or the snapshot of a Hub id in the local Hugging Face cache.

    Nothing is fetched unless `download`, and then neither pickles nor other formats.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise CheckpointError(f"{model} is a file; give the directory that holds config.json and the weights")
    if _HUB_ID.fullmatch(model) is None:
        raise CheckpointError(f"there is no directory {model}; check the path")
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise CheckpointError(
            f"there is no directory {model}, and without the package huggingface_hub no Hub id can be looked up; "
            "install it, or give a directory"
        ) from error
    try:
        return Path(
            huggingface_hub.snapshot_download(model, local_files_only=not download, ignore_patterns=_NEVER_FETCHED)
        )
    except (OSError, ValueError, HfHubHTTPError) as error:
        if download:
            raise CheckpointError(f"{model} is no directory and cannot be downloaded: {_first_line(error)}") from error
        raise CheckpointError(
            f"{model} is neither a directory nor a Hub id in the local Hugging Face cache; check the name, or allow "
            "--download"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
