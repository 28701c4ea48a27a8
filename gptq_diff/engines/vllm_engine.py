"""The vLLM engine: vLLM's own model and scheduler, one prompt at a time, every quantised kernel call tapped."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.vllm.kernels import WANTED, Choice, choose
from gptq_diff.engines.vllm.modules import GEMM, FusedLinear, fused_linears
from gptq_diff.engines.vllm.proof import proving
from gptq_diff.engines.vllm.settings import engine_arguments, route_named
from gptq_diff.engines.vllm.steps import Steps
from gptq_diff.engines.vllm.taps import tapped
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.vllm_gemm.op import vllm_ops
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT, PathGuard

TESTED = frozenset({"0.20.2", "0.32.0"})
"""Releases that this engine was run with: 0.20.2 on a GPU, 0.32.0 on a CPU."""


class VllmEngine(Engine):
    """A checkpoint in vLLM, loaded for one route; its kernel modes share the load."""

    def __init__(self, spec: LoadSpec) -> None:
        os.environ.update(route_named(spec.route).environment())
        import vllm

        if route_named(spec.route).kernel is not None and not torch.cuda.is_available():
            raise BackendError(
                f"the route {spec.route} of vLLM needs an NVIDIA GPU, and torch sees none", "take `vllm`"
            )
        self._version = str(vllm.__version__)
        self._checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        known = frozenset(field.name for field in dataclasses.fields(vllm.EngineArgs))
        with proving(self._checkpoint) as proof:
            self._llm = _started(vllm, engine_arguments(spec, known), self._version)
        self._model = model_of(self._llm)
        self._linears = fused_linears(self._model, self._checkpoint.layers)
        self._biases = proof.biases
        _all_proved(self._linears, proof.columns)
        self._choice = Choice()
        self._guard: PathGuard | None = None
        self._ends = end_ids(self._checkpoint)
        self._sampling: Any = vllm.SamplingParams

    def use_kernel(self, name: str) -> None:
        """Check every module's kernel against the mode, and prepare to force its path."""
        self._choice = choose(name, self._linears)
        gemm = [linear for linear in self._choice.judged if linear.path == GEMM]
        if gemm and self._guard is None:
            self._guard = PathGuard(vllm_ops(), str(next(gemm[0].module.parameters()).device))
        if self._guard is not None:
            self._guard.force = name if WANTED[name] == GEMM and name in (FAST, RECONSTRUCT) else None
            for bits in sorted({part.spec.bits for linear in gemm for part in linear.parts}):
                self._guard.boundary(bits)

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why it is not judged."""
        held = {part.spec.name for linear in self._linears for part in linear.parts}
        absent = {s.name: "vLLM has no quantised module for it" for s in self._checkpoint.layers if s.name not in held}
        return {**absent, **self._choice.skipped}

    @property
    def tapped(self) -> frozenset[str]:
        """Every linear of a judged module."""
        return frozenset(part.spec.name for linear in self._choice.judged for part in linear.parts)

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """One prompt through LLM.generate, greedy, alone in its batch; taps and the path guard only meanwhile."""
        steps = Steps(len(token_ids), forced, tap)
        sampling = self._sampling(
            temperature=0.0, max_tokens=max_new_tokens if forced is None else min(max_new_tokens, len(forced)),
            ignore_eos=True, stop_token_ids=sorted(self._ends) if forced is None else [], detokenize=False,
        )  # fmt: skip
        with contextlib.ExitStack() as undo:
            if self._guard is not None:
                undo.enter_context(self._guard.installed())
            if tap is not None:
                undo.enter_context(tapped(self._choice.judged, self._biases, self._recorder(steps, tap)))
            undo.enter_context(steps.followed(self._model))
            outputs = self._llm.generate({"prompt_token_ids": list(token_ids)}, sampling, use_tqdm=False)
        chosen = tuple(int(t) for t in outputs[0].outputs[0].token_ids)
        _check_tokens(chosen, tuple(steps.tokens), forced)
        assert steps.first_logits_V is not None
        return Generation(tuple(steps.tokens), tuple(steps.finite), steps.first_logits_V, len(steps.tokens))

    def _recorder(self, steps: Steps, tap: Tap) -> Any:
        def record(linear: FusedLinear, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            steps.check_rows(linear.name, x_MK.shape[0])
            path = linear.path
            if path == GEMM:
                path = self._guard.taken() if self._guard is not None else None
            if path is None:
                raise CaptureError(f"{linear.name} ran without a call of gptq_gemm", "its kernel is not understood")
            for part in linear.parts:
                tap.record(part.spec.name, x_MK, y_MN[:, part.first : part.last], path)

        return record

    def versions(self) -> dict[str, str]:
        """Interpreter, packages, device, and where gptq_gemm changes its path."""
        import transformers

        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "vllm": self._version,
        }
        if self._version.partition("+")[0] not in TESTED:
            facts["adapter"] = "untested with this vLLM"
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        if self._guard is not None:
            facts.update({f"fast_path_rows_{b}bit": str(rows) for b, rows in self._guard.boundaries.items()})
        return facts


def _itself(model: nn.Module) -> nn.Module:
    return model


def model_of(llm: Any) -> nn.Module:
    """The model inside vllm.LLM, in this process: through apply_model, or the old worker path before 0.9."""
    if hasattr(llm, "apply_model"):
        return llm.apply_model(_itself)[0]  # type: ignore[no-any-return]
    worker = llm.llm_engine.model_executor.driver_worker
    worker = getattr(worker, "worker", worker)
    return worker.model_runner.model  # type: ignore[no-any-return]


def end_ids(checkpoint: Checkpoint) -> frozenset[int]:
    """End-of-sequence ids of config.json, a number or a list there: the same as the transformers engine stops at."""
    ends = checkpoint.config.get("eos_token_id")
    if isinstance(ends, int):
        return frozenset([ends])
    return frozenset(e for e in ends if isinstance(e, int)) if isinstance(ends, list) else frozenset()


def _started(vllm: Any, arguments: dict[str, object], version: str) -> Any:
    """vllm.LLM with these arguments; what it refuses is a BackendError with its first sentence."""
    try:
        return vllm.LLM(**arguments)
    except (ValueError, RuntimeError, NotImplementedError, AssertionError, OSError) as e:
        raise BackendError(f"vLLM {version} does not load this model: {_first_sentence(e)}", "its log has more") from e


def _first_sentence(error: Exception) -> str:
    """The line that says what is wrong; pydantic puts a headline and "Value error, " before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    said = next((line for line in lines if line.startswith("Value error, ")), lines[0])
    return said.replace("Value error, ", "", 1)[:300]


def _all_proved(linears: list[FusedLinear], proved: set[str]) -> None:
    """Without a proof of the columns, a fused module's parts cannot be told apart."""
    for linear in linears:
        for part in linear.parts:
            if part.spec.name not in proved:
                raise BackendError(
                    f"it could not be proved which columns of vLLM's {linear.name} are {part.spec.name}",
                    "this release loads weights in a way that is not understood",
                )


def _check_tokens(chosen: tuple[int, ...], own: tuple[int, ...], forced: tuple[int, ...] | None) -> None:
    """The sampler must have followed the logits, or the forced ids; and no step may lie outside the capture."""
    asked = own if forced is None else forced[: len(own)]
    if chosen != asked:
        raise CaptureError(
            f"vLLM generated {list(chosen[:8])} where its logits, or --teacher-force, say {list(asked[:8])}",
            "its sampler does not choose greedily",
        )
