"""built.json: what stands beside a kernel that was compiled from a release's sources. Standard library only.

It is written last, into a folder that gets its name last, so a folder that holds one is whole.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_diff.errors import BackendError

NAME = "built.json"


@dataclass(frozen=True)
class Built:
    """One compiled kernel.

    library: file in the same folder. installed_torch: what the package's metadata calls torch's version (2.11.0),
    torch: what torch calls itself (2.11.0+cu130). arch: compute capability, as 9.0. sources: digest of the pack that it
    was compiled from. seconds: that the compiler took. date: RFC 3339.
    """

    package: str
    version: str
    library: str
    torch: str
    installed_torch: str
    cuda: str
    arch: str
    nvcc: str
    sources: str
    seconds: float
    date: str

    @property
    def release(self) -> str:
        """As Release's str: vllm==0.20.2."""
        return f"{self.package}=={self.version}"

    def write(self, folder: Path) -> None:
        """Into that folder, which nobody else knows yet."""
        (folder / NAME).write_text(json.dumps({"schema_version": 1, **asdict(self)}, indent=2), encoding="utf-8")


def read_built(folder: Path) -> Built:
    """The record of that folder; BackendError where there is none that can be read."""
    try:
        raw = json.loads((folder / NAME).read_text(encoding="utf-8"))
        values = {name: raw[name] for name in Built.__dataclass_fields__}
        return Built(**{**values, "seconds": float(values["seconds"])})
    except (OSError, ValueError, TypeError, KeyError) as e:
        raise BackendError(f"{folder} holds no kernel that was built: {e}", "gptq-diff kernels build makes one") from e
