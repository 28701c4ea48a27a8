"""Calling, telling and forcing vLLM's gptq_gemm, on stand-ins with the signatures of three releases."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.vllm_gemm.boundary import find_boundary, rows_like_one
from gptq_diff.kernels.vllm_gemm.op import GemmWeight, multiply, shuffled
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT, PathGuard
from gptq_diff.records import LayerSpec

LIMITS = {2: 50, 3: 50, 4: 50, 8: 24}


class Recorded:
    """A stand-in's arithmetic: row sums, on the fast path, and a little more on the other; remembers its calls."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.values: list[dict[str, Any]] = []

    def run(self, **values: Any) -> torch.Tensor:
        a, qweight, bit = values["a"], values["b_q_weight"], values["bit"]
        self.rows.append(a.shape[0])
        self.values.append(values)
        y = a.float().sum(dim=1, keepdim=True) * torch.ones(qweight.shape[1])
        return (y if a.shape[0] <= LIMITS[bit] else y + 0.25).to(torch.float16)


def ops_of(release: str, recorded: Recorded) -> ModuleType:
    """The module `vllm._custom_ops` as that release has it."""
    ops: Any = ModuleType("_custom_ops")

    def old(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, bit):  # type: ignore[no-untyped-def]
        return recorded.run(**locals())

    def middle(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, b_g_idx, use_exllama, use_v2_format, bit):  # type: ignore[no-untyped-def]
        return recorded.run(**locals())

    def new(a, b_q_weight, b_gptq_qzeros, b_gptq_scales, use_exllama, use_v2_format, bit):  # type: ignore[no-untyped-def]
        return recorded.run(**locals())

    def shuffle_with_order(q_weight, q_perm, bit):  # type: ignore[no-untyped-def]
        q_weight += q_perm.numel()

    def shuffle(q_weight, bit):  # type: ignore[no-untyped-def]
        q_weight += bit

    ops.gptq_gemm = {"0.11": old, "0.20": middle, "0.33": new}[release]
    ops.gptq_shuffle = shuffle if release == "0.33" else shuffle_with_order
    return ops  # type: ignore[no-any-return]


