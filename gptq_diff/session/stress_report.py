"""What `stress` found, as it is shown and printed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gptq_diff.diagnose.headroom.stress import Stood
from gptq_diff.records import SkippedLayer


@dataclass(frozen=True)
class Stressed:
    """One linear on one kernel, with the call whose input it was."""

    backend: str
    layer: str
    prompt: str
    step: int
    rows: int
    stood: Stood

    def to_json(self) -> dict[str, Any]:
        """Flat, as `--json` prints it."""
        place = {"backend": self.backend, "layer": self.layer, "prompt": self.prompt, "step": self.step}
        return {**place, "rows": self.rows, **asdict(self.stood), "computed": self.stood.computed}


@dataclass(frozen=True)
class SkippedKernel:
    """A kernel that was asked for and is not there, and why."""

    backend: str
    reason: str


@dataclass(frozen=True)
class StressReport:
    """What came of it.

    rows: kernel by kernel, the linears with the least headroom first. refused: linears that a kernel does not take.
    skipped: kernels that are not here.
    """

    rows: tuple[Stressed, ...]
    refused: dict[str, tuple[SkippedLayer, ...]]
    skipped: tuple[SkippedKernel, ...]

    @property
    def broke(self) -> bool:
        """Whether any kernel came to its end."""
        return any(row.stood.broke for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "schema_version": 1, "rows": [row.to_json() for row in self.rows],
            "refused": {name: [asdict(one) for one in layers] for name, layers in self.refused.items()},
            "skipped": [asdict(one) for one in self.skipped],
        }  # fmt: skip
