"""Kernels of ours where x is on a GPU: what they compute there, and what they forbid torch to do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.exact import ExactKernel, wide_product
from gptq_diff.kernels.fp16 import Fp16Kernel
from gptq_diff.kernels.precision import full_precision

MATMUL = torch.backends.cuda.matmul
SWITCHES = [
    name
    for name in ("fp32_precision", "allow_fp16_reduced_precision_reduction", "allow_fp16_accumulation")
    if hasattr(MATMUL, name)
]


def settings() -> dict[str, object]:
    return {name: getattr(MATMUL, name) for name in SWITCHES}


@pytest.mark.parametrize("k", [1, 1023, 1024, 1025, 3000])
def test_the_wide_product_is_exact_but_for_its_last_rounding(k: int) -> None:
    """Against sums in 80 bits: equal to float32's nearest, or its neighbour, even where the terms nearly cancel."""
    draw = torch.Generator().manual_seed(k)
    x_MK = torch.randn(5, k, generator=draw)
    w_KN = torch.randn(k, 7, generator=draw)
    x_MK[0] *= 1e6
    x_MK[1] -= (x_MK[1] @ w_KN[:, 0]) * w_KN[:, 0] / (w_KN[:, 0] @ w_KN[:, 0])  # column 0 cancels to rounding
    exact = x_MK.numpy().astype(np.longdouble) @ w_KN.numpy().astype(np.longdouble)
    found = wide_product(x_MK, w_KN)
    assert found.dtype == torch.float32
    terms = np.abs(x_MK.numpy()).astype(np.float64) @ np.abs(w_KN.numpy())
    assert np.all(np.abs(found.numpy() - exact) <= 2.0**-24 * np.abs(exact) + k * 2.0**-52 * terms)


def test_non_finite_rows_stay_in_their_rows() -> None:
    """A NaN in x is a NaN in that row of y, as everywhere."""
    x_MK = torch.ones(3, 2000)
    x_MK[1, 1500] = float("nan")
    x_MK[2, 3] = float("inf")
    found = wide_product(x_MK, torch.ones(2000, 2))
    assert found[0].tolist() == [2000, 2000]
    assert bool(found[1].isnan().all())
    assert bool(found[2].isinf().all())


@pytest.mark.parametrize("kernel", [ExactKernel(), ExactKernel(0), Fp16Kernel(), Fp16Kernel(0)])
def test_the_weight_is_unpacked_where_x_is(small_model: Path, kernel: ExactKernel | Fp16Kernel) -> None:
    """On `meta`, which has shapes and no numbers: mixing it with the CPU would raise. Both devices in turn."""
    with open_checkpoint(small_model) as checkpoint:
        linear = checkpoint.packed("model.layers.0.mlp.up_proj")
    for device in ("meta", "cpu", "meta", "cpu"):
        x_MK = torch.ones(3, 128, device=device)
        y_MN = kernel.multiply(x_MK, linear).y_MN
        assert (y_MN.device.type, tuple(y_MN.shape)) == (device, (3, 256))


@pytest.mark.parametrize(
    ("name", "on_host"),
    [("exact", False), ("fp16", False), ("sim-exllama", True), ("sim-reconstruct", True), ("sim-gptq", True)],
)
def test_simulators_say_that_they_compute_on_the_cpu(name: str, on_host: bool) -> None:
    """Their packed weights are not sent to a GPU and back; x and y are."""
    assert make_kernel(name).on_host is on_host


@pytest.mark.skipif(not SWITCHES, reason="this torch has none of the switches")
class TestFullPrecision:
    @pytest.fixture(autouse=True)
    def as_it_was(self) -> object:
        before = settings()
        yield
        for name, value in before.items():
            setattr(MATMUL, name, value)

    def test_everything_that_rounds_is_off_inside_and_back_afterwards(self) -> None:
        """Whatever the user had chosen, and after an error as well."""
        MATMUL.fp32_precision = "tf32"
        MATMUL.allow_fp16_reduced_precision_reduction = True
        before = settings()
        assert before["fp32_precision"] == "tf32"
        with pytest.raises(ZeroDivisionError), full_precision():
            assert MATMUL.fp32_precision == "ieee"
            assert not MATMUL.allow_fp16_reduced_precision_reduction
            assert not torch.backends.cuda.matmul.allow_tf32
            with full_precision():
                pass
            assert MATMUL.fp32_precision == "ieee"
            raise ZeroDivisionError
        assert settings() == before

    def test_older_releases_have_another_switch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before torch 2.9 it is allow_tf32."""

        class Old:
            allow_tf32 = True
            allow_fp16_reduced_precision_reduction = True

        monkeypatch.setattr(torch.backends.cuda, "matmul", Old())
        with full_precision():
            old = torch.backends.cuda.matmul
            assert (old.allow_tf32, old.allow_fp16_reduced_precision_reduction) == (False, False)
            assert not hasattr(old, "fp32_precision")
        assert (old.allow_tf32, old.allow_fp16_reduced_precision_reduction) == (True, True)

    @pytest.mark.parametrize("kernel", ["exact", "fp16"])
    def test_an_engine_runs_with_it(self, small_model: Path, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The attention and the output head of the reference are float32 products too."""
        from gptq_diff.engines.base import LoadSpec
        from gptq_diff.engines.hf import HfEngine

        seen = set()
        original = torch.nn.functional.linear

        def linear(*arguments: torch.Tensor) -> torch.Tensor:
            seen.add((MATMUL.fp32_precision, MATMUL.allow_fp16_reduced_precision_reduction))
            return original(*arguments)

        monkeypatch.setattr(torch.nn.functional, "linear", linear)
        MATMUL.fp32_precision = "tf32"
        engine = HfEngine(LoadSpec("transformers", small_model, "float32", "cpu", False, 0, 0))
        engine.use_kernel(kernel)
        engine.generate((1, 2), max_new_tokens=1, forced=None, tap=None)
        assert seen == {("ieee", False)}
        assert MATMUL.fp32_precision == "tf32"
