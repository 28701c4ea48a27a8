"""One linear on the live exllama kernels of auto_gptq and GPTQModel, outside any engine.

Needs an NVIDIA GPU. The kernels come from the library in this interpreter, or are given: benchmarks/gpu compiles them
from upstream's sources. The last weight prepared is kept on the GPU.

- exllama v1 (auto_gptq's `exllama_kernels`): below `matmul_recons_thd` = 8 rows a fused path with a float16
  accumulator, from there on reconstruct and hgemm. Stored zero 15 is read as (15 + 1) & 15 = 0.
- exllama v2 (auto_gptq's `exllamav2_kernels`, GPTQModel's `exllama_v2`): up to 50 rows the fused path that vLLM took
  over from it, above that reconstruct and hgemm. auto_gptq's reads stored zero 15 as 0; GPTQModel first adds 1 to every
  stored zero point, packed as they are, so 15 becomes 0 and carries into its neighbour.
"""

from __future__ import annotations

from typing import Any

import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError
from gptq_diff.kernels.exllama_live import LiveExllama, Prepared, on_device
from gptq_diff.kernels.vllm_gemm.paths import FAST
from gptq_diff.records import LayerSpec, Support

V1 = "exllama-v1"
"""The fused path of exllama v1; the other paths are those of gptq_gemm, under its names."""
TUNING = (8, False, False)
"""As auto_gptq sets it: rows from which exllama v1 reconstructs, no remapping inside the kernel, half2 arithmetic."""
BY_ROWS = False
"""force_cuda: whether exllama v2 stays on its fused path whatever the rows."""
LAST_BUFFERS = "gptq_diff_last_buffers"
"""Attribute of exllama v1's module: the buffers that it holds, which it cannot be asked for."""
MOST_ROWS = 2048
"""Rows that exllama v1's buffer for reordered activations takes, as auto_gptq sizes it (desc_act only)."""


class ExllamaV1(LiveExllama):
    """auto_gptq's exllama v1; ops: its module `exllama_kernels`, whose settings and buffers are global.

    The module keeps the two buffers that were handed to it last, and does not check that a weight fits: its reconstruct
    path would write the dequantised weight beyond a smaller one, into memory of others. So they only ever grow here,
    and whoever called the module last, a call hands over its own.
    """

    fused = V1

    def __init__(self, ops: Any, path: str | None = None, device: str = "cuda:0") -> None:
        super().__init__("auto-gptq-exllama", path, device)
        self._ops = ops
        nothing = torch.empty((0, 0), dtype=torch.float16)
        self._buffers = (nothing, nothing)  # of reordered activations, and of a dequantised weight
        ops.set_tuning_params(*TUNING)

    def supports(self, spec: LayerSpec) -> Support:
        """As exllama, and format v1 alone."""
        return _v1_only(spec) or super().supports(spec)

    def prepare(self, linear: PackedLinear) -> Prepared:
        """The weight copied, and room for it and for its reordered activations, as auto_gptq makes after loading."""
        spec, device = linear.spec, torch.device(self._device)
        rows = MOST_ROWS if linear.g_idx is not None else 1
        state, weight = self._buffers
        larger = (
            _grown(state, rows, max(spec.in_features, spec.out_features), device),
            _grown(weight, 1, spec.in_features * spec.out_features, device),
        )
        if larger[0] is not state or larger[1] is not weight:
            self._buffers = larger
        qweight, qzeros, scales = on_device(linear, device)
        order = _absent() if linear.g_idx is None else linear.g_idx.to(device="cpu", dtype=torch.int32)
        self._hand_over()
        handle = self._ops.make_q4(qweight, qzeros, scales, order, device.index or 0)
        return Prepared(handle, spec.out_features, (qweight, qzeros, scales, order))

    def call(self, x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor) -> None:
        """q4_matmul."""
        self._hand_over()
        self._ops.q4_matmul(x_MK, handle, out_MN)

    def _hand_over(self) -> None:
        """prepare_buffers, where the module has others than these: every call of it keeps three streams for good."""
        if getattr(self._ops, LAST_BUFFERS, None) is not self._buffers:
            self._ops.prepare_buffers(torch.device(self._device), *self._buffers)
            setattr(self._ops, LAST_BUFFERS, self._buffers)


def _grown(buffer: torch.Tensor, rows: int, columns: int, device: torch.device) -> torch.Tensor:
    """The buffer itself where it has that many rows and columns, else a larger one."""
    if buffer.shape[0] >= rows and buffer.shape[1] >= columns:
        return buffer
    shape = (max(rows, buffer.shape[0]), max(columns, buffer.shape[1]))
    return torch.zeros(shape, dtype=torch.float16, device=device)


