"""`reduce` on finished runs of small models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptq_diff.errors import CannotJudge, NothingFound, UsageError
from gptq_diff.reduce.record import read_reduced
from gptq_diff.session import reduce_kernel
from gptq_diff.session.reduce_run import Wanted, reduce_run
from tests.reduce.calls import run_script
from tests.session.in_process import FIRST, SECOND, asked, run

LAYER = "model.layers.1.mlp.down_proj"
pytestmark = pytest.mark.usefixtures("here")


@pytest.fixture(scope="module")
def finished(shifted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in which sim-exllama overflows; copy it before writing there."""
    from gptq_diff.session import capture_all
    from tests.session.in_process import run_here

    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capture_all, "run_load", run_here)
        patch.setenv("XDG_DATA_HOME", str(out.parent / "data"))
        run(asked(shifted_model, "sim-exllama,sim-reconstruct", (FIRST, SECOND), max_new_tokens=1), out)
    return out


@pytest.fixture
def failing(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def folder(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(place.iterdir())}


def test_the_first_bad_layer_becomes_one_input_and_one_code(failing: Path) -> None:
    found = reduce_run(failing)
    assert (found.backend, found.layer, found.kind) == ("sim-exllama", LAYER, "overflow")
    assert found.captured[0] == len(FIRST)
    assert found.shape == (1, 128, 8)
    assert (found.inputs, found.codes, found.live) == (1, 1, False)
    assert found.failing.output == "inf"
    assert found == read_reduced(failing / "reduced")


def test_the_stored_calls_say_the_same_apart(failing: Path) -> None:
    """Decoded here: one product passes the largest half and the other does not, the exact answers are small."""
    reduce_run(failing)
    t = load_file(failing / "reduced" / "calls.safetensors")
    centred = t["codes"].double() - t["zeros"].double()
    for name, overflows in (("failing", True), ("passing", False)):
        products = t[name].double().T * centred
        assert (float(products.abs().max()) >= 65520) is overflows
        assert float((products * t["scales"].double()).sum(dim=0).abs().max()) < 65504


def test_twice_the_same_bytes(failing: Path) -> None:
    """An earlier result is replaced, whole."""
    reduce_run(failing)
    first = folder(failing / "reduced")
    (failing / "reduced" / "left-over").touch()
    reduce_run(failing)
    assert folder(failing / "reduced") == first


def test_the_script_runs_where_nothing_else_is(failing: Path, tmp_path: Path) -> None:
    reduce_run(failing, Wanted(out=tmp_path / "elsewhere"))
    script = tmp_path / "elsewhere" / "repro.py"
    assert "Predicted with a simulation (sim-exllama), not yet seen on a GPU." in script.read_text()
    assert run_script(script, "--device", "cpu", cwd=tmp_path).code == 1
    assert run_script(script, "--device", "cpu", cwd=tmp_path, STAND_IN="sound").code == 0
    assert not (failing / "reduced").exists()


def test_what_is_named_is_taken(failing: Path) -> None:
    found = reduce_run(failing, Wanted("sim-exllama", "p2", LAYER))
    assert found.prompt == "p2"
    with pytest.raises(NothingFound, match=r"nothing to reduce: model.layers.0.mlp.down_proj is right"):
        reduce_run(failing, Wanted(layer="model.layers.0.mlp.down_proj"))
    with pytest.raises(NothingFound, match=r"nothing to reduce: every linear is right"):
        reduce_run(failing, Wanted("sim-reconstruct"))
    for wrong in (Wanted("sim-gptq"), Wanted(prompt="p9"), Wanted(layer="lm_head")):
        with pytest.raises(UsageError, match="this run has no"):
            reduce_run(failing, wrong)


def test_tensors_that_were_left_out_are_said(failing: Path) -> None:
    for block in failing.glob("captures/sim-exllama/*/block-*.safetensors"):
        block.unlink()
    with pytest.raises(CannotJudge, match=f"the tensors of {LAYER} were not kept"):
        reduce_run(failing)


def test_a_checkpoint_that_has_gone_is_said(failing: Path) -> None:
    record = json.loads((failing / "run.json").read_text())
    record["model"]["path"] = "/gone"
    (failing / "run.json").write_text(json.dumps(record))
    with pytest.raises(CannotJudge, match="the checkpoint /gone is not here"):
        reduce_run(failing)


def test_a_folder_of_somebody_else_is_left_alone(failing: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.txt").touch()
    with pytest.raises(CannotJudge, match="is not empty"):
        reduce_run(failing, Wanted(out=tmp_path / "theirs"))
    assert (tmp_path / "theirs" / "thesis.txt").exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"cause": "result-overflow"}, "is itself beyond float16"),
        ({"kind": "nan", "cause": "nan-weights"}, "the checkpoint is at fault"),
        ({"path": "bias"}, "the step bias after its kernel"),
    ],
)
def test_what_no_product_is_to_blame_for(failing: Path, change: dict[str, str], says: str) -> None:
    for place in failing.glob("judged/sim-exllama/*.jsonl"):
        lines = [json.loads(line) for line in place.read_text().splitlines()]
        lines = [{**line, **change} if line["kind"] == "overflow" else line for line in lines]
        place.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(NothingFound, match=says):
        reduce_run(failing)


