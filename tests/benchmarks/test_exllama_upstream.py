"""The experiment on upstream's exllama kernels, on stand-ins for them: its own bookkeeping is right."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks.gpu import exllama_upstream
from gptq_diff.kernels.exllama_live import LiveExllama
from tests.checkpoint.build import linear_tensors
from tests.kernels.test_gptqmodel_ops import KINDS, made

NOWHERE = Path("none")


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exllama_upstream, "DEVICE", "cpu")
    monkeypatch.setattr(exllama_upstream, "SHAPE", (512, 64, 128))


def overflowing(kernel: LiveExllama) -> LiveExllama:
    """The same, but an output whose row holds an activation of 8190 or more is infinite in its first column."""
    multiply = kernel._ops.multiply  # type: ignore[attr-defined]

    def call(x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor) -> None:
        multiply(x_MK, handle, out_MN)
        out_MN[x_MK.abs().amax(dim=1) >= 8190, 0] = float("inf")

    kernel.call = call  # type: ignore[method-assign]
    return kernel


@pytest.mark.parametrize("kind", KINDS)
def test_the_border_is_found(kind: str) -> None:
    found = exllama_upstream.border(made(kind), NOWHERE)
    assert found["fused_rows"] == KINDS[kind][1]
    assert found["rows_with_the_bits_of_one"] == list(range(1, KINDS[kind][1] + 1))
    assert found["one_row"] == {
        "runs": 20, "distinct": 1, "nonfinite": [0, 0], "into_filled": {"zero": 0, "one": 0, "nan": 0},
    }  # fmt: skip


@pytest.mark.parametrize(("kind", "reading"), [("v1", "0"), ("v2", "0"), ("gptqmodel", "0, and 1 more next to it")])
def test_the_reading_of_stored_15_is_told_apart(kind: str, reading: str) -> None:
    for found in exllama_upstream.zeros(made(kind), NOWHERE):
        errors = found["largest_l2_rel_of_a_column_if_15_means"]
        assert {name for name, e in errors.items() if e["all"] < 0.01} == {reading}
        assert errors["16"]["columns_with_15"] > 0.5


def test_overflows_are_counted_beside_the_exact_maximum() -> None:
    found = exllama_upstream.outlier(overflowing(made("v1")), NOWHERE)
    assert [(f["as_half"], f["rows"]) for f in found] == [
        (a, m) for a in (8180.0, 8192.0, 12000.0) for m in exllama_upstream.OUTLIER_ROWS
    ]
    for f in found:
        assert f["nonfinite"] == (0 if f["as_half"] < 8190 else f["rows"])
        assert f["path"] == ("exllama-v1" if f["rows"] <= 7 else "exllama-reconstruct")
        assert f["exact_absmax"] > 100
        assert f["l2_rel_of_the_finite"] < 4e-3
        assert f["repeats"]["distinct"] == 1


def test_a_captured_linear_is_run_on_its_own_weight(tmp_path: Path) -> None:
    stored = linear_tensors("q", 128, 64, seed=4)
    x = torch.randn((5, 128), generator=torch.Generator().manual_seed(2))
    x[0, 3] = 9000
    file = tmp_path / "linear.safetensors"
    save_file({"x": x.to(torch.float16), **{w: stored[f"q.{w}"] for w in ("qweight", "qzeros", "scales")}}, file)
    found = exllama_upstream.captured(overflowing(made("v2")), file)
    assert (found["k"], found["n"], found["groups"], found["x_absmax"]) == (128, 64, 4, 9000.0)
    calls = {call["rows"]: call for call in found["calls"]}
    assert {m: calls[m]["nonfinite"] for m in (1, 7, 37)} == {1: 1, 7: 2, 37: 8}  # the rows begin anew after five
    assert calls[1]["first"] == [[0, 0]]
    assert calls[51]["path"] == "exllama-reconstruct"


def test_what_fails_or_hangs_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "broken.py"
    module.write_text("import sys, time\nif 'hang' in sys.argv: time.sleep(60)\nraise ValueError('no such kernel')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    asked = argparse.Namespace(sources=tmp_path, builds=tmp_path)
    failed = exllama_upstream.outcome(exllama_upstream.process("broken", asked), 30)
    assert failed["status"] == 1
    assert failed["error"].endswith("ValueError: no such kernel")
    hung = exllama_upstream.outcome(exllama_upstream.process("broken", asked, "hang"), 0.5)
    assert hung == {"error": "not done after 0.5 s"}


def test_without_a_compiler_or_a_gpu_the_report_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kernel has its own failed build, and the script ends well."""
    monkeypatch.setattr(exllama_upstream, "BUILD_SECONDS", 60)
    out = tmp_path / "out.json"
    monkeypatch.setattr(
        sys, "argv",
        ["x", "--sources", str(tmp_path), "--builds", str(tmp_path / "b"), "--linear", "none", "--out", str(out)],
    )  # fmt: skip
    exllama_upstream.main()
    report = json.loads(out.read_text())
    assert list(report["kernels"]) == list(exllama_upstream.KERNELS)
    for found in report["kernels"].values():
        assert list(found) == ["build"]
        build = found["build"]
        assert "error" in build or build["result"]["built"] is False
