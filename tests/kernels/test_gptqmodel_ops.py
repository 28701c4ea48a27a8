"""Single linears on the "live" exllama kernels of auto_gptq and GPTQModel, on stand-ins for their modules."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.exllama_live import LiveExllama
from gptq_diff.kernels.gptqmodel_ops import ExllamaV1, ExllamaV2
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors

V1_ROWS, V2_ROWS = 7, 50


class Ops:
    """Keeps weights by handle and multiplies by them; few rows in float16, many in float32, so that bits differ.

    v2: zeros come with 1 added, absent tensors as None (GPTQModel); else as stored, absent ones on the meta device.
    """

    def __init__(self, rows: int, *, v2: bool) -> None:
        self.rows, self.v2 = rows, v2
        self.weights: list[torch.Tensor] = []
        self.tuning: Any = None
        self.buffers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(
        self, qweight: torch.Tensor, qzeros: torch.Tensor, scales: torch.Tensor, order: torch.Tensor | None
    ) -> int:
        shifts = torch.arange(0, 32, 4, dtype=torch.int32)
        codes = ((qweight[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, qweight.shape[1])
        zeros = ((qzeros[:, :, None] >> shifts) & 15).reshape(qzeros.shape[0], -1) + (0 if self.v2 else 1)
        groups = torch.arange(len(codes)) // (len(codes) // len(scales)) if order is None else order.long()
        self.weights.append((codes - (zeros & 15)[groups]).float() * scales.float()[groups])
        qweight.zero_()  # kernels shuffle in place
        return len(self.weights) - 1

    def absent(self, tensor: torch.Tensor | None) -> bool:
        if tensor is None:
            assert self.v2
            return True
        assert not (self.v2 and tensor.is_meta)
        return tensor.is_meta

    def multiply(self, x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor) -> None:
        w_KN = self.weights[handle]
        if self.buffers and len(x_MK) > self.rows:  # exllama v1 reconstructs there, and does not check that it fits
            assert self.buffers[-1][1].numel() >= w_KN.numel()
        y_MN = x_MK.double() @ w_KN.double()
        out_MN.copy_(y_MN if len(x_MK) > self.rows else y_MN * (1 + 2.0**-9))

    # exllama v1
    def set_tuning_params(self, *values: Any) -> None:
        self.tuning = values

    def prepare_buffers(self, device: torch.device, state: torch.Tensor, weight: torch.Tensor) -> None:
        self.buffers.append((state, weight))

    def make_q4(self, qweight: Any, qzeros: Any, scales: Any, order: torch.Tensor, device: int) -> int:
        assert self.buffers[-1][1].numel() >= qweight.numel() * 8
        assert order.is_meta or self.buffers[-1][0].shape[0] > 1
        return self.keep(qweight, qzeros, scales, None if order.is_meta else order)

    q4_matmul = multiply

    # exllama v2
    def make_q_matrix(
        self,
        qweight: Any,
        perm: Any,
        inverse: Any,
        a: Any,
        b: Any,
        c: Any,
        qzeros: Any,
        scales: Any,
        order: Any,
        room: Any,
    ) -> int:
        assert self.absent(a) and self.absent(b) and self.absent(c)
        assert self.absent(perm) == self.absent(inverse) == self.absent(order)
        assert room.numel() >= qweight.numel() * 8
        return self.keep(qweight, qzeros, scales, None if self.absent(order) else order)

    def gemm_half_q_half(self, x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor, force_cuda: bool) -> None:
        assert force_cuda is False
        self.multiply(x_MK, handle, out_MN)


def made(kind: str, path: str | None = None) -> LiveExllama:
    if kind == "v1":
        return ExllamaV1(Ops(V1_ROWS, v2=False), path, "cpu")
    gptqmodel = kind == "gptqmodel"
    return ExllamaV2(Ops(V2_ROWS, v2=gptqmodel), gptqmodel=gptqmodel, path=path, device="cpu")


KINDS = {"v1": ("exllama-v1", V1_ROWS), "v2": ("exllama-fast", V2_ROWS), "gptqmodel": ("exllama-fast", V2_ROWS)}


def linear(
    *, desc_act: bool = False, group_size: int = 32, form: str = "gptq", bits: int = 4, k: int = 128
) -> PackedLinear:
    spec = LayerSpec("q", k, 64, bits, group_size, sym=False, desc_act=desc_act, format=form, has_bias=False)
    g_idx = None
    if desc_act:
        order = torch.randperm(k, generator=torch.Generator().manual_seed(0))
        g_idx = (torch.arange(k) // group_size)[order].to(torch.int32)
    stored = linear_tensors(
        "q",
        k,
        64,
        bits,
        group_size,
        seed=4,
        sym=False,
        g_idx=None if g_idx is None else g_idx.tolist(),
        v2=form != "gptq",
    )
    return PackedLinear(spec, stored["q.qweight"], stored["q.qzeros"], stored["q.scales"], g_idx, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("group_size", [32, 128])
def test_a_linear_is_replayed_and_its_path_named_by_rows(kind: str, desc_act: bool, group_size: int) -> None:
    """The checkpoint's own packed tensors, left as they are; the border between the paths is found by trying."""
    kernel, packed = made(kind), linear(desc_act=desc_act, group_size=group_size)
    before, exact_KN = packed.qweight.clone(), dequantise(packed, torch.float64)
    fused, border = KINDS[kind]
    assert kernel.supports(packed.spec).ok
    for rows in (1, border, border + 1):
        x = torch.randn((rows, 128), generator=torch.Generator().manual_seed(rows)).to(torch.float16)
        product = kernel.multiply(x, packed)
        assert product.path == (fused if rows <= border else "exllama-reconstruct")
        error = product.y_MN.double() - x.double() @ exact_KN
        assert float(error.norm() / (x.double() @ exact_KN).norm()) < 4e-3
    assert kernel.fused_rows == border
    assert torch.equal(packed.qweight, before)