def weight(bits: int = 4, v2: bool = False) -> GemmWeight:
    k, n = 64, 32
    return GemmWeight(
        torch.zeros(k * bits // 32, n, dtype=torch.int32), torch.zeros(1, n * bits // 32, dtype=torch.int32),
        torch.ones(1, n, dtype=torch.float16), torch.empty(0, dtype=torch.int32), bits, v2,
    )  # fmt: skip


def x_of(rows: int) -> torch.Tensor:
    return torch.arange(rows * 64, dtype=torch.float32).reshape(rows, 64).to(torch.float16) / 1024


@pytest.mark.parametrize("release", ["0.11", "0.20", "0.33"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_border_is_found_by_trying(release: str, bits: int) -> None:
    """Compile-time limits differ by bit width, and nothing of this tool states them."""
    ops: Any = ops_of(release, Recorded())
    assert find_boundary(ops, ops.gptq_gemm, bits, "cpu") == LIMITS[bits]


@pytest.mark.parametrize(
    ("why", "changes"),
    [("never changes", []), ("changes at once", range(2, 200)), ("changes back", [5, 6]), ("only the first", [2])],
)
def test_without_a_clear_border_no_path_is_named(why: str, changes: Any) -> None:
    def product(x: torch.Tensor) -> torch.Tensor:
        return x + (1.0 if len(x) in changes else 0.0)

    if why == "changes at once":
        assert rows_like_one(product, torch.ones(1, 4)) == 1
        return
    with pytest.raises(BackendError, match="no clear border"):
        rows_like_one(product, torch.ones(1, 4))


@pytest.mark.parametrize("release", ["0.11", "0.20", "0.33"])
@pytest.mark.parametrize(("rows", "path"), [(1, FAST), (50, FAST), (51, RECONSTRUCT), (200, RECONSTRUCT)])
def test_unforced_the_path_follows_the_rows(release: str, rows: int, path: str) -> None:
    recorded = Recorded()
    guard = PathGuard(ops_of(release, recorded), "cpu")
    y = multiply(guard, x_of(rows), weight())
    assert recorded.rows[-1] == rows
    assert guard.taken() == path
    assert guard.taken() is None
    assert y.shape == (rows, 32)


@pytest.mark.parametrize("rows", [1, 50, 51, 100, 149])
def test_the_fast_path_is_forced_by_slices_and_gives_the_rows_of_the_slices(rows: int) -> None:
    recorded = Recorded()
    guard = PathGuard(ops_of("0.20", recorded), "cpu")
    guard.force = FAST
    guard.boundary(4)
    recorded.rows.clear()
    y = multiply(guard, x_of(rows), weight())
    assert max(recorded.rows) <= 50
    assert sum(recorded.rows) == rows
    assert torch.equal(y, x_of(rows).float().sum(dim=1, keepdim=True).to(torch.float16).expand(rows, 32))


@pytest.mark.parametrize("rows", [1, 50, 51, 100])
def test_the_reconstruct_path_is_forced_by_padding_with_zeros(rows: int) -> None:
    recorded = Recorded()
    guard = PathGuard(ops_of("0.20", recorded), "cpu")
    guard.force = RECONSTRUCT
    y = multiply(guard, x_of(rows), weight())
    assert recorded.rows[-1] == max(rows, 51)
    assert not recorded.values[-1]["a"][rows:].any()
    expected = (x_of(rows).float().sum(dim=1, keepdim=True) + 0.25).to(torch.float16)
    assert torch.equal(y, expected.expand(rows, 32))
    assert guard.taken() == RECONSTRUCT


def test_the_original_is_back_after_an_error() -> None:
    ops: Any = ops_of("0.20", Recorded())
    original = ops.gptq_gemm
    guard = PathGuard(ops, "cpu")
    with pytest.raises(ZeroDivisionError), guard.installed():
        assert ops.gptq_gemm is guard
        raise ZeroDivisionError
    assert ops.gptq_gemm is original


def test_the_alt_kernel_is_refused_and_not_judged_as_another() -> None:
    ops: Any = ops_of("0.20", Recorded())
    w = weight()
    with PathGuard(ops, "cpu").installed(), pytest.raises(CaptureError, match="without exllama's layout"):
        ops.gptq_gemm(x_of(1), w.qweight, w.qzeros, w.scales, w.order_K, False, False, 4)


def test_a_signature_that_is_not_known_is_refused() -> None:
    ops: Any = ModuleType("ops")
    ops.gptq_gemm = lambda a, use_exllama, bit, mystery: a
    with pytest.raises(BackendError, match="'mystery'"):
        multiply(ops.gptq_gemm, x_of(1), weight())
    ops.gptq_gemm = lambda activation: activation
    with pytest.raises(BackendError, match="no parameter"):
        PathGuard(ops, "cpu")


def test_gptq_v2_on_a_release_without_it_is_refused() -> None:
    """It would read every zero point one too high, without a word."""
    ops: Any = ops_of("0.11", Recorded())
    with pytest.raises(BackendError, match="gptq_v2"):
        multiply(ops.gptq_gemm, x_of(1), weight(v2=True))


@pytest.mark.parametrize("release", ["0.11", "0.33"])
def test_desc_act_gives_the_order_of_the_rows_or_is_refused(release: str) -> None:
    spec = LayerSpec("q", 64, 32, 4, 32, sym=True, desc_act=True, format="gptq", has_bias=False)
    g_idx = torch.arange(64, dtype=torch.int32) % 2
    packed = PackedLinear(
        spec, torch.zeros(8, 32, dtype=torch.int32), torch.zeros(2, 4, dtype=torch.int32),
        torch.ones(2, 32, dtype=torch.bfloat16), g_idx, None,
    )  # fmt: skip
    ops = ops_of(release, Recorded())
    if release == "0.33":
        with pytest.raises(BackendError, match="desc_act"):
            shuffled(ops, packed, "cpu")
        return
    made = shuffled(ops, packed, "cpu")
    assert sorted(made.order_K.tolist()) == list(range(64))
    assert g_idx[made.order_K.long()].tolist() == [0] * 32 + [1] * 32
    assert made.scales.dtype == torch.float16
    assert int(made.qweight[0, 0]) == 64, "shuffled"
    assert int(packed.qweight[0, 0]) == 0, "the checkpoint's own tensor is left alone"
