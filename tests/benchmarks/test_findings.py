"""benchmarks/gpu/findings.py as far as they go without a GPU, and the committed scripts."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import findings as written
from benchmarks.gpu import build_upstream, findings
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.reduce.narrowed import NarrowedSum
from gptq_diff.reduce.script import MOST_LINES
from tests.reduce.calls import run_script

FOLDERS = sorted(path.parent for path in findings.FINDINGS.glob("*/repro.py"))


def test_every_defect_has_an_article_and_a_script() -> None:
    assert {folder.name for folder in FOLDERS} == {findings.FUSED, findings.MARLIN, findings.RECONSTRUCT}
    assert all((folder / "README.md").is_file() for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_committed_scripts_tell_broken_from_mended(folder: Path, tmp_path: Path) -> None:
    """On the stand-ins of the reducer's tests, in an interpreter without gptq_diff."""
    assert len((folder / "repro.py").read_text().splitlines()) <= MOST_LINES
    assert run_script(folder / "repro.py", "--device", "cpu", cwd=tmp_path).code == 1
    assert run_script(folder / "repro.py", "--device", "cpu", cwd=tmp_path, STAND_IN="sound").code == 0


def test_the_committed_scripts_are_what_is_written(tmp_path: Path) -> None:
    """Those that need no run are written again and have not changed."""
    for name, pair, path, kernel in (
        (findings.MARLIN, written.marlin(), "marlin", NarrowedSum),
        (findings.RECONSTRUCT, written.reconstruct(), "exllama-reconstruct", SimReconstruct),
    ):
        written.write(tmp_path, name, pair, path, kernel)
        assert (tmp_path / "repro.py").read_text() == (findings.FINDINGS / name / "repro.py").read_text()


def test_a_script_is_run_on_every_library_that_was_compiled() -> None:
    """The fused path fails up to 50 rows and is right with 51, on vLLM's own kernel and on each compiled one."""
    wanted = findings.trials({"gptqmodel-exllamav2": "/builds/k.so"})
    assert {(kernel, finding) for finding, kernel, _, _ in wanted} == {
        (kernel, finding)
        for kernel in ("vllm", "gptqmodel-exllamav2")
        for finding in (findings.FUSED, findings.RECONSTRUCT)
    } | {("vllm", findings.MARLIN)}
    compiled = [arguments for _, kernel, arguments, _ in wanted if kernel != "vllm"]
    assert all(arguments[:3] == ("--kernel-library", "/builds/k.so", "--gptqmodel") for arguments in compiled)


def test_a_build_without_sources_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names no folder of this machine."""
    out = tmp_path / "out.json"
    arguments = ["--sources", tmp_path / "none", "--builds", tmp_path / "b", "--kernel", "vllm-0.33.0-gptq-gemm"]
    monkeypatch.setattr(sys, "argv", ["x", *map(str, arguments), "--out", str(out)])
    build_upstream.main()
    said = json.loads(out.read_text())
    assert (said["built"], said["library"]) == (False, None)
    assert said["error"] == "none holds no source pack of vllm==0.33.0 (packs there: none)"


def test_without_an_engine_everything_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit 3 of every script, no path of this machine in the file."""
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["findings", "--out", str(out), "--place", str(tmp_path / "place")])
    findings.main()
    report = json.loads(out.read_text())
    assert [(s["finding"], s["exit"]) for s in report["scripts"]] == [
        (findings.FUSED, 3), (findings.FUSED, 3), (findings.RECONSTRUCT, 3), (findings.MARLIN, 3),
    ]  # fmt: skip
    assert str(tmp_path) not in out.read_text()
