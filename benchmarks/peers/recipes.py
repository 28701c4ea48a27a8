"""Environments of the other tools, each a venv: `python -m benchmarks.peers.recipes DIR` makes those still missing.

None of them is a dependency of gptq-diff.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from pathlib import Path

OURS = "vllm-cpu"
"""An environment that `gptq-diff env create` makes, for vllm-lens."""
COMMON = ("torch==2.13.0", "transformers==5.23.0", "safetensors", "numpy")
RECIPES: dict[str, tuple[tuple[str, ...], ...]] = {
    "msprobe": ((*COMMON, "mindstudio-probe==26.2.0"),),
    "nnsight": ((*COMMON, "nnsight==0.8.1"),),
    OURS: (
        ("--no-deps", "--ignore-requires-python", "vllm-lens==1.3.0"),  # it wants vllm 0.30.0 and Python 3.12
        ("zstandard==0.25.0",),
    ),
}
"""Tool -> the arguments of one `pip install` after the other."""


def main() -> None:
    """Make them."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers.recipes", description="Environments of the tools."
    )
    parser.add_argument("directory", type=Path)
    parser.add_argument("--only", default=",".join(RECIPES), help="of: %(default)s")
    given = parser.parse_args()
    for tool in given.only.split(","):
        place = given.directory / tool
        if not place.exists():
            if tool == OURS:
                create = [sys.executable, "-m", "gptq_diff", "env", "create", tool, "--dir", str(given.directory)]
                subprocess.run(create, check=True)
            else:
                venv.create(place, with_pip=True)
            for arguments in RECIPES[tool]:
                subprocess.run([place / "bin" / "python", "-m", "pip", "install", *arguments], check=True)


if __name__ == "__main__":
    main()
