"""What ran, in words for somebody who knows the engine and not gptq-diff."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.presets import PRESETS
from gptq_diff.records import INTERVALS
from gptq_diff.report.paths import PATHS, SIMULATES, about_backend, about_path
from tests.report.build import a_report, a_result, first_bad

VERSIONS = {"python": "3.12.3", "torch": "2.11.0+cu130", "transformers": "5.17.0", "vllm": "0.20.2"}


def test_every_simulator_is_explained() -> None:
    """And nothing that is not one: a new preset is not to be called real by oversight."""
    assert {p.name for p in PRESETS if p.name.startswith("sim-")} == set(SIMULATES)


def test_a_simulated_backend_is_called_computed() -> None:
    report = a_report(a_result("overflow"))
    told = about_backend(report, report.results[0])
    assert told == (
        "sim-exllama simulates vLLM's gptq_gemm on its fused path, whatever the number of rows, as in vLLM 0.20.2: "
        "it was computed here, not seen on a GPU."
    )


def test_a_live_backend_is_named_with_its_release_and_gpu() -> None:
    """The engine's own version, not transformers', which vLLM needs too."""
    result = replace(a_result("overflow", "vllm-gptq"), engine="vllm", versions=VERSIONS, peak_gpu_bytes=462_000_000)
    report = replace(
        a_report(result), environment={"gpu": "NVIDIA H200", "cuda": "driver 580.126", "cpu": "Intel Xeon"}
    )
    assert about_backend(report, result) == (
        "vllm-gptq is vllm 0.20.2, torch 2.11.0+cu130 on NVIDIA H200 (driver 580.126)."
    )
    on_cpu = replace(result, peak_gpu_bytes=None)
    assert about_backend(report, on_cpu) == "vllm-gptq is vllm 0.20.2, torch 2.11.0+cu130 on Intel Xeon."


def test_what_is_not_known_is_left_out() -> None:
    """A redacted report may know neither versions nor machine."""
    result = replace(a_result("overflow", "backend-1"), engine="vllm", versions={})
    assert about_backend(replace(a_report(result), environment={}), result) == "backend-1 is vllm."


@pytest.mark.parametrize("path", PATHS)
def test_a_path_is_told_with_its_rows(path: str) -> None:
    result = replace(a_result("overflow"), first_bad=replace(first_bad("overflow"), path=path, rows=1))
    assert about_path(result) == f"What ran there is {PATHS[path]}, on 1 row."


def test_a_path_without_words_keeps_its_name() -> None:
    result = replace(a_result("overflow"), first_bad=replace(first_bad("overflow"), path="exllama-v3"))
    assert about_path(result) == "What ran there is exllama-v3, on 37 rows."


def test_where_no_kernel_broke_none_is_named() -> None:
    """Nothing failed, or what makes a linear's input did."""
    assert about_path(a_result("agree")) == ""
    for path in INTERVALS:
        assert about_path(replace(a_result("nan"), first_bad=replace(first_bad("nan"), path=path))) == ""
