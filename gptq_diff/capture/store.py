"""Captures on disk: blocks of tensors as they come, one line of figures a call, the manifest last.

A capture without a manifest is incomplete. Layout (contract of everything that reads a run):

    block-000.safetensors ...   tensors "STEP/LAYER/in" and "STEP/LAYER/out"; under tensor parallelism LAYER@RANK for a
                                rank's share of the rows of W, LAYER@all-reduce for the ranks' summands and their sum
    stats.jsonl                 one line per call, in order of execution
    logits.safetensors          "0": float32 [vocabulary], the first generated token's logits
    manifest.json               written last, by rename
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable

from gptq_diff.capture.block_file import write_block
from gptq_diff.capture.call import Call, Sink
from gptq_diff.checkpoint.header import TensorEntry, read_header
from gptq_diff.checkpoint.mapping import MappedFile
from gptq_diff.errors import CaptureError, CheckpointError
from gptq_diff.whole_file import write_whole

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 64 * 2**20
"""Tensors are gathered up to this size before they are written: memory held back is bounded by it."""


def write_json(path: Path, value: object) -> None:
    """Write whole or not at all: a temporary file beside it, flushed to disk, renamed."""
    write_whole(path, json.dumps(value, ensure_ascii=False, indent=1), flush=True)


def read_json(path: Path) -> Any:
    """The JSON in a file of a run; CaptureError when it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CaptureError(f"{path} is missing: the capture is incomplete", "run the capture again") from None
    except ValueError as e:
        raise damaged(path, e) from None


def damaged(path: Path, what: object) -> CaptureError:
    """The error for a file of a capture that is there and not as it was written."""
    return CaptureError(f"{path} is damaged: {what}", "run the capture again")