@pytest.mark.parametrize("kind", KINDS)
def test_either_path_can_be_forced_by_rows(kind: str) -> None:
    """Slices stay on the fused path, padding leaves it: what comes out is that path's arithmetic."""
    packed, (fused, border) = linear(), KINDS[kind]
    x = torch.randn((border + 3, 128), generator=torch.Generator().manual_seed(1)).to(torch.float16)
    many, few = made(kind, fused).multiply(x, packed), made(kind, "exllama-reconstruct").multiply(x[:3], packed)
    assert (many.path, few.path) == (fused, "exllama-reconstruct")
    exact = x.double() @ dequantise(packed, torch.float64)
    assert torch.equal(many.y_MN, (exact * (1 + 2.0**-9)).to(torch.float16))
    assert torch.equal(few.y_MN, exact[:3].to(torch.float16))


def test_gptqmodels_addition_to_packed_zeros_carries() -> None:
    """Stored 15 becomes 0, and its neighbour goes up by one more, as GPTQModel's own conversion does it."""
    packed = linear(group_size=128)
    stored = packed.qzeros.clone()
    stored[0, 0] = 0x000000F3  # columns 0 and 1: stored 3 and 15; column 2: 0
    kernel = made("gptqmodel")
    kernel.prepare(PackedLinear(packed.spec, packed.qweight, stored, packed.scales, None, None))
    codes = (packed.qweight[0, :3] & 15).float()
    zeros = torch.tensor([4.0, 0.0, 2.0])
    scales = packed.scales[0, :3].float()
    assert torch.equal(kernel._ops.weights[0][0, :3], (codes - zeros) * scales)  # type: ignore[attr-defined]


