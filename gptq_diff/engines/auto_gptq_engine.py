"""The auto_gptq engine: its own model loader and quantised linears, every one of them tapped."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.auto_gptq.directory import basename, readable
from gptq_diff.engines.auto_gptq.routes import TORCH, fused_rows, route_named
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hosted.engine import HostedEngine, first_sentence, place
from gptq_diff.engines.hosted.modules import HostedLinear
from gptq_diff.engines.hosted.proof import proving
from gptq_diff.errors import BackendError
from gptq_diff.kernels.vllm_gemm.paths import RECONSTRUCT


class AutoGptqEngine(HostedEngine):
    """A checkpoint in auto_gptq, loaded for one route; its kernels take other loads."""

    library = "auto_gptq"
    tested = frozenset({"0.7.1"})
    wanted: ClassVar[dict[str, frozenset[str] | None]] = {
        "as-chosen": None,
        "torch": TORCH,
        "exllama": frozenset({"exllama"}),
        "exllamav2": frozenset({"exllamav2"}),
    }

    def __init__(self, spec: LoadSpec) -> None:
        device = place(spec)
        route = route_named(spec.route, device)
        import auto_gptq
        from auto_gptq.modeling import _base

        checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        self._fused_rows = fused_rows(route, device)
        with readable(checkpoint) as directory, proving(_base, "autogptq_post_init", checkpoint, self.library) as proof:
            try:
                wrapper = auto_gptq.AutoGPTQForCausalLM.from_quantized(
                    str(directory), quantize_config=_settings(auto_gptq, checkpoint),
                    model_basename=basename(checkpoint.path), device=device, torch_dtype=torch.float16,
                    disable_exllama=route.disable_exllama, disable_exllamav2=route.disable_exllamav2,
                    trust_remote_code=spec.trust_remote_code,
                )  # fmt: skip
            except (ValueError, TypeError, RuntimeError, KeyError, AssertionError, OSError, ImportError) as e:
                raise BackendError(
                    f"auto_gptq {auto_gptq.__version__} does not load this model: {first_sentence(e)}",
                    "its log has more",
                ) from e
        self._host(device, checkpoint, wrapper.model, proof, str(auto_gptq.__version__))
        if spec.route == "torch":
            for linear in self._linears:
                linear.module.autogptq_cuda_available = False  # type: ignore[assignment]

    def path(self, linear: HostedLinear, x_MK: torch.Tensor) -> str:
        """Its torch path, or the path of exllama that so many rows take."""
        if linear.kind in TORCH:
            return "auto-gptq-torch"
        fused = "exllama-v1" if linear.kind == "exllama" else "exllama-fast"
        return fused if len(x_MK) <= self._fused_rows[linear.kind] else RECONSTRUCT

    def unknown(self, linear: HostedLinear) -> str:
        """Its old CUDA kernel, which calls of fewer than 128 rows take on a GPU, and Marlin, Triton, QiGen."""
        if linear.kind in TORCH:
            on_gpu = linear.module.qweight.device.type == "cuda"
            if not (on_gpu and linear.module.autogptq_cuda_available):
                return ""
            return "auto_gptq runs its old CUDA kernel there, which has no error model here; see auto-gptq-torch"
        if linear.kind in self._fused_rows:
            return ""
        return f"auto_gptq runs its {linear.kind} kernel there, which has no error model here"

    def versions(self) -> dict[str, str]:
        """Those of every hosted model, and where exllama changes its path."""
        rows = {f"fused_rows_{kind}": str(rows) for kind, rows in self._fused_rows.items()}
        return {**super().versions(), **rows}


def _settings(auto_gptq: Any, checkpoint: Checkpoint) -> Any:
    """quantize_config.json, read by auto_gptq itself, or the same from config.json where there is no such file.

    BackendError for one that would make auto_gptq repack the weights: it writes the result into the directory.
    """
    if (checkpoint.path / "quantize_config.json").is_file():
        settings = auto_gptq.BaseQuantizeConfig.from_pretrained(str(checkpoint.path))
        if settings.awq_gemm_checkpoint or settings.is_marlin_format:
            raise BackendError("quantize_config.json calls the weights AWQ or Marlin, and they are GPTQ", "correct it")
        return settings
    base = checkpoint.quantisation.base
    return auto_gptq.BaseQuantizeConfig(
        bits=base.bits, group_size=base.group_size, desc_act=base.desc_act, sym=base.sym
    )
