"""Which linears a kernel mode judges, which it skips with a reason, and when the whole backend is refused."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from gptq_diff.engines.vllm.modules import GEMM, FusedLinear
from gptq_diff.engines.vllm.settings import STAND_IN
from gptq_diff.errors import BackendError
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT

WANTED = {
    "as-chosen": None,
    "gptq-by-rows": GEMM,
    FAST: GEMM,
    RECONSTRUCT: GEMM,
    "marlin": "marlin",
    "machete": "machete",
}
"""Kernel mode -> the path, or GEMM, that every module must run; None for whatever vLLM took."""

_CLASSES = {"marlin": "MarlinLinearKernel", "machete": "MacheteLinearKernel"}
_HOMES = (
    "vllm.model_executor.kernels.linear.mixed_precision",
    "vllm.model_executor.layers.quantization.kernels.mixed_precision",
)
"""Where releases keep the kernel classes: from 0.18 or so on, and before."""


@dataclass
class Choice:
    """The modules that a kernel mode judges; skipped: linear of the checkpoint -> why it is not."""

    judged: list[FusedLinear] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def choose(mode: str, linears: Sequence[FusedLinear]) -> Choice:
    """Check the kernel object of every module against what the mode asks for.

    A stand-in where the kernel asked for says that it cannot take the shape is a skipped linear; any other kernel
    than the one asked for is a BackendError.
    """
    if mode not in WANTED:
        raise BackendError(f"vLLM has no kernel mode called {mode!r}", "see `gptq-diff backends`")
    wanted, choice = WANTED[mode], Choice()
    for linear in linears:
        reason = ""
        if linear.path is None:
            reason = f"vLLM runs {linear.kernel_class} there, which has no error model here"
            if wanted is not None:
                raise _other_kernel(mode, linear)
        elif wanted not in (None, linear.path):
            reason = refusal(wanted, linear) if linear.kernel_class == STAND_IN and wanted in _CLASSES else ""
            if not reason:
                raise _other_kernel(mode, linear)
        if reason:
            choice.skipped.update({part.spec.name: reason for part in linear.parts})
        else:
            choice.judged.append(linear)
    if not choice.judged:
        first = next(iter(choice.skipped.values()))
        raise BackendError(f"no linear of this model runs on {mode}: {first}", "take another backend for this model")
    return choice


def refusal(wanted: str | None, linear: FusedLinear) -> str:
    """What the kernel asked for says against this module's shape; empty when it says nothing."""
    name = _CLASSES[str(wanted)]
    config = getattr(getattr(linear.method, "kernel", None), "config", None)
    for home in _HOMES:
        try:
            kernel = getattr(importlib.import_module(home), name, None)
            kernel = kernel or getattr(importlib.import_module(f"{home}.{wanted}"), name)
        except ImportError:
            continue
        if config is not None:
            ok, reason = kernel.can_implement(config)
            return "" if ok else f"{name} refuses it: {reason}"
    return ""


def _other_kernel(mode: str, linear: FusedLinear) -> BackendError:
    return BackendError(
        f"vLLM runs {linear.name} on {linear.kernel_class}, not on what {mode} asks for",
        "this model, GPU or release does not come to that kernel",
    )
