"""`stress` on a captured run: the linears with the least headroom, and agreement with what was computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import BackendError, UsageError
from gptq_diff.kernels.base import Product
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.records import LayerSpec, Support
from gptq_diff.session import stress_run as stress_module
from gptq_diff.session.captured_inputs import inputs_of_run
from gptq_diff.session.stress_report import StressReport
from gptq_diff.session.stress_run import KERNELS, check_backends, stress_run
from tests.session.in_process import FIRST, SECOND, asked, run


@pytest.fixture(scope="module")
def captured(shifted_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference's inputs of the shifted tiny model, two prompts."""
    out = tmp_path_factory.mktemp("stress") / "run"
    with pytest.MonkeyPatch.context() as patch:
        from gptq_diff.session import capture_all
        from tests.session.in_process import run_here

        patch.setattr(capture_all, "run_load", run_here)
        run(asked(shifted_model, "hf-fp32", (FIRST, SECOND), capture="full"), out)
    return out


def stressed(model: Path, captured: Path, backends: str, layers: str = "*", top: int = 10) -> StressReport:
    with open_checkpoint(model) as checkpoint, inputs_of_run(captured, checkpoint) as inputs:
        return stress_run(checkpoint, inputs, check_backends(backends), layers, top, lambda _: None)


def test_ten_layers_agree_within_a_doubling(shifted_model: Path, captured: Path) -> None:
    """Computed from the codes and measured on the simulated kernel, the least first; the planted one is below zero."""
    report = stressed(shifted_model, captured, "sim-exllama")
    assert len(report.rows) == 10
    assert all(row.stood.bits <= later.stood.bits for row, later in zip(report.rows, report.rows[1:]))
    for row in report.rows:
        assert abs(row.stood.doublings - row.stood.computed) <= 1
    first = report.rows[0]
    assert (first.layer, first.stood.channel, first.stood.group) == ("model.layers.1.mlp.down_proj", 170, 2)
    assert first.stood.doublings < 0
    assert report.broke


def test_the_path_follows_the_rows(shifted_model: Path, captured: Path) -> None:
    """sim-gptq reconstructs the long prompt and not the short one: the call that comes nearest is a fast one."""
    (row,) = stressed(shifted_model, captured, "sim-gptq", "*.1.mlp.down_proj").rows
    assert row.stood.path == "exllama-fast"
    assert row.rows in (1, len(FIRST))


def test_layers_and_top(shifted_model: Path, captured: Path) -> None:
    """A glob picks, N limits; every kernel has its own rows."""
    report = stressed(shifted_model, captured, "sim-exllama,hf-fp16", "*down_proj", 1)
    assert [row.backend for row in report.rows] == ["sim-exllama", "hf-fp16"]
    assert all(row.layer.endswith("down_proj") for row in report.rows)
    with pytest.raises(UsageError, match="no quantised linear is called"):
        stressed(shifted_model, captured, "sim-exllama", "*.nothing")


def test_a_kernel_that_is_not_here(shifted_model: Path, captured: Path) -> None:
    """It is skipped with the reason, the others are measured."""
    report = stressed(shifted_model, captured, "vllm-exllama,sim-exllama", top=1)
    assert [skipped.backend for skipped in report.skipped] == ["vllm-exllama"]
    assert [row.backend for row in report.rows] == ["sim-exllama"]


def test_a_linear_that_a_kernel_refuses(shifted_model: Path, captured: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its shape or when it sees the weight: with the reason, and the others are measured."""

    class Picky(SimExllama):
        def supports(self, spec: LayerSpec) -> Support:
            return Support(ok="o_proj" not in spec.name, reason="no o_proj")

        def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
            if "v_proj" in linear.spec.name:
                raise BackendError("no v_proj")
            return super().multiply(x_MK, linear)

    monkeypatch.setattr(stress_module, "make_kernel", lambda _: Picky(0))
    report = stressed(shifted_model, captured, "sim-exllama", "*.0.self_attn.*")
    assert {one.name.rpartition(".")[2]: one.reason for one in report.refused["sim-exllama"]} == {
        "o_proj": "no o_proj", "v_proj": "no v_proj",
    }  # fmt: skip
    assert {row.layer.rpartition(".")[2] for row in report.rows} == {"q_proj", "k_proj"}


@pytest.mark.parametrize("names", ["sim-exlama", "", "vllm", "hf-original"])
def test_backends_that_cannot_be_stressed(names: str) -> None:
    """Misspelt, none, or without a kernel that can be called by itself: all those that can are named."""
    with pytest.raises(UsageError) as caught:
        check_backends(names)
    assert all(known in str(caught.value.hint) for known in KERNELS)
