"""A GPTQ checkpoint on disk: listed from headers alone, its tensors memory-mapped, never written to.

torch is imported when the first tensor is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from gptq_diff.checkpoint.config import QuantConfig, disagreements, find_quantisation, parse_quantisation
from gptq_diff.checkpoint.fingerprint import fingerprint_of
from gptq_diff.checkpoint.jsonfile import read_object
from gptq_diff.checkpoint.listing import list_layers
from gptq_diff.checkpoint.mapping import MappedFiles
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.shards import find_tensors
from gptq_diff.checkpoint.source import resolve_model
from gptq_diff.errors import CheckpointError
from gptq_diff.records import LayerSpec, ModelInfo

if TYPE_CHECKING:
    import torch
    from typing_extensions import Self

    from gptq_diff.checkpoint.header import TensorEntry

__all__ = ["Checkpoint", "open_checkpoint", "resolve_model"]


class Checkpoint:
    """An open checkpoint; use it as a context manager, or call close().

    path: its directory, absolute.
    config: config.json as parsed.
    quantisation: the checked quantisation settings.
    layers: every quantised linear, in natural order.
    skipped: quantised linears that are left out, each with its reason.
    trust_remote_code: what the user allowed; the reader itself never runs a checkpoint's code, engines ask here.
    """

    def __init__(
        self,
        path: Path,
        config: Mapping[str, object],
        quantisation: QuantConfig,
        tensors: Mapping[str, TensorEntry],
        *,
        trust_remote_code: bool,
    ) -> None:
        self.path = path
        self.config = config
        self.quantisation = quantisation
        self.trust_remote_code = trust_remote_code
        self.layers, self.skipped = list_layers(tensors, quantisation)
        self._tensors = tensors
        self._specs = {spec.name: spec for spec in self.layers}
        self._files = MappedFiles()
        self._fingerprints: dict[bool, str] = {}
        self._work_device: torch.device | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def work_device(self) -> torch.device:
        """Where this process computes with its linears when it judges them; the CPU unless somebody sets it."""
        import torch

        return torch.device("cpu") if self._work_device is None else self._work_device

    @work_device.setter
    def work_device(self, device: torch.device) -> None:
        self._work_device = device

    @property
    def needs_remote_code(self) -> bool:
        """Whether config.json points to Python files of the checkpoint (`auto_map`)."""
        return bool(self.config.get("auto_map"))

    @property
    def architecture(self) -> str:
        """The first of config.json's `architectures`, else its `model_type`, else "unknown"."""
        named = self.config.get("architectures")
        first = named[0] if isinstance(named, list) and named else self.config.get("model_type", "unknown")
        return str(first)

    def info(self) -> ModelInfo:
        """What a report says of the checkpoint; reads all scales, qzeros and g_idx for the fingerprint."""
        base = self.quantisation.base
        return ModelInfo(
            path=str(self.path),
            architecture=self.architecture,
            bits=base.bits,
            group_size=base.group_size,
            sym=base.sym,
            desc_act=base.desc_act,
            format=self.quantisation.format,
            quantized_linears=len(self.layers) + len(self.skipped),
            fingerprint=self.fingerprint(),
        )

    def notes(self) -> tuple[str, ...]:
        """What is odd about the settings as a whole, a sentence each; empty when nothing is."""
        found = list(disagreements(self.path, self.quantisation))
        if self.needs_remote_code:
            found.append("config.json points to Python files of the checkpoint (auto_map); gptq-diff does not run them")
        return tuple(found)

    def packed(self, name: str) -> PackedLinear:
        """The packed tensors of one of `layers`; reads g_idx, maps the rest."""
        if name not in self._specs:
            raise CheckpointError(f"{self.path} has no quantised linear called {name!r}; see `gptq-diff model inspect`")
        spec = self._specs[name]
        return PackedLinear(
            spec=spec,
            qweight=self.tensor(f"{name}.qweight"),
            qzeros=self.tensor(f"{name}.qzeros"),
            scales=self.tensor(f"{name}.scales"),
            g_idx=self._row_groups(spec),
            bias=self.tensor(f"{name}.bias") if spec.has_bias else None,
        )

    def tensor(self, name: str) -> torch.Tensor:
        """Any tensor of the checkpoint, memory-mapped."""
        return self._files.tensor(name, self.entry(name))

    def entry(self, name: str) -> TensorEntry:
        """Where a tensor lies on disk."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.path} has no tensor called {name!r}")
        return self._tensors[name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(entry.end - entry.start for entry in self._tensors.values())

    def tensor_names(self) -> tuple[str, ...]:
        """The names of all tensors, sorted."""
        return tuple(sorted(self._tensors))

    def fingerprint(self, full: bool = False) -> str:
        """Sha256, hex, over config, tensor names, dtypes and shapes, all scales, qzeros and g_idx, and samples.

        `full` reads every byte instead of samples. The same tensors in other shards have the same fingerprint.
        """
        if full not in self._fingerprints:
            self._fingerprints[full] = fingerprint_of(self.config, self._tensors, full=full)
        return self._fingerprints[full]

    def close(self) -> None:
        """Let go of the files; tensors already handed out stay valid."""
        self._files.close()

    def _row_groups(self, spec: LayerSpec) -> torch.Tensor | None:
        if f"{spec.name}.g_idx" not in self._tensors:
            return None
        import torch

        g_idx = self.tensor(f"{spec.name}.g_idx")
        low, high = int(g_idx.min()), int(g_idx.max())
        if low < 0 or high >= spec.groups:
            raise CheckpointError(
                f"{spec.name}.g_idx names groups {low} to {high}, and the layer has groups 0 to {spec.groups - 1}; "
                "fetch the checkpoint again"
            )
        trivial = torch.arange(spec.in_features, dtype=torch.int32) // spec.group_size
        return None if torch.equal(g_idx, trivial) else g_idx


def open_checkpoint(path: Path, *, trust_remote_code: bool = False) -> Checkpoint:
    """Open a directory as a GPTQ checkpoint; raises CheckpointError, one sentence, for anything that is not one."""
    directory = Path(path).expanduser().absolute()
    if not directory.is_dir():
        raise CheckpointError(f"there is no directory {directory}; check the path")
    config_file = directory / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{directory} has no config.json, so it is no model directory; check the path")
    config = read_object(config_file)
    raw, source = find_quantisation(directory, config)
    quantisation = parse_quantisation(raw, source)
    tensors = find_tensors(directory, raw)
    return Checkpoint(directory, MappingProxyType(config), quantisation, tensors, trust_remote_code=trust_remote_code)
