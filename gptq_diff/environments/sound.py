"""Whether what an interrupted installer left behind is whole.

An installer that is killed while it writes a package can leave metadata that says the package is installed, and
installers believe it for ever after. What a wheel's RECORD lists (name and size of every file,
https://packaging.python.org/en/latest/specifications/recording-installed-packages/) tells the two apart.
"""

from __future__ import annotations

import csv
import shutil
from pathlib import Path


def sweep(site_packages: Path) -> list[str]:
    """Take away what makes a damaged package look installed, so that it is installed anew; the names of those.

    Its files stay and are overwritten. Names that begin with ~ are what pip moved aside and did not come back to.
    """
    for aside in site_packages.glob("~*"):
        shutil.rmtree(aside, ignore_errors=True)
    damaged = [info for info in sorted(site_packages.glob("*.dist-info")) if not _whole(info)]
    for info in damaged:
        shutil.rmtree(info)
    return [info.name.removesuffix(".dist-info") for info in damaged]


def _whole(info: Path) -> bool:
    """Whether every file of the RECORD is there with its size; installers write the RECORD last."""
    try:
        with (info / "RECORD").open(newline="", encoding="utf-8") as file:
            return all(_there(info.parent, row) for row in csv.reader(file))
    except (OSError, ValueError, csv.Error):  # ValueError: not UTF-8, or a size that is no number
        return False


def _there(site_packages: Path, row: list[str]) -> bool:
    """Bytecode has no size in a RECORD, nor has the RECORD itself; then only the name counts."""
    name, _, size = [*row, "", ""][:3]
    if name.endswith(".pyc"):
        return True  # can be made again, and uv lists none
    try:
        found = (site_packages / name).stat().st_size
    except OSError:
        return False
    return not size or found == int(size)
