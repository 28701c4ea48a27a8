"""repro.py by itself: run where gptq_diff cannot be imported, on stand-ins for the engines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.reduce.call import Call, packed
from gptq_diff.reduce.narrowed import NarrowedSum
from gptq_diff.reduce.script import DATA, EXLLAMA, MARLIN, MOST_LINES, RECONSTRUCT_ROWS, Story, script
from gptq_diff.reduce.shrink import Pair, shrink
from gptq_diff.reduce.trial import Fault, Trial, simulated
from tests.reduce.calls import random_call, run_script

KERNELS = {"exllama-fast": SimExllama, "exllama-reconstruct": SimReconstruct, "marlin": NarrowedSum}


def failing(path: str) -> Call:
    """A call that fails on that path."""
    call = random_call(3, 256, 64, 256 if path == "marlin" else 128)
    call.x_MK[1, 77] = 12000.0
    if path == "exllama-reconstruct":
        call.scales_GN[:] = 0.5
        call.x_MK[:] = 0.0
        call.x_MK[1, 20], call.x_MK[1, 200] = 25000.0, 25000.0
        call.codes_KN[20], call.codes_KN[200] = 15, 1
    return call


def pair_of(path: str, call: Call) -> Pair:
    kernel = KERNELS[path]
    y_MN = kernel().multiply(call.x_MK, packed(call)).y_MN
    pair = shrink(call, y_MN, Trial(simulated(kernel), Fault("overflow", None)), 64 if path == "marlin" else 8)
    assert pair is not None
    return pair


def story_of(path: str, pair: Pair, seen: str = "Predicted") -> Story:
    rows = RECONSTRUCT_ROWS if path == "exllama-reconstruct" else pair.failing.shape[0]
    return Story("a title", seen, 0.01, MARLIN if path == "marlin" else EXLLAMA, rows, (0, 0), "inf", "1")


@pytest.fixture(params=list(KERNELS))
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def written(path: str, tmp_path: Path) -> Path:
    """The script for the reduced call of that path."""
    pair = pair_of(path, failing(path))
    text, tensors = script(pair, story_of(path, pair))
    assert tensors is None
    (tmp_path / "repro.py").write_text(text)
    return tmp_path / "repro.py"


def test_it_is_short_and_needs_little(written: Path, path: str) -> None:
    text = written.read_text()
    assert len(text.splitlines()) <= MOST_LINES
    modules = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert {m.split(".")[0] for m in modules} <= {"argparse", "inspect", "sys", "torch", "vllm", "gptqmodel"}


def test_it_tells_a_broken_kernel_from_a_mended_one(written: Path, tmp_path: Path) -> None:
    """Exit 1 with the passing call right beside it, then exit 0."""
    broken = run_script(written, "--device", "cpu", cwd=tmp_path)
    assert broken.code == 1, broken.err
    assert [line.rsplit(" ", 1)[1] for line in broken.out.splitlines()] == ["right", "WRONG"]
    mended = run_script(written, "--device", "cpu", cwd=tmp_path, STAND_IN="sound")
    assert mended.code == 0, mended.err
    assert [line.rsplit(" ", 1)[1] for line in mended.out.splitlines()] == ["right", "right"]


def test_without_an_engine_it_says_so(written: Path, tmp_path: Path) -> None:
    said = run_script(written, "--device", "cpu", cwd=tmp_path, engines=False)
    assert said.code == 3
    assert said.err == "nothing was run: No module named 'vllm'\n"


class TestFusedPath:
    @pytest.fixture
    def path(self) -> str:
        return "exllama-fast"

    @pytest.mark.parametrize("release", ["0.5", "0.33"])
    def test_signatures_of_other_releases(self, written: Path, release: str, tmp_path: Path) -> None:
        """Without the v2 flag, and without g_idx."""
        assert run_script(written, "--device", "cpu", cwd=tmp_path, STAND_IN_RELEASE=release).code == 1

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
    def test_without_a_gpu_it_says_so(self, written: Path, tmp_path: Path) -> None:
        said = run_script(written, cwd=tmp_path)
        assert said.code == 3
        assert said.err == "nothing was run: torch sees no GPU\n"

    def test_a_crash_is_no_answer(self, written: Path, tmp_path: Path) -> None:
        """An engine whose op fails ends in 3, not in 1."""
        said = run_script(written, "--device", "cpu", cwd=tmp_path, STAND_IN="crash")
        assert said.code == 3
        assert "the stand-in crashed" in said.err

    def test_more_rows_take_the_other_path(self, written: Path, tmp_path: Path) -> None:
        """With 51 rows the stand-in reconstructs, as the kernel does, and nothing is wrong."""
        assert run_script(written, "--device", "cpu", "--rows", "51", cwd=tmp_path).code == 0

    def test_gptqmodels_kernel(self, written: Path, tmp_path: Path) -> None:
        arguments = ("--device", "cpu", "--gptqmodel")
        assert run_script(written, *arguments, cwd=tmp_path).code == 1
        assert run_script(written, *arguments, cwd=tmp_path, STAND_IN="sound").code == 0

    def test_a_library_that_is_not_there(self, written: Path, tmp_path: Path) -> None:
        said = run_script(written, "--device", "cpu", "--kernel-library", "none.so", cwd=tmp_path)
        assert said.code == 3
        assert said.err.startswith("nothing was run: ")


def test_larger_data_go_to_a_file(tmp_path: Path) -> None:
    """Two groups with scales of their own: less than 1 MB beside the script, both engines read it right."""
    call = random_call(1, 128, 8, 64)
    call.x_MK[0, ::2] = 4000.0
    call.codes_KN[::2] = 15
    pair = Pair(call, call.with_x(call.x_MK / 8))
    text, tensors = script(pair, story_of("exllama-fast", pair))
    assert tensors is not None
    assert len(text.splitlines()) <= MOST_LINES
    (tmp_path / "repro.py").write_text(text)
    save_file(dict(tensors), tmp_path / DATA)
    assert (tmp_path / DATA).stat().st_size < 1_000_000
    for engine in ((), ("--gptqmodel",)):
        broken = run_script(tmp_path / "repro.py", "--device", "cpu", *engine, cwd=tmp_path)
        assert broken.code == 1, broken.err
        assert "right" in broken.out.splitlines()[0]
        assert run_script(tmp_path / "repro.py", "--device", "cpu", *engine, cwd=tmp_path, STAND_IN="sound").code == 0


def test_names_from_elsewhere_cannot_become_code(tmp_path: Path) -> None:
    """What a GPU or a layer is called stands in the docstring, and cannot end it."""
    pair = pair_of("exllama-fast", failing("exllama-fast"))
    seen = 'Seen on """\nopen("planted", "w")\n"""\\'
    text, _ = script(pair, story_of("exllama-fast", pair, seen))
    assert 'open("planted"' not in text
    assert ast.get_docstring(ast.parse(text)) is not None
    (tmp_path / "repro.py").write_text(text)
    assert run_script(tmp_path / "repro.py", "--device", "cpu", cwd=tmp_path).code == 1
    assert not (tmp_path / "planted").exists()
