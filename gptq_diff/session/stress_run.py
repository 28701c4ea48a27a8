"""`stress`: kernels that can be called for one linear at a time, on the inputs that leave their sums the least room."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.diagnose.headroom.stress import nearest_sum, stress
from gptq_diff.errors import BackendError, UsageError
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.records import LayerSpec, SkippedLayer
from gptq_diff.session.captured_inputs import CapturedInputs, InputOf
from gptq_diff.session.stress_report import SkippedKernel, Stressed, StressReport
from gptq_diff.suggest import nearest as nearest_name

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

KERNELS = {
    "sim-exllama": "sim-exllama",
    "sim-reconstruct": "sim-reconstruct",
    "sim-gptq": "sim-gptq",
    "hf-fp16": "fp16",
    "hf-fp32": "exact",
    "vllm-gptq": "vllm-gptq",
    "vllm-exllama": "vllm-exllama-fast",
    "vllm-reconstruct": "vllm-exllama-reconstruct",
    "gptq-marlin": "vllm-marlin",
    "gptq-machete": "vllm-machete",
    "auto-gptq-exllama": "auto-gptq-exllama",
    "auto-gptq-exllamav2": "auto-gptq-exllamav2",
    "gptqmodel-exllamav2": "gptqmodel-exllamav2",
}
"""Preset -> the kernel that does its linears, outside any engine."""


def check_backends(names: str) -> tuple[str, ...]:
    """The presets of `A,B,...`; UsageError for one whose kernel cannot be called for a single linear."""
    found = tuple(name.strip() for name in names.split(",") if name.strip())
    for name in found:
        if name not in KERNELS:
            raise UsageError(
                f"stress cannot call the kernel of {name!r} by itself{nearest_name(name, list(KERNELS))}",
                f"it knows {', '.join(KERNELS)}",
            )
    if not found:
        raise UsageError("--backends names no kernel", f"stress knows {', '.join(KERNELS)}")
    return found


def stress_run(
    checkpoint: Checkpoint, inputs: CapturedInputs, backends: Sequence[str], layers: str, top: int,
    progress: Callable[[str], None],
) -> StressReport:  # fmt: skip
    """Stress each kernel on its `top` linears with the least headroom among those that the glob `layers` matches."""
    specs = [spec for spec in checkpoint.layers if fnmatch.fnmatchcase(spec.name, layers)]
    if not specs:
        raise UsageError(f"no quantised linear is called {layers}", "see `gptq-diff model inspect`")
    rows: list[Stressed] = []
    refused: dict[str, tuple[SkippedLayer, ...]] = {}
    skipped = []
    for backend in backends:
        try:
            kernel = make_kernel(KERNELS[backend])
        except BackendError as e:
            skipped.append(SkippedKernel(backend, str(e)))
            continue
        support = {spec.name: kernel.supports(spec) for spec in specs}
        said = [SkippedLayer(name, s.reason) for name, s in support.items() if not s.ok]
        taken = [spec for spec in specs if support[spec.name].ok]
        progress(f"{backend}: looking for the linears with the least headroom")
        for _, spec, call in sorted(_nearest_calls(checkpoint, kernel, taken, inputs, said), key=lambda one: one[0])[
            :top
        ]:
            progress(f"{backend}: {spec.name}")
            stood = stress(kernel, checkpoint.packed(spec.name), call.x_MK)
            if stood is not None:
                rows.append(Stressed(backend, spec.name, call.prompt, call.step, len(call.x_MK), stood))
        refused[backend] = tuple(said)
    return StressReport(tuple(rows), {name: layers for name, layers in refused.items() if layers}, tuple(skipped))


def _nearest_calls(
    checkpoint: Checkpoint, kernel: Kernel, specs: Sequence[LayerSpec], inputs: CapturedInputs,
    refused: list[SkippedLayer],
) -> Iterator[tuple[float, LayerSpec, InputOf]]:  # fmt: skip
    """(bits, linear, the call that comes nearest) of every linear that has any sum; what a kernel refuses is noted."""
    for spec in specs:
        linear = checkpoint.packed(spec.name)
        try:
            calls = _by_path(kernel, linear, inputs.calls(spec.name))
        except BackendError as e:
            refused.append(SkippedLayer(spec.name, str(e)))
            continue
        found = [_nearest_call(path, of_path, linear) for path, of_path in calls.items()]
        best = min((one for one in found if one is not None), key=lambda one: one[0], default=None)
        if best is not None:
            yield best[0], spec, best[1]


def _by_path(kernel: Kernel, linear: PackedLinear, calls: Sequence[InputOf]) -> dict[str, list[InputOf]]:
    """Calls by the path that they take, which their rows pick where a kernel has several."""
    paths: dict[int, str] = {}
    found: dict[str, list[InputOf]] = {}
    for call in calls:
        rows = len(call.x_MK)
        if rows and rows not in paths:
            paths[rows] = kernel.multiply(call.x_MK, linear).path
        if rows:
            found.setdefault(paths[rows], []).append(call)
    return found


def _nearest_call(path: str, calls: Sequence[InputOf], linear: PackedLinear) -> tuple[float, InputOf] | None:
    """(bits, call) of those that went one path, measured together."""
    near = nearest_sum(torch.cat([call.x_MK for call in calls]), linear, path)
    if near is None:
        return None
    row = near.row
    for call in calls:
        if row < len(call.x_MK):
            return near.bits, call
        row -= len(call.x_MK)
    raise AssertionError("a row beyond all calls")
