"""bfloat16 as a workaround: run where the kernel takes it, told why not where it does not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.session.in_process import asked, result, run

pytestmark = pytest.mark.usefixtures("here")
LAYER = "model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def large_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with one linear whose results are some 20,000 times as large: beyond float16, softmax takes it."""
    to = tmp_path_factory.mktemp("large") / "model"
    shutil.copytree(tiny_model, to)
    for file in to.glob("*.safetensors"):
        tensors = load_file(file)
        if f"{LAYER}.scales" in tensors:
            scales = tensors[f"{LAYER}.scales"].float()
            tensors[f"{LAYER}.scales"] = (scales * (30_000 / scales.max())).to(torch.float16)
            save_file(tensors, file, metadata={"format": "pt"})
    return to


def test_results_beyond_float16_are_cured_by_its_range_and_the_price_is_told(large_model: Path, tmp_path: Path) -> None:
    """hf-fp16 overflows; in bfloat16 no value is lost, and the price stands in figures. Nothing is left on disk."""
    report = run(asked(large_model, "hf-fp16", workarounds="all"), tmp_path / "run")
    failed = result(report, "hf-fp16")
    assert (failed.status, failed.first_bad.layer) == ("overflow", LAYER)
    (found,) = [w for w in failed.workarounds if w.name == "bfloat16"]
    assert found.tried and "no value is lost" in found.detail
    assert found.works == ("the reference's tokens" in found.detail)
    words = found.detail.split()
    paid, half = (float(words[words.index("by") + 1]), float(words[-2]))
    assert 5 < paid / half < 12
    assert not list((tmp_path / "run" / "workarounds").rglob("*.safetensors"))


def test_what_needs_a_load_of_its_own_is_said_to_be_there(large_model: Path, tmp_path: Path) -> None:
    """Without being asked for it is not run; a kernel that takes float16 only says so either way."""
    report = run(asked(large_model, "hf-fp16,sim-exllama"), tmp_path / "run")
    told = {b: [w for w in result(report, b).workarounds if w.name == "bfloat16"] for b in ("hf-fp16", "sim-exllama")}
    assert [(w.tried, w.works) for w in (*told["hf-fp16"], *told["sim-exllama"])] == [(False, None)] * 2
    assert "--workarounds all" in told["hf-fp16"][0].detail
    assert "float16 only" in told["sim-exllama"][0].detail


def test_errors_that_no_range_cures_do_not_bring_it_up(damaged: tuple[Path, Path], tmp_path: Path) -> None:
    """Zero points off by one diverge in any dtype."""
    suspect, good = damaged
    report = run(asked(suspect, "hf-fp16", reference_model=good, workarounds="all"), tmp_path / "run")
    assert result(report, "hf-fp16").status == "diverged"
    assert not [w for w in result(report, "hf-fp16").workarounds if w.name == "bfloat16"]


@pytest.fixture(scope="module")
def damaged(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    from tests.session.damage import damaged_copy

    return damaged_copy(tiny_model, tmp_path_factory.mktemp("damaged") / "model"), tiny_model
