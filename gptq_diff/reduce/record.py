"""RUN/reduced/: reduced.json, repro.py, and the tensors of the call that fails and of the one that passes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.store import save_tensors, write_json, writing
from gptq_diff.errors import CaptureError

if TYPE_CHECKING:
    import torch

FOLDER = "reduced"
RECORD, SCRIPT = "reduced.json", "repro.py"


@dataclass(frozen=True)
class Shown:
    """One of the two calls in figures.

    inputs: (row, k, x) of every input that is not zero, the first 64. output: at Reduced.at, as the kernel gave it
    ("inf" where it is). exact: what it should be. nonfinite: outputs that are NaN or infinite.
    """

    inputs: tuple[tuple[int, int, float], ...]
    output: str
    exact: float
    nonfinite: int


@dataclass(frozen=True)
class Reduced:
    """What `reduce` found.

    backend, prompt, layer, step, path, kind, cause: of the captured call that fails. captured, shape: M, K, N before
    and after. inputs: how many are not zero. codes: how many are off their zero point. kernel: that was tried. live: it
    was the engine's own and no simulation. seen_on: versions and GPU of a live one. trials: calls made.
    at: (row, column) of the output that is shown. data: the file beside the script, "" for none.
    """

    backend: str
    prompt: str
    layer: str
    step: int
    path: str
    kind: str
    cause: str | None
    captured: tuple[int, int, int]
    shape: tuple[int, int, int]
    bits: int
    group_size: int
    inputs: int
    codes: int
    kernel: str
    live: bool
    seen_on: dict[str, str]
    trials: int
    at: tuple[int, int]
    failing: Shown
    passing: Shown
    script: str = SCRIPT
    data: str = ""
    schema_version: int = 1


def write_reduced(
    place: Path, found: Reduced, script: str, tensors: Mapping[str, torch.Tensor],
    data: Mapping[str, torch.Tensor] | None,
) -> None:  # fmt: skip
    """The whole folder at once, in place of an earlier one. CaptureError when it cannot be written, or is not ours."""
    if place.exists() and any(place.iterdir()) and not (place / RECORD).is_file():
        raise CaptureError(f"{place} is not empty and holds no reduced.json", "give another -o")
    part = place.with_name(f"{place.name}.part")
    with writing(place):
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    save_tensors(dict(tensors), part / "calls.safetensors")
    if data is not None:
        save_tensors(dict(data), part / found.data)
    with writing(place):
        (part / SCRIPT).write_text(script, encoding="utf-8")
        write_json(part / RECORD, asdict(found))
        shutil.rmtree(place, ignore_errors=True)
        part.replace(place)


def read_reduced(place: Path) -> Reduced | None:
    """What lies there; None where nothing has been reduced. CaptureError for a damaged record."""
    try:
        raw = json.loads((place / RECORD).read_text(encoding="utf-8"))
        for key in ("captured", "shape", "at"):
            raw[key] = tuple(raw[key])
        for key in ("failing", "passing"):
            raw[key] = Shown(**{**raw[key], "inputs": tuple((m, k, x) for m, k, x in raw[key]["inputs"])})
        return Reduced(**raw)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError) as e:
        raise CaptureError(f"{place / RECORD} is damaged: {e}", "run `gptq-diff reduce` again") from e