def save_tensors(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """One safetensors file, by rename; tensors must be contiguous. CaptureError when it cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    part = path.with_name(path.name + ".part")
    with writing(path):
        try:
            save_file(tensors, str(part), metadata)
        except SafetensorError as e:
            raise OSError(_io_error(str(e))) from e
        part.replace(path)


_IO_ERROR = re.compile(r"I/O error: (.+?) \(os error")


def _io_error(message: str) -> str:
    """The system's own words within safetensors' ("Error while serializing: I/O error: ... (os error 28) at path")."""
    found = _IO_ERROR.search(message)
    return found.group(1) if found else message


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and their like into one sentence that names the path."""
    try:
        yield
    except OSError as e:
        raise CaptureError(
            f"{path} cannot be written: {e.strerror or e}", "free some space, or choose another --out"
        ) from e


@dataclass(frozen=True)
class Manifest:
    """What one backend did with one prompt.

    order: layers in order of execution (of the prefill).
    kernels: layer, or LAYER@PART -> path that really ran in the prefill.
    skipped: layer -> reason, for linears that this kernel could not take.
    steps: forward passes, the prefill included.
    tokens: generated ids.
    logits_finite: for each step, whether any logit of the last position was finite.
    forced: the reference's ids were fed (--teacher-force).
    where: tensor key -> block file, or "=KEY" for a tensor stored under another key.
    seconds: by phase.
    """

    backend: str
    prompt: str
    order: tuple[str, ...]
    kernels: dict[str, str]
    skipped: dict[str, str]
    steps: int
    tokens: tuple[int, ...]
    logits_finite: tuple[bool, ...]
    cached_rows: int
    forced: bool
    where: dict[str, str]
    bytes_written: int
    seconds: dict[str, float]


class NullSink(Sink):
    """Statistics only, kept in memory: what the tap costs without a disk."""

    wants_tensors = False
    later = True

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:  # noqa: ARG002
        """Keep the figures; no tensors come."""
        self.calls.append(call)


class CaptureWriter(Sink):
    """Writes one capture directory, which must not exist yet."""

    wants_tensors = True
    later = True

    def __init__(self, directory: Path, block_bytes: int = BLOCK_BYTES) -> None:
        self.directory = directory
        self._stats_file = directory / "stats.jsonl"
        with writing(directory):
            directory.mkdir(parents=True)
        with writing(self._stats_file):
            self._stats = self._stats_file.open("w", encoding="utf-8")
        self.where: dict[str, str] = {}
        self.kernels: dict[str, str] = {}
        self.bytes_written = 0
        self._block_bytes = block_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._borrowed: list[str] = []  # what came since `let_go`
        self._blocks = 0
        self.on_call: Callable[[Call], None] = lambda call: None  # noqa: ARG005

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        """Queue the call's tensors; a full block goes to disk at once."""
        with writing(self._stats_file):
            line = {**call._asdict(), "x": call.x._asdict(), "y": call.y._asdict()}
            self._stats.write(json.dumps(line, ensure_ascii=False) + "\n")
        self.on_call(call)
        stored = call.stored
        if call.step == 0:
            self.kernels[stored] = call.path
        key_in = f"{call.step}/{stored}/in"
        if call.shared_input:
            self.where[key_in] = f"={call.step}/{call.shared_input}/in"
        elif x_MK is not None:
            self._queue(key_in, x_MK)
        if y_MN is not None:
            self._queue(f"{call.step}/{stored}/out", y_MN)

    def let_go(self) -> None:
        """A block that is half full goes to disk; of fewer tensors copies are kept."""
        if 2 * self._pending_bytes >= self._block_bytes:
            self._flush()
        for key in self._borrowed:
            if key in self._pending:
                self._pending[key] = self._pending[key].clone()
        self._borrowed.clear()

    def _queue(self, key: str, tensor: torch.Tensor) -> None:
        self._pending[key] = tensor.cpu()
        self._borrowed.append(key)
        self._pending_bytes += tensor.numel() * tensor.element_size()
        if self._pending_bytes >= self._block_bytes:
            self._flush()

    def _flush(self) -> None:
        if not self._pending:
            return
        name = f"block-{self._blocks:03d}.safetensors"
        place = self.directory / name
        part = place.with_name(name + ".part")
        with writing(place):
            write_block(part, self._pending)
            part.replace(place)
        self.where.update(dict.fromkeys(self._pending, name))
        self.bytes_written += self._pending_bytes
        self._pending, self._pending_bytes, self._blocks = {}, 0, self._blocks + 1

    def close(self) -> None:
        """Write what is queued; the capture stays incomplete until `finish`."""
        self._flush()
        with writing(self._stats_file):
            self._stats.close()

    def finish(self, manifest: Manifest, first_logits_V: torch.Tensor) -> None:
        """Write logits, then the manifest: now the capture is whole."""
        save_tensors({"0": first_logits_V.float().contiguous().cpu()}, self.directory / "logits.safetensors")
        place = self.directory / "manifest.json"
        with writing(place):
            write_json(place, asdict(manifest))


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a capture; CaptureError when it is missing or damaged."""
    path = directory / "manifest.json"
    raw = read_json(path)
    try:
        for key in ("order", "tokens", "logits_finite"):
            raw[key] = tuple(raw[key])
        if not all(isinstance(place, str) for place in raw["where"].values()):
            raise TypeError("a tensor's place is not the name of a file")
        return Manifest(**{f.name: raw[f.name] for f in fields(Manifest)})
    except (KeyError, TypeError, AttributeError) as e:
        raise damaged(path, f"it lacks {e}" if isinstance(e, KeyError) else e) from None


_FIGURES = frozenset({"step", "index", "layer", "path"})
"""What every line of stats.jsonl holds."""


class CaptureReader:
    """Reads a finished capture; tensors are memory-mapped one file at a time."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory)
        self._open: dict[str, tuple[dict[str, TensorEntry], MappedFile]] = {}
        self._there: dict[str, bool] = {}

    def has(self, step: int, layer: str, side: str) -> bool:
        """Whether that tensor was kept (side: "in" or "out")."""
        place = self.manifest.where.get(self.stored_key(step, layer, side), "")
        if place and place not in self._there:
            self._there[place] = (self.directory / place).is_file()
        return bool(place) and self._there[place]

    def stored_key(self, step: int, layer: str, side: str) -> str:
        """The key that this tensor is stored under: another layer's where both took the same input."""
        key = f"{step}/{layer}/{side}"
        place = self.manifest.where.get(key, "")
        return place[1:] if place.startswith("=") else key

    def tensor(self, step: int, layer: str, side: str) -> torch.Tensor:
        """[M, K] for "in", [M, N] for "out", as captured: a view of the mapped file, not to be written to."""
        key = self.stored_key(step, layer, side)
        place = self.manifest.where.get(key)
        if place is None:
            raise CaptureError(f"{self.directory} holds no tensor {key}", "it was left out by --capture")
        return self._get(place, key)

    def _get(self, name: str, key: str) -> torch.Tensor:
        entries, mapped = self._open.get(name) or self._file(name)
        entry = entries.get(key)
        if entry is None:
            raise damaged(self.directory / name, f"it does not contain tensor {key}")
        return mapped.tensor(key, entry)

    def _file(self, name: str) -> tuple[dict[str, TensorEntry], MappedFile]:
        """A block's header and map: a view of the map costs a tenth of what the library's get_tensor does."""
        if name not in self._open:
            path = self.directory / name
            if path.parent != self.directory:
                raise damaged(self.directory / "manifest.json", f"{name} is not a file of this capture")
            if not path.exists():
                raise CaptureError(f"{path} is missing: the capture is incomplete", "run the capture again")
            try:
                self._open[name] = read_header(path), MappedFile(path)
            except CheckpointError as e:
                raise damaged(path, e) from None
        return self._open[name]

    @functools.cached_property
    def paths(self) -> dict[tuple[int, str], str]:
        """(step, linear) -> the path that ran, of calls of whole linears."""
        return {(c["step"], c["layer"]): c["path"] for c in self.stats() if not c.get("part", "")}

    def first_logits(self) -> torch.Tensor:
        """float32 [vocabulary]: the logits that the first generated token was chosen from."""
        return self._get("logits.safetensors", "0")

    def stats(self) -> Iterator[dict[str, Any]]:
        """The figures of each call, in order of execution."""
        path = self.directory / "stats.jsonl"
        decode = json.JSONDecoder().raw_decode  # `json.loads` takes half as long again to find where a line ends
        try:
            with path.open(encoding="utf-8") as f:
                for line in f:
                    figures, end = decode(line)
                    if line[end:].strip(" \t\r\n"):
                        raise ValueError("a line goes on after the figures of a call")
                    if not isinstance(figures, dict) or not figures.keys() >= _FIGURES:
                        raise ValueError("a line does not hold the figures of a call")
                    yield figures
        except FileNotFoundError:
            raise CaptureError(f"{path} is missing: the capture is incomplete", "run the capture again") from None
        except ValueError as e:
            raise damaged(path, e) from None

    def close(self) -> None:
        """Let go of the mapped files."""
        self._open.clear()
        self._there.clear()
