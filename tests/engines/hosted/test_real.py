"""auto_gptq and GPTQModel in earnest on the CPU, through `gptq-diff run`; opt-in, each needs an interpreter of its own.

GPTQ_DIFF_AUTO_GPTQ_PYTHON and GPTQ_DIFF_GPTQMODEL_PYTHON name them. A model that is there already can be named with
GPTQ_DIFF_SMOLLM2 (what `gptq-diff model build smollm2` wrote); else a small random one is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions
from tests.faults import plant

PYTHONS = {
    "auto-gptq": os.environ.get("GPTQ_DIFF_AUTO_GPTQ_PYTHON"),
    "gptqmodel": os.environ.get("GPTQ_DIFF_GPTQMODEL_PYTHON"),
    "gptqmodel-torch": os.environ.get("GPTQ_DIFF_GPTQMODEL_PYTHON"),
}
SMOLLM2 = os.environ.get("GPTQ_DIFF_SMOLLM2")
PATHS = {
    "auto-gptq": {"auto-gptq-torch"},
    "gptqmodel": {"gptqmodel-int4pack", "gptqmodel-torch"},  # by what the CPU can do
    "gptqmodel-torch": {"gptqmodel-torch"},
}

pytestmark = pytest.mark.slow


@pytest.fixture(params=list(PYTHONS))
def backend(request: pytest.FixtureRequest) -> str:
    name = str(request.param)
    if not PYTHONS[name]:
        library = "GPTQMODEL" if name.startswith("gptqmodel") else "AUTO_GPTQ"
        pytest.skip(f"GPTQ_DIFF_{library}_PYTHON names no interpreter with that library")
    return name


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a bias in q, k and v, and asymmetric."""
    options = BuildOptions(group_size=32, kv_heads=4, sym=False, seed=1)
    return build_model("tiny-qwen2", options, tmp_path_factory.mktemp("model") / "tiny")


def run(backend: str, out: Path, model: Path, *more: object) -> tuple[int, dict[str, Any]]:
    """Exit code and report of a short and a long prompt."""
    out.mkdir()
    prompts = out / "prompts.json"
    prompts.write_text(json.dumps([{"id": "one", "token_ids": [7]}, {"id": "some", "token_ids": list(range(3, 63))}]))
    done = subprocess.run(
        [sys.executable, "-m", "gptq_diff", "run", "--model", model, "--prompt-file", prompts, "--json",
         "--backends", f"hf-fp32,hf-fp16,{backend}@{PYTHONS[backend]}", "--max-new-tokens", "3",
         "--out", out / "run", *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def results(report: dict[str, Any], backend: str) -> list[dict[str, Any]]:
    assert report["skipped_backends"] == []
    return [r for r in report["results"] if r["backend"] == backend]


def test_every_linear_is_captured_and_agrees_with_the_exact_answer(backend: str, tiny: Path, tmp_path: Path) -> None:
    """All linears compared in prefill and decode, on the kernel named; and the model as a whole computes the same."""
    model = Path(SMOLLM2) if SMOLLM2 else tiny
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in model.iterdir()}
    code, report = run(backend, tmp_path / "out", model)
    found = results(report, backend)
    assert code == 0
    assert [r["prompt"] for r in found] == ["one", "some"]
    for result in found:
        assert result["status"] == "agree"
        assert set(result["kernel"].values()) <= PATHS[backend]
        assert result["layers"] == {"compared": report["model"]["quantized_linears"], "skipped": [], "bounded": 0}
        assert result["worst_excess"] <= 1.0
        assert "adapter" not in result["versions"]
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in model.iterdir()} == before


def test_the_model_around_the_linears_is_the_same(backend: str, tmp_path: Path) -> None:
    """Biases added once, rotary settings read, embeddings there: the first token's distribution is the reference's."""
    model = build_model("tiny-qwen2", BuildOptions(kv_heads=4, seed=2), tmp_path / "tiny")
    _, report = run(backend, tmp_path / "out", model)
    for ours, theirs in zip(results(report, backend), results(report, "hf-fp16")):
        assert ours["first_token_kl"] < max(10 * theirs["first_token_kl"], 1e-3)


@pytest.mark.parametrize("fault", plant.FAULTS)
def test_a_tampered_checkpoint_is_found_out_at_the_layer(backend: str, tiny: Path, tmp_path: Path, fault: str) -> None:
    """The engine loads the damaged copy, the judge reads the sound one."""
    tensors = plant.read_tensors(tiny)
    rng = np.random.default_rng([plant.FAULTS.index(fault), list(PYTHONS).index(backend)])
    names = plant.linears(tensors)
    changed, expected = plant.damage(tensors, fault, names[rng.integers(len(names))], 4, rng)
    damaged = plant.write_copy(tiny, changed, tmp_path / "damaged")
    code, report = run(backend, tmp_path / "out", damaged, "--reference-model", tiny)
    assert code == 1
    for result in results(report, backend):
        assert result["first_bad"]["layer"] == expected
        assert result["first_bad"]["kind"] == ("nan" if fault == "nan-scale" else "diverged")
