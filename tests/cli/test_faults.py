"""Workers that fail in every way at once, under the program itself: each costs its own backend, and leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.fake_worker import alive
from tests.report.test_json_report import SCHEMA

COMMON = """
import os, subprocess, sys, time
sys.path.insert(0, {folder!r})

def note(name):
    children = [subprocess.Popen(["sleep", "600"], start_new_session=own) for own in (False, True)]
    with open(os.path.join({folder!r}, "part"), "w") as file:
        print(os.getpid(), *(child.pid for child in children), file=file)
    os.rename(os.path.join({folder!r}, "part"), os.path.join({folder!r}, name))
"""
RUN = """
from gptq_diff import worker
sys.exit(worker.main(sys.argv[3:]))
"""

GPU_FULL = """
import torch
from gptq_diff.kernels.fp16 import Fp16Kernel

def multiply(self, x_MK, linear):
    if "layers.1" in linear.spec.name:
        note("full")
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has no more.")
    return original(self, x_MK, linear)

original, Fp16Kernel.multiply = Fp16Kernel.multiply, multiply
"""
WAITS = """
from gptq_diff.kernels.sim_gptq import SimGptq

def multiply(self, x_MK, linear):
    if "layers.1" in linear.spec.name:
        print("now in block 1", flush=True)
        note("waits")
        time.sleep(600)
    return original(self, x_MK, linear)

original, SimGptq.multiply = SimGptq.multiply, multiply
"""
HANGS = 'print("starting", flush=True); note("hangs"); time.sleep(600)'
NO_ENGINE = 'raise ImportError("libcudart.so.12: cannot open shared object file", name="transformers._C")'


def interpreter(folder: Path, code: str) -> Path:
    """A Python that runs the code before the worker's own; `note` leaves its process id and two children's."""
    folder.mkdir()
    script = folder / "script.py"
    script.write_text(COMMON.format(folder=str(folder)) + code + RUN)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{script}" "$@"\n')
    python.chmod(0o755)
    return python


def noted(file: Path, process: subprocess.Popen[str]) -> list[int]:
    """The ids in that file, once it is there."""
    while not file.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    return [int(word) for word in file.read_text().split()]


def start(model: Path, folder: Path, *arguments: str) -> subprocess.Popen[str]:
    """The program as users start it, with a prompt of four tokens and one to write."""
    (folder / "prompts.jsonl").write_text('{"token_ids": [510, 3, 4, 5]}\n')
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "gptq_diff", "run", "--model", str(model), "--out", str(folder / "run"), "--json"),
            *("--prompt-file", str(folder / "prompts.jsonl"), "--max-new-tokens", "1", *arguments),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=folder,
    )  # fmt: skip


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    """The report of a run that ends with 3, held against the schema."""
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (3, "")
    report: dict[str, Any] = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    return report


@pytest.mark.slow
def test_every_fault_costs_its_own_backend(small_model: Path, tmp_path: Path) -> None:
    """Too little GPU memory, killed from outside in mid-capture, an engine that cannot be imported.

    The reference gets its verdict, each of the others a reason and the end of its log; when the program ends, none of
    their processes is left, nor what they had started in sessions of their own.
    """
    pythons = {
        "hf-fp16": interpreter(tmp_path / "full", GPU_FULL),
        "sim-gptq": interpreter(tmp_path / "killed", WAITS),
        "sim-reconstruct": interpreter(tmp_path / "without", ""),
    }
    engine = tmp_path / "without" / "transformers.py"
    engine.write_text(NO_ENGINE)
    backends = ",".join(["hf-fp32", *(f"{name}@{python}" for name, python in pythons.items())])
    process = start(small_model, tmp_path, "--backends", backends)
    killed = noted(tmp_path / "killed" / "waits", process)
    os.kill(killed[0], signal.SIGKILL)
    report = finished(process)
    pids = [*killed, *noted(tmp_path / "full" / "full", process)]
    assert len(pids) == 6
    assert [pid for pid in pids if alive(pid)] == []
    assert [(r["backend"], r["status"], r["layers"]["compared"]) for r in report["results"]] == [
        ("hf-fp32", "agree", 14)
    ]
    assert report["verdict"]["status"] == "agree"
    skipped = {s["backend"]: s for s in report["skipped_backends"]}
    assert list(skipped) == list(pythons)
    assert skipped["hf-fp16"]["reason"].startswith(
        "ran out of GPU memory: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has no more.; free memory"
    )
    assert "OutOfMemoryError: CUDA out of memory" in skipped["hf-fp16"]["log_end"][-1]
    assert skipped["sim-gptq"]["reason"] == "its worker was killed by SIGKILL (out of memory?)"
    assert skipped["sim-gptq"]["log_end"][-1] == "now in block 1"
    assert skipped["sim-reconstruct"]["reason"] == (
        f"the interpreter {sys.executable} cannot import transformers._C: libcudart.so.12: cannot open shared object "
        "file; its log has more"
    )
    assert str(engine) in " ".join(skipped["sim-reconstruct"]["log_end"])
    assert all((tmp_path / "run" / s["log"]).is_file() for s in skipped.values())


def test_one_that_hangs_is_ended_with_all_it_started(small_model: Path, tmp_path: Path) -> None:
    """After --timeout; that it hung while it was loading is said, and what it had printed."""
    python = interpreter(tmp_path / "hanging", HANGS)
    process = start(small_model, tmp_path, "--backends", f"hf-fp32@{python}", "--timeout", "3")
    report = finished(process)
    pids = noted(tmp_path / "hanging" / "hangs", process)
    assert len(pids) == 3
    assert [pid for pid in pids if alive(pid)] == []
    (skipped,) = report["skipped_backends"]
    assert skipped["reason"] == "timed out after 3 s, while it was loading"
    assert skipped["log_end"] == ["starting"]
    assert report["verdict"]["status"] == "incomplete"
