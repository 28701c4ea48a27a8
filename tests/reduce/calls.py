"""Calls with a planted fault, random otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from gptq_diff.reduce.call import Call

ENGINES = Path(__file__).parent / "engines"


def random_call(m: int, k: int, n: int, group: int, seed: int = 0) -> Call:
    """Standard normal x, random codes, zero points of 8 and small scales."""
    draw = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (k, n), generator=draw, dtype=torch.int16)
    scales = (0.002 + 0.01 * torch.rand((k // group, n), generator=draw)).half()
    x = torch.randn((m, k), generator=draw).half()
    return Call(x, codes, torch.full((k // group, n), 8, dtype=torch.int16), scales, 4, group, "gptq")


def exact_of(call: Call) -> torch.Tensor:
    """The exact answer by loops of its own."""
    y = torch.zeros(call.x_MK.shape[0], call.codes_KN.shape[1], dtype=torch.float64)
    for k in range(call.codes_KN.shape[0]):
        g = k // call.group_size
        w = (call.codes_KN[k].double() - call.zeros_GN[g].double()) * call.scales_GN[g].double()
        y += call.x_MK[:, k].double()[:, None] * w
    return y


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


def run_script(script: Path, *arguments: str, cwd: Path, engines: bool = True, **variables: str) -> Said:
    """The script in an interpreter that cannot import gptq_diff, with or without the stand-ins for engines."""
    environment = {**os.environ, **variables, "PYTHONPATH": str(ENGINES) if engines else ""}
    check = "import sys, runpy\nsys.modules['gptq_diff'] = None\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0])"
    command = [sys.executable, "-P", "-c", check, str(script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False)
    return Said(done.returncode, done.stdout, done.stderr)
