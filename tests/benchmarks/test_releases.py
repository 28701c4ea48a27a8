"""benchmarks/gpu/releases.py on stand-ins for the kernels, and the tables that are made of what it writes."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import releases as tables
from benchmarks.gpu import releases
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT
from gptq_diff.kernels.vllm_ops import VllmGemm
from gptq_diff.releases import Release
from gptq_diff.upstream.build import How, Listener, Outcome
from gptq_diff.upstream.pack import read_pack
from gptq_diff.upstream.store import Store
from tests.checkpoint.build import linear_tensors
from tests.kernels.test_vllm_ops import ops_with
from tests.upstream.made import MIDDLE
from tests.upstream.test_pack import packed
from tests.upstream.test_store import keep

FILES = sorted((tables.RESULTS / "gpu").glob(tables.MEASURED))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "DEVICE", "cpu")
    monkeypatch.setattr(releases, "SHAPE", (256, 64, 128))
    monkeypatch.setattr(releases, "REPEATS", 3)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """A captured linear of 3 rows, one of which breaks the fused path."""
    stored = linear_tensors("q", 128, 64, seed=4)
    x = torch.randn((3, 128), generator=torch.Generator().manual_seed(2))
    x[0, 3] = 12000
    file = tmp_path / "linear.safetensors"
    save_file({"x": x.to(torch.float16), **{w: stored[f"q.{w}"] for w in ("qweight", "qzeros", "scales")}}, file)
    return file


def make_of(ops: ModuleType) -> releases.Make:
    """Kernels of a release whose operations these are."""

    def make(path: str | None) -> Kernel:
        return VllmGemm(path, "cpu", ops=ops, name="stand-in")

    return make


def measured(linear: Path, place: Path, ops: ModuleType | None = None) -> dict[str, Any]:
    """The cases, and what one stand-in does with them."""
    releases.prepare(linear, place)
    cases = {name: releases.read_case(name, place) for name in ("captured", "synthetic")}
    return releases.measure(make_of(ops or ops_with()), cases)


def test_what_a_kernel_loses_is_counted_by_rows(linear: Path, tmp_path: Path) -> None:
    """The simulated fused path loses outputs up to 50 rows, the other none; the fourth row is the first again."""
    found = measured(linear, tmp_path)
    lost = found["captured"]["lost"]
    assert {m: lost[m]["path"] for m in lost} == {"1": FAST, "37": FAST, "50": FAST, "51": RECONSTRUCT}
    one = lost["1"]["nonfinite"]
    assert one > 0
    assert lost["37"]["nonfinite"] == 13 * one, "rows 0, 3, ... 36"
    assert lost["51"]["nonfinite"] == 0
    synthetic = found["synthetic"]["lost"]
    assert synthetic["37"]["nonfinite"] > 37
    assert synthetic["51"]["nonfinite"] == 0
    assert found["one_block"]["fused_rows"] == 50


def test_errors_are_those_of_healthy_rows(linear: Path, tmp_path: Path) -> None:
    """Against float64, with both paths forced; a deterministic kernel repeats its bits."""
    found = measured(linear, tmp_path)
    for case in ("captured", "synthetic"):
        for path, rows in releases.HEALTHY.items():
            said = found[case]["healthy"][path]
            assert (said["rows"], said["nonfinite"]) == (rows, 0)
            assert 1e-5 < said["l2_rel_of_the_finite"] < 4e-3
            assert said["repeats"] == {"runs": 3, "distinct": 1, "l2_rel_apart": 0.0}


def test_another_arithmetic_shows_in_the_bits(linear: Path, tmp_path: Path) -> None:
    """Of the fused path alone, where that alone differs."""
    one, same = measured(linear, tmp_path)["one_block"], measured(linear, tmp_path)["one_block"]
    other = measured(linear, tmp_path, ops_with(spoil=1.0))["one_block"]
    assert one == same
    assert one["fused_sha256"] != other["fused_sha256"]
    assert one["reconstruct_sha256"] == other["reconstruct_sha256"]


def test_differing_repeats_are_counted_with_their_distance() -> None:
    """As atomics make them."""

    class Wavering:
        calls = 0

        def multiply(self, x_MK: torch.Tensor, linear: object) -> Any:
            self.calls += 1
            return type("Product", (), {"y_MN": torch.full((2, 2), 1.0 + (self.calls % 2) / 8, dtype=torch.float16)})

    said = releases.repeats(Wavering(), torch.zeros(1), None)  # type: ignore[arg-type]
    assert (said["runs"], said["distinct"]) == (3, 2)
    assert said["l2_rel_apart"] == pytest.approx(1 / 9)


def test_without_a_gpu_every_release_has_its_build(
    linear: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that fails is written down with its reason, and the script ends well."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    packed(tmp_path / "packs", "vllm==0.5.1")
    packed(tmp_path / "packs", "vllm==0.20.2", gemm=MIDDLE, release=Release("vllm", "0.20.2"))

    def build_all(packs: Sequence[Path], store: Store, how: How, listen: Listener) -> list[Outcome]:
        outcomes = []
        for folder in packs:
            release = read_pack(folder).release
            log, failure = store.log(release), None if release.version == "0.5.1" else "it does not compile"
            place = None if failure else keep(store, release.version)
            outcomes.append(Outcome(release, place, failure, None, False, 1.0, log))
        return outcomes

    monkeypatch.setattr(releases, "build_all", build_all)
    out = tmp_path / "out.json"
    arguments = ["--sources", tmp_path / "packs", "--linear", linear, "--place", tmp_path / "place", "--out", out]
    monkeypatch.setattr(sys, "argv", ["releases", *map(str, arguments)])
    releases.main()
    report = json.loads(out.read_text())
    assert report["releases"]["vllm==0.5.1"]["build"]["seconds"] == 61.0
    assert report["releases"]["vllm==0.20.2"]["build"]["failure"] == "it does not compile"
    assert str(tmp_path) not in out.read_text()
    assert "| vllm==0.20.2 | not: it does not compile |" in tables.section(report)


def test_a_step_that_fails_or_hangs_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the child's last words; a result of an earlier step is not taken for its."""
    (tmp_path / "step.json").write_text('{"stale": 1}')
    asked = type("Asked", (), {"place": tmp_path})()
    said = releases.step(asked, 60, "--release", "vllm==0.5.1", "--built", str(tmp_path))  # type: ignore[arg-type]
    assert said["status"] == 1
    assert (
        "captured.safetensors" in said["error"] or "BackendError" in said["error"] or "holds no kernel" in said["error"]
    )
    assert releases.step(asked, 0.01)["error"] == "not done after 0.01 s"  # type: ignore[arg-type]