class ExllamaV2(LiveExllama):
    """exllama v2 of either library.

    ops: make_q_matrix and gemm_half_q_half. gptqmodel: whether they are GPTQModel's, which takes None for what is
    absent, and zero points with 1 added; auto_gptq's takes meta tensors, and adds 1 itself.
    """

    fused = FAST

    def __init__(self, ops: Any, *, gptqmodel: bool, path: str | None = None, device: str = "cuda:0") -> None:
        super().__init__("gptqmodel-exllamav2" if gptqmodel else "auto-gptq-exllamav2", path, device)
        self._ops = ops
        self._gptqmodel = gptqmodel

    def supports(self, spec: LayerSpec) -> Support:
        """As exllama; auto_gptq's takes format v1 alone."""
        return (None if self._gptqmodel else _v1_only(spec)) or super().supports(spec)

    def prepare(self, linear: PackedLinear) -> Prepared:
        """The weight copied and shuffled on the GPU; every row's group is handed over, as both libraries do."""
        spec, device = linear.spec, torch.device(self._device)
        qweight, qzeros, scales = on_device(linear, device)
        if self._gptqmodel and spec.format == "gptq":
            qzeros = qzeros + 0x11111111
        absent = None if self._gptqmodel else _absent()
        perm = inverse = order = absent
        if spec.groups > 1:
            perm = torch.empty(spec.in_features, dtype=torch.int16, device=device)
            inverse = torch.empty_like(perm)
            order = group_of_row(linear).to(device="cpu", dtype=torch.int32)
        room = torch.empty(spec.in_features * spec.out_features + 64, dtype=torch.float16, device=device)
        handle = self._ops.make_q_matrix(
            qweight, perm, inverse, absent, absent, absent, qzeros, scales, order, room
        )  # fmt: skip
        return Prepared(int(handle), spec.out_features, (qweight, qzeros, scales, perm, inverse, order, room))

    def call(self, x_MK: torch.Tensor, handle: int, out_MN: torch.Tensor) -> None:
        """gemm_half_q_half, the path picked by rows."""
        self._ops.gemm_half_q_half(x_MK, handle, out_MN, BY_ROWS)


def auto_gptq_exllama(path: str | None = None, device: str = "cuda:0") -> ExllamaV1:
    """The kernel exllama v1 as auto_gptq's wheel brings it; BackendError with the reason where it does not load."""
    try:
        import exllama_kernels
    except ImportError as e:
        raise _not_loaded("auto_gptq's exllama kernel", e) from e
    return ExllamaV1(exllama_kernels, path, device)


def auto_gptq_exllamav2(path: str | None = None, device: str = "cuda:0") -> ExllamaV2:
    """The kernel exllama v2 as auto_gptq's wheel brings it; BackendError with the reason where it does not load."""
    try:
        import exllamav2_kernels
    except ImportError as e:
        raise _not_loaded("auto_gptq's exllamav2 kernel", e) from e
    return ExllamaV2(exllamav2_kernels, gptqmodel=False, path=path, device=device)


def gptqmodel_exllamav2(path: str | None = None, device: str = "cuda:0") -> ExllamaV2:
    """The kernel exllama_v2 as GPTQModel compiles it at its first use; BackendError with the reason where it fails."""
    try:
        from gptqmodel.utils import exllamav2
    except ImportError as e:
        raise _not_loaded("GPTQModel", e) from e
    if not exllamav2.exllamav2_gptq_runtime_available():
        raise BackendError(
            f"GPTQModel's exllama_v2 does not run here: {exllamav2.exllamav2_gptq_runtime_error()}", "another kernel"
        )
    return ExllamaV2(_GptqModelOps(exllamav2), gptqmodel=True, path=path, device=device)


class _GptqModelOps:
    """GPTQModel's wrappers under the names of the ops."""

    def __init__(self, module: Any) -> None:
        self.make_q_matrix = module.exllamav2_make_q_matrix
        self.gemm_half_q_half = module.exllamav2_gemm_half_q_half


def _absent() -> torch.Tensor:
    """What auto_gptq hands over for a tensor that there is not."""
    return torch.empty((1, 1), device="meta")


def _v1_only(spec: LayerSpec) -> Support | None:
    if spec.format == "gptq":
        return None
    return Support(ok=False, reason=f"auto_gptq reads zero points of format {spec.format} off by one")


def _not_loaded(what: str, error: ImportError) -> BackendError:
    return BackendError(f"{what} cannot be loaded: {error}", "this needs its CUDA parts, and an NVIDIA GPU")