def test_a_fault_between_linears_is_named(failing: Path) -> None:
    """The report's first fault is a norm, and no linear was asked for."""
    report = json.loads((failing / "report.json").read_text())
    for result in report["results"]:
        if result["first_bad"]:
            result["first_bad"] |= {"path": "norm", "index": 0, "layer": "model.layers.0.mlp.up_proj"}
    (failing / "report.json").write_text(json.dumps(report))
    with pytest.raises(NothingFound, match=r"the first fault is the norm before model\.layers\.0\.mlp\.up_proj"):
        reduce_run(failing)
    assert reduce_run(failing, Wanted(layer=LAYER)).shape == (1, 128, 8)


def test_a_damaged_checkpoint_is_no_kernels_fault(small_model: Path, tmp_path: Path) -> None:
    """The weights loaded are others than the reference's, and are multiplied rightly."""
    shutil.copytree(small_model, tmp_path / "other")
    tensors = load_file(small_model / "model.safetensors")
    tensors[f"{LAYER}.scales"] *= 1.5
    save_file(tensors, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    run(asked(tmp_path / "other", "sim-exllama", reference_model=small_model, max_new_tokens=1), tmp_path / "run")
    with pytest.raises(NothingFound, match="they are others than the reference's"):
        reduce_run(tmp_path / "run")


def test_a_kernel_that_is_right_by_itself(failing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulation in the place of a live kernel that cannot be made to fail: no verdict, and the way on."""
    from gptq_diff.kernels.fp16 import Fp16Kernel

    monkeypatch.setitem(reduce_kernel.SIMULATORS, "exllama-fast", Fp16Kernel)
    with pytest.raises(CannotJudge, match="does not show the fault"):
        reduce_run(failing)


class TestLiveKernel:
    """A kernel in a process of its own; a simulator stands in for it, since there is no GPU."""

    @pytest.fixture
    def live(self, failing: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The run's failing backend as one of an engine whose kernels are asked in their own process."""
        monkeypatch.setattr(reduce_kernel, "SIMULATED", "nothing")
        monkeypatch.setitem(reduce_kernel.LIVE, ("transformers", "exllama-fast"), "sim-exllama")
        return failing

    def test_it_gives_what_the_simulation_gives(self, live: Path) -> None:
        found = reduce_run(live)
        assert found.live
        assert found.seen_on["torch"] == torch.__version__
        assert (found.shape, found.inputs, found.failing.output) == ((1, 128, 8), 1, "inf")
        assert "Seen on a GPU with torch" in (live / "reduced" / "repro.py").read_text()
        simulated = reduce_run(live, Wanted(simulate=True))
        assert not simulated.live
        assert simulated.failing == found.failing

    def test_a_kernel_that_is_not_here_gives_way_to_its_simulation(
        self, live: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setitem(reduce_kernel.LIVE, ("transformers", "exllama-fast"), "vllm-exllama-fast")
        found = reduce_run(live, say=said.append)
        assert not found.live
        assert "its simulation is tried instead" in said[0]

    def test_an_interpreter_that_was_named_has_to_do(self, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import sys

        monkeypatch.setitem(reduce_kernel.LIVE, ("transformers", "exllama-fast"), "vllm-exllama-fast")
        with pytest.raises(CannotJudge, match="vLLM's own operations cannot be loaded"):
            reduce_run(live, Wanted(f"sim-exllama@{sys.executable}"))

    def test_a_process_that_dies_is_said(self, live: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(reduce_kernel.LIVE, ("transformers", "exllama-fast"), "")
        from gptq_diff.reduce import remote

        monkeypatch.setattr(remote, "START_SECONDS", 0.0)
        with pytest.raises(CannotJudge, match="gave no answer within 0 s"):
            reduce_run(live)
