"""The GPTQModel engine: a transformers model whose quantised linears are GPTQModel's, every one of them tapped."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import torch

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hosted.engine import HostedEngine, first_sentence, place
from gptq_diff.engines.hosted.modules import HostedLinear
from gptq_diff.engines.hosted.proof import proving
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.gptqmodel_ops import gptqmodel_exllamav2
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT

EXLLAMA = "exllamav2"
DEQUANTISED = "gptqmodel-torch"
PACKED = "gptqmodel-int4pack"
ON_CPU = {"torch_aten_kernel": PACKED, "torch_fused": PACKED, "torch_cpu_avx512": None}
"""CPU kinds that settle at their first call (linear_mode) on packed weights or on dequantising -> path of the former.

The AVX512 kernel multiplies packed weights in bfloat16 alone: given float16, it dequantises, as the torch kind does.
"""
PATHS = {"torch": DEQUANTISED, "marlin": "marlin", "machete": "machete"}
"""Kinds with one path."""
ROUTES = {"auto": "auto", "torch": "gptq_torch", EXLLAMA: "gptq_exllama_v2", "marlin": "gptq_marlin"}
"""Preset.route -> what GPTQModel calls its backend."""
ON_GPU = frozenset({EXLLAMA, "marlin"})


class GptqModelEngine(HostedEngine):
    """A checkpoint in transformers and GPTQModel, loaded for one route; its kernels take other loads."""

    library = "GPTQModel"
    tested = frozenset({"7.7.0"})
    wanted: ClassVar[dict[str, frozenset[str] | None]] = {
        "as-chosen": None,
        "torch": frozenset({"torch"}),
        EXLLAMA: frozenset({EXLLAMA}),
        "marlin": frozenset({"marlin"}),
    }

    def __init__(self, spec: LoadSpec) -> None:
        device = place(spec)
        backend = _backend(spec.route, device)
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPTQModel sets it too, and says so in the log
        import gptqmodel
        from optimum.gptq import GPTQQuantizer

        checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        with proving(GPTQQuantizer, "post_init_model", checkpoint, self.library) as proof:
            model = _loaded(spec, checkpoint, backend, device, str(gptqmodel.__version__))
        self._host(device, checkpoint, model, proof, str(gptqmodel.__version__))
        self._fused_rows = 0
        if any(linear.kind == EXLLAMA for linear in self._linears):
            self._fused_rows = gptqmodel_exllamav2(device=device).fused_rows

    def path(self, linear: HostedLinear, x_MK: torch.Tensor) -> str:
        """By kind; by rows for exllama_v2, and by what the module settled on at its first call for CPU kernels."""
        if linear.kind == EXLLAMA:
            return FAST if len(x_MK) <= self._fused_rows else RECONSTRUCT
        if linear.kind in PATHS:
            return PATHS[linear.kind]
        packed = ON_CPU[linear.kind] if linear.module.linear_mode == "inference" else DEQUANTISED
        if packed is None:
            raise CaptureError(
                f"GPTQModel multiplies {linear.spec.name} in bfloat16 although it was given float16",
                "this release's CPU kernel is not understood",
            )
        return packed

    def unknown(self, linear: HostedLinear) -> str:
        """Kernels that nobody stated an error model for: Triton, BitBLAS, int8 and others."""
        if linear.kind == EXLLAMA or linear.kind in PATHS or linear.kind in ON_CPU:
            return ""
        return f"GPTQModel runs {type(linear.module).__name__} there, which has no error model here"

    def versions(self) -> dict[str, str]:
        """Those of every hosted model, and where exllama_v2 changes its path."""
        rows = {f"fused_rows_{EXLLAMA}": str(self._fused_rows)} if self._fused_rows else {}
        return {**super().versions(), **rows}


def _backend(route: str, device: str) -> str:
    """GPTQModel's name for a route; BackendError for one that needs a GPU where there is none."""
    if route not in ROUTES:
        raise BackendError(f"there is no way into GPTQModel called {route!r}", f"the ways are {', '.join(ROUTES)}")
    if device == "cpu" and route in ON_GPU:
        raise BackendError(f"GPTQModel's {route} kernel needs an NVIDIA GPU, and torch sees none", "take `gptqmodel`")
    return ROUTES[route]


def _loaded(spec: LoadSpec, checkpoint: Checkpoint, backend: str, device: str, version: str) -> Any:
    """The model through transformers; what it refuses is a BackendError with its first sentence."""
    from transformers import AutoModelForCausalLM, GPTQConfig

    base = checkpoint.quantisation.base
    settings = GPTQConfig(
        bits=base.bits, group_size=base.group_size, sym=base.sym, desc_act=base.desc_act,
        format=checkpoint.quantisation.format, backend=backend,
    )  # fmt: skip
    try:
        model = AutoModelForCausalLM.from_pretrained(
            spec.model, quantization_config=settings, dtype=torch.float16, device_map={"": device},
            trust_remote_code=spec.trust_remote_code, local_files_only=True,
        )  # fmt: skip
    except (ValueError, TypeError, RuntimeError, KeyError, AssertionError, OSError, ImportError) as e:
        raise BackendError(
            f"GPTQModel {version} does not load this model: {first_sentence(e)}", "its log has more"
        ) from e
    model.eval()
    return model
