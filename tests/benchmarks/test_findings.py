"""benchmarks/gpu/findings.py and upstream_sources.py as far as they go without a GPU, and the committed scripts."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from benchmarks import findings as written
from benchmarks.gpu import findings, upstream_sources
from benchmarks.gpu.build_upstream import EVERY, source_files
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


def test_only_what_is_compiled_is_taken_out(tmp_path: Path) -> None:
    """Files of the kernel and nothing that lies beside them or climbs out."""
    members = {
        "vllm-0.33.0/csrc/torch_utils.h": 1, "vllm-0.33.0/csrc/quantization/gptq/q_gemm.cu": 1,
        "vllm-0.33.0/csrc/ops.h": 0, "vllm-0.33.0/csrc/quantization/gptq/../../../../out": 0,
        "other-1/csrc/torch_utils.h": 0,
    }  # fmt: skip
    with tarfile.open(tmp_path / "vllm-0.33.0.tar.gz", "w:gz") as tar:
        for name in members:
            info = tarfile.TarInfo(name)
            info.size = 3
            tar.addfile(info, io.BytesIO(b"abc"))
    found = upstream_sources.extract(tmp_path / "vllm-0.33.0.tar.gz", tmp_path / "out")
    assert found == [name for name, wanted in members.items() if wanted]
    assert {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()} == set(
        found
    )


def test_bindings_lie_beside_the_script() -> None:
    for name in EVERY:
        ours = [Path(f) for f in source_files(name, Path("nowhere")) if "nowhere" not in f]
        assert all(path.is_file() for path in ours)


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