def report_of(found: dict[str, Any], digest: str = "a") -> dict[str, Any]:
    """A whole report with one compiled release and one that failed."""
    build = {"sources": digest, "cached": False, "failure": None, "seconds": 40.2}
    case = {"k": 128, "n": 64, "group_size": 32, "x_absmax": 12000.0, "exact_absmax": 50.0, "torch_fp16_l2_rel": 2e-4}
    return {
        "gpu": "GPU", "torch": "2", "cuda": "13", "date": "2026-01-01", "build_seconds": 100.0,
        "cases": {"captured": case, "synthetic": case},
        "releases": {
            "gptqmodel==7.7.0": {"build": build, "measured": {"error": "not done after 100 s"}},
            "vllm==0.33.0": {"build": {**build, "sources": "b"}, "measured": found},
            "vllm==0.5.1": {"build": build, "measured": found},
            "vllm==0.6.4.post1": {"build": build, "measured": found},
        },
    }  # fmt: skip


def test_the_tables_say_what_was_measured(linear: Path, tmp_path: Path) -> None:
    """vLLM by version, then the others; what is the same as before is named."""
    found = measured(linear, tmp_path)
    text = tables.section(report_of(found))
    lines = [line for line in text.splitlines() if line.startswith(("| vllm", "| gptqmodel"))]
    assert [line.split(" | ")[0] for line in lines[:4]] == [
        "| vllm==0.5.1", "| vllm==0.6.4.post1", "| vllm==0.33.0", "| gptqmodel==7.7.0",
    ]  # fmt: skip
    assert lines[1].startswith(
        "| vllm==0.6.4.post1 | 40 s | as vllm==0.5.1 | 50 rows | as vllm==0.5.1 | as vllm==0.5.1 |"
    )
    assert lines[2].startswith("| vllm==0.33.0 | 40 s | its own | 50 rows | as vllm==0.5.1 |")
    lost = found["captured"]["lost"]
    assert f"| {', '.join(str(lost[m]['nonfinite']) for m in tables.ROWS)} | 64, 2,368, 3,200, 3,264 |" in lines[4]
    assert "the same bits" in lines[4]
    assert "| gptqmodel==7.7.0 | not measured: not done after 100 s |" in text


def test_the_page_has_the_marks_and_holds_what_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without results it stays as it is; with those that are committed it is what the script writes."""
    page = tmp_path / "releases.md"
    page.write_text(tables.PAGE.read_text())
    monkeypatch.setattr(tables, "PAGE", page)
    before = page.read_text()
    tables.main()
    assert page.read_text() == before
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    (tmp_path / "gpu").mkdir()
    tables.main()
    assert page.read_text() == before


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_committed_results_name_no_folder(file: Path) -> None:
    """They are data for everybody."""
    text = file.read_text()
    assert "/root" not in text and "/tmp" not in text and "/home" not in text
