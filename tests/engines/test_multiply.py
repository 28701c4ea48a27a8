"""One linear of a loaded engine by itself: the same bits as the tap saw in the model, and the path that ran."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.capture.tap import Tap
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.original import OriginalEngine
from gptq_diff.errors import BackendError
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.records import LayerSpec, Support
from tests.capture.captures import KeepingSink

PROMPT = (509, 12, 300, 7, 7, 45, 101)
DOWN = "model.layers.1.mlp.down_proj"


def engine_on(model: Path, dtype: str = "float16") -> HfEngine:
    return HfEngine(LoadSpec("transformers", model, dtype, "cpu", False, 1, 0))


@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("exact", "float32"), ("fp16", "float16"), ("sim-exllama", "float16"), ("sim-gptq", "float16")],
)
def test_every_linear_gives_the_bits_that_the_tap_saw(tiny_model: Path, kernel: str, dtype: str) -> None:
    """Also those with a bias, which is not in the product."""
    engine = engine_on(tiny_model, dtype)
    engine.use_kernel(kernel)
    sink = KeepingSink()
    engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=Tap(engine.tapped, sink))
    x_MK: torch.Tensor | None = None
    for call in sink.calls:
        captured_x, y_MN = sink.tensors[0, call.layer]
        x_MK = x_MK if captured_x is None else captured_x
        assert x_MK is not None and y_MN is not None
        product = engine.multiply(call.layer, x_MK.clone())
        assert torch.equal(product.y_MN, y_MN)
        assert (product.y_MN.dtype, product.path) == (y_MN.dtype, call.path)


@pytest.mark.parametrize(("rows", "path"), [(1, "exllama-fast"), (50, "exllama-fast"), (51, "exllama-reconstruct")])
def test_the_rows_pick_the_path(tiny_model: Path, rows: int, path: str) -> None:
    engine = engine_on(tiny_model)
    engine.use_kernel("sim-gptq")
    assert engine.multiply(DOWN, torch.zeros(rows, 256)).path == path


class Picky(ExactKernel):
    """Takes everything but down_proj."""

    def supports(self, spec: LayerSpec) -> Support:
        return Support(ok=not spec.name.endswith("down_proj"), reason="too long")


def test_a_linear_that_is_not_judged_is_refused(tiny_model: Path) -> None:
    """One that the kernel does not take, and one that is not there."""
    engine = engine_on(tiny_model)
    engine.install(Picky())
    for layer in (DOWN, "lm_head"):
        with pytest.raises(BackendError, match=f"the present kernel does not run {layer}"):
            engine.multiply(layer, torch.zeros(1, 128))


def test_the_unquantised_model_has_no_kernel_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its linears are in place of quantised ones, and are none."""
    engine = object.__new__(OriginalEngine)
    monkeypatch.setattr(OriginalEngine, "tapped", frozenset([DOWN]))
    engine._model = torch.nn.Module()
    with pytest.raises(BackendError, match="the present kernel does not run"):
        engine.multiply("model", torch.zeros(1, 128))


def test_an_engine_may_be_unable() -> None:
    """Then it says so."""

    class Unable(Engine):
        skipped: dict[str, str] = {}
        tapped: frozenset[str] = frozenset()

        def use_kernel(self, name: str) -> None:
            pass

        def versions(self) -> dict[str, str]:
            return {}

        def generate(self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: Any, tap: Any) -> Generation:
            raise NotImplementedError

    with pytest.raises(BackendError, match=f"this engine cannot run {DOWN} by itself"):
        Unable().multiply(DOWN, torch.zeros(1, 128))