def test_format_v2_is_taken_as_it_is_by_gptqmodel_and_refused_by_auto_gptq() -> None:
    packed = linear(form="gptq_v2")
    kernel = made("gptqmodel")
    kernel.prepare(packed)
    torch.testing.assert_close(kernel._ops.weights[0], dequantise(packed), rtol=0, atol=0)  # type: ignore[attr-defined]
    for kind in ("v1", "v2"):
        assert "off by one" in made(kind).supports(packed.spec).reason
    assert made("gptqmodel").supports(packed.spec).ok


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bits": 8}, "takes 4 bit"),
        ({"in_features": 80}, "divisible by 32"),
        ({"group_size": 96, "in_features": 192}, "groups of 96 rows"),
        ({"group_size": 16}, "groups of 16 rows"),
        ({"group_size": 256, "in_features": 384}, "groups of 256 rows"),
    ],
)
def test_what_exllama_does_not_take_is_refused_with_the_reason(changes: dict[str, int], reason: str) -> None:
    values = {"name": "q", "in_features": 128, "out_features": 64, "bits": 4, "group_size": 32, **changes}
    spec = LayerSpec(**values, sym=True, desc_act=False, format="gptq", has_bias=False)  # type: ignore[arg-type]
    support = made("v2").supports(spec)
    assert not support.ok
    assert reason in support.reason


def test_exllama_v1_is_set_up_as_auto_gptq_does() -> None:
    kernel = made("v1")
    kernel.prepare(linear(desc_act=True))
    ops = kernel._ops  # type: ignore[attr-defined]
    assert ops.tuning == (8, False, False)
    assert tuple(ops.buffers[0][0].shape) == (2048, 128)


def test_exllama_v1_has_room_for_a_weight_whatever_was_prepared_after_it() -> None:
    """Its buffers are the module's own: a smaller weight prepared later, by whomever, must not leave too little."""
    ops = Ops(V1_ROWS, v2=False)
    first, second = ExllamaV1(ops, None, "cpu"), ExllamaV1(ops, None, "cpu")
    packed = linear(k=4096)
    x = torch.randn((20, 4096), generator=torch.Generator().manual_seed(2)).to(torch.float16)
    large = first.prepare(packed)
    assert first.fused_rows == V1_ROWS  # prepares a small weight to find out
    second.prepare(linear(k=128))
    torch.testing.assert_close(
        first.run(x, large).double(), x.double() @ dequantise(packed, torch.float64), rtol=4e-3, atol=4e-3
    )
    handed = len(ops.buffers)
    first.run(x, large)
    assert len(ops.buffers) == handed  # the module keeps streams for every time it is handed some


@pytest.mark.parametrize(
    ("name", "module", "sentence"),
    [
        ("auto-gptq-exllama", "exllama_kernels", "auto_gptq's exllama kernel cannot be loaded"),
        ("auto-gptq-exllamav2", "exllamav2_kernels", "auto_gptq's exllamav2 kernel cannot be loaded"),
        ("gptqmodel-exllamav2", "gptqmodel", "GPTQModel cannot be loaded"),
    ],
)
def test_a_kernel_that_is_not_there_is_refused_with_the_reason(
    name: str, module: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=sentence):
        make_kernel(name)


def test_the_libraries_own_modules_stand_behind_the_names(monkeypatch: pytest.MonkeyPatch) -> None:
    v1, v2 = Ops(V1_ROWS, v2=False), Ops(V2_ROWS, v2=True)
    monkeypatch.setitem(sys.modules, "exllama_kernels", v1)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "exllamav2_kernels", v2)  # type: ignore[arg-type]
    wrapped = SimpleNamespace(
        exllamav2_gptq_runtime_available=lambda: True, exllamav2_gptq_runtime_error=lambda: "no nvcc",
        exllamav2_make_q_matrix=v2.make_q_matrix, exllamav2_gemm_half_q_half=v2.gemm_half_q_half,
    )  # fmt: skip
    utils: Any = ModuleType("gptqmodel.utils")
    utils.exllamav2 = wrapped
    monkeypatch.setitem(sys.modules, "gptqmodel", ModuleType("gptqmodel"))
    monkeypatch.setitem(sys.modules, "gptqmodel.utils", utils)
    names = ("auto-gptq-exllama", "auto-gptq-exllamav2", "gptqmodel-exllamav2")
    assert [make_kernel(name).name for name in names] == list(names)
    wrapped.exllamav2_gptq_runtime_available = lambda: False
    with pytest.raises(BackendError, match="GPTQModel's exllama_v2 does not run here: no nvcc"):
        make_kernel("gptqmodel-exllamav2")
