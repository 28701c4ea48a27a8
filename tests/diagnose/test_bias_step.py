"""A bias that is added wrongly is found at its linear, told as what it is, and blamed on nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Callable

import pytest
import torch

from gptq_diff.engines.quant_linear import QuantLinear
from gptq_diff.records import Result
from tests.diagnose.between.planted import BLOCK, outcome, patched
from tests.engines.models import Tensors, edited

pytestmark = pytest.mark.usefixtures("here")

LAYER = f"{BLOCK}.self_attn.k_proj"
OTHER = "model.layers.0.self_attn.v_proj"
Bias = Callable[[torch.Tensor, torch.Tensor], "torch.Tensor | None"]


def one_column(own: torch.Tensor, _other: torch.Tensor) -> torch.Tensor:
    changed = own.clone()
    changed[3] += 1.0
    return changed


def some_missing(own: torch.Tensor, _other: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(len(own)) % 4 == 0, 0.0, own).to(own.dtype)


FAULTS: dict[str, tuple[Bias, str]] = {
    "missing": (lambda _own, _other: None, "the bias is missing"),
    "doubled": (lambda own, _other: 2 * own, "the bias is added twice"),
    "another": (lambda _own, other: other, f"the bias of {OTHER} is added in its place"),
    "one column": (one_column, "1 of 64 columns have another bias"),
    "some missing": (some_missing, "the bias is missing in"),
}


def with_bias(model: Any, bias: Bias) -> None:
    """Give LAYER's module what `bias` makes of its own and OTHER's."""
    module, other = model.get_submodule(LAYER), model.get_submodule(OTHER)
    assert isinstance(module, QuantLinear)
    assert isinstance(other, QuantLinear)
    own_N, other_N = module._linear.bias, other._linear.bias
    assert own_N is not None
    assert other_N is not None
    module._linear = replace(module._linear, bias=bias(own_N, other_N))


def check(found: Result, told: str) -> None:
    assert found.first_bad is not None
    assert (found.status, found.first_bad.layer, found.first_bad.path) == ("diverged", LAYER, "bias")
    assert [(f.cause, f.layer, f.confidence) for f in found.findings] == [("bias", LAYER, 1.0)]
    assert told in found.findings[0].summary
    assert found.layers.compared == 14
    assert found.intervals is not None
    assert [s.name for s in found.intervals.skipped] == [f"{BLOCK}.self_attn"]  # its q k are not what they should be


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("backend", ["hf-fp16", "sim-exllama"])
def test_in_the_engine(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, backend: str
) -> None:
    """After the kernel, with every product as it should be."""
    bias, told = FAULTS[fault]
    patched(monkeypatch, lambda model: with_bias(model, bias))
    check(outcome(small_model, small_model, tmp_path / "run", backend), told)


def test_in_the_checkpoint(small_model: Path, tmp_path: Path) -> None:
    """The copy that the backend loaded has twice the bias in its bytes."""

    def double(tensors: Tensors) -> None:
        tensors[f"{LAYER}.bias"] *= 2

    damaged = edited(small_model, tmp_path / "damaged", double)
    check(outcome(damaged, small_model, tmp_path / "run"), "the bias is added twice")


def test_the_sentence_says_where(small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not the product that errs."""
    from tests.session.in_process import asked, run

    patched(monkeypatch, lambda model: with_bias(model, FAULTS["missing"][0]))
    said = run(asked(small_model, "hf-fp16"), tmp_path / "run").verdict.summary
    assert f"{LAYER} is the first layer to break on hf-fp16 (prompt p1): where its bias is added," in said
    assert "Cause: the bias is missing." in said
