"""What auto_gptq is given to read: the checkpoint's own directory, which is never written to, or links to it."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint

INDEX = ".safetensors.index.json"


def basename(directory: Path) -> str:
    """What auto_gptq calls model_basename: the weights' file, or their index, without its ending.

    The same file that gptq_diff.checkpoint.shards reads.
    """
    indexes = sorted(directory.glob(f"*{INDEX}"))
    if indexes:
        return "model" if directory / f"model{INDEX}" in indexes else indexes[0].name[: -len(INDEX)]
    files = sorted(file.stem for file in directory.glob("*.safetensors"))
    return files[0] if len(files) == 1 else "model"


@contextlib.contextmanager
def readable(checkpoint: Checkpoint) -> Iterator[Path]:
    """A directory that the transformers 4 beside auto_gptq understands, for as long as the model is loaded from it.

    transformers 5 writes the rotary settings as `rope_parameters`; transformers 4 does not know the name, takes its
    default of 10000 for rope_theta and says nothing. Such a config is translated in a private directory of links.
    """
    translated = older_config(checkpoint.config)
    if translated is None:
        yield checkpoint.path
        return
    with tempfile.TemporaryDirectory(prefix="gptq-diff-") as private:
        for file in checkpoint.path.iterdir():
            if file.name != "config.json":
                (Path(private) / file.name).symlink_to(file)
        (Path(private) / "config.json").write_text(json.dumps(translated), encoding="utf-8")
        yield Path(private)


def older_config(config: Mapping[str, object]) -> dict[str, object] | None:
    """config.json with rope_parameters written as rope_theta and rope_scaling; None where there is nothing to do.

    BackendError for settings by layer type, which transformers 4 has no words for.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, dict) or "rope_theta" in config:
        return None
    scaling = dict(rope)
    theta = scaling.pop("rope_theta", None)
    if not isinstance(theta, (int, float)):
        raise BackendError(
            "config.json states rope_parameters without one rope_theta, which transformers 4 cannot read",
            "auto_gptq does not take this architecture",
        )
    scaled = scaling.get("rope_type", "default") != "default"
    return {**config, "rope_theta": theta, "rope_scaling": scaling if scaled else None}
