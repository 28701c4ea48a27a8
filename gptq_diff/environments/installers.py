"""The commands that carry out a recipe's steps, with pip or with uv. Nothing is run here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gptq_diff.environments.recipes import Step

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's own index of builds for the CPU, a tenth of the size of the one on the Python Package Index."""


@dataclass(frozen=True)
class Installer:
    """What installs packages into one environment.

    python: the environment's interpreter. uv: path of uv, or None for the environment's own pip.
    torch_url: index to find torch on beside those that the installer is set to use, or None.
    pins: constraints file, or None.
    """

    python: Path
    uv: str | None
    torch_url: str | None
    pins: Path | None

    def command(self, step: Step) -> list[str]:
        """The command of one step."""
        if step.kind == "import":
            return [str(self.python), "-I", "-c", f"import {', '.join(step.names)}"]
        if step.kind == "remove":
            return [*self._tool("uninstall"), *([] if self.uv else ["--yes"]), *step.names]
        return [*self._tool("install"), *self._options(step), *step.names]

    def _tool(self, verb: str) -> list[str]:
        if self.uv is not None:
            return [self.uv, "pip", verb, "--python", str(self.python)]
        # Isolated: what PYTHONPATH or the user's site-packages hold would pass for installed.
        return [str(self.python), "-I", "-m", "pip", verb, *(["--progress-bar", "off"] if verb == "install" else [])]

    def _options(self, step: Step) -> list[str]:
        options = ["--no-deps"] if step.no_deps else []
        if self.pins is not None:
            options += ["--constraint", str(self.pins)]
        for package in step.binary:
            options += ["--only-binary", package]
        if step.torch and self.torch_url is not None:
            options += ["--extra-index-url", self.torch_url]
            if self.uv is not None:  # uv would else take every package from the first index that has it, however old
                options += ["--index-strategy", "unsafe-best-match"]
        return options


def make_virtual_environment(python: str, directory: Path) -> list[str]:
    """The command that makes an empty environment with pip, by the standard library, so that it always works."""
    return [python, "-I", "-m", "venv", str(directory)]
