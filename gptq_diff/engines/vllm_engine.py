"""The vLLM engine: vLLM's own model and scheduler, one prompt at a time, every quantised kernel call tapped."""

from __future__ import annotations

import dataclasses
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.vllm.proof import proving
from gptq_diff.engines.vllm.rank import OneProcess
from gptq_diff.engines.vllm.ranks import Explained, Ranks
from gptq_diff.engines.vllm.settings import (
    beside_others,
    engine_arguments,
    own_process,
    rank_arguments,
    rank_environment,
    route_named,
)
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.base import Product

TESTED = frozenset({"0.18.1", "0.20.2", "0.32.0"})
"""Releases that this engine was run with: 0.20.2 on a GPU, all three on a CPU."""


class VllmEngine(Engine):
    """A checkpoint in vLLM, loaded for one route; its kernel modes share the load."""

    def __init__(self, spec: LoadSpec) -> None:
        vllm = import_vllm(spec)
        if route_named(spec.route).kernel is not None and not torch.cuda.is_available():
            raise BackendError(
                f"the route {spec.route} of vLLM needs an NVIDIA GPU, and torch sees none", "take `vllm`"
            )
        self._version = str(vllm.__version__)
        self._sampling: Any = vllm.SamplingParams
        self._ranks = spec.tensor_parallel
        self._caches = spec.prefix_cache
        self._model: OneProcess | Ranks
        checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        self._ends = end_ids(checkpoint)
        known = frozenset(field.name for field in dataclasses.fields(vllm.EngineArgs))
        arguments = engine_arguments(spec, known)
        others = beside_others(known)
        if others and torch.cuda.is_available():  # older releases fork ranks that may not find CUDA asked for before
            arguments |= others
        if spec.tensor_parallel == 1:
            if not torch.cuda.is_available():
                arguments |= own_process(known)
            with proving(checkpoint) as proof:
                self._llm = _started(vllm, arguments, self._version)
            self._model = OneProcess(model_of(self._llm), checkpoint, proof)
        else:
            scratch = Path.cwd() / "ranks"  # the worker's own directory, which goes with it
            arguments |= rank_arguments(spec, known, scratch, cuda=torch.cuda.is_available())
            with Explained(scratch):
                self._llm = _started(vllm, arguments, self._version)
            self._model = Ranks(self._llm, scratch)

    def use_kernel(self, name: str) -> None:
        """Check every module's kernel against the mode, and prepare to force its path."""
        self._model.use_kernel(name)

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why it is not judged."""
        return self._model.skipped

    @property
    def tapped(self) -> frozenset[str]:
        """Every linear of a judged module."""
        return self._model.tapped

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """One prompt through LLM.generate, greedy, alone in its batch; taps and the path guard only meanwhile."""
        sampling = self._sampling(
            temperature=0.0, max_tokens=max_new_tokens if forced is None else min(max_new_tokens, len(forced)),
            ignore_eos=True, stop_token_ids=sorted(self._ends) if forced is None else [], detokenize=False,
        )  # fmt: skip
        with self._model.watching(len(token_ids), forced, tap, caches=self._caches) as watched:
            outputs = self._llm.generate({"prompt_token_ids": list(token_ids)}, sampling, use_tqdm=False)
        generation = watched.generation()
        chosen = tuple(int(t) for t in outputs[0].outputs[0].token_ids)
        _check_tokens(chosen, generation.tokens, forced)
        if self._caches:
            _check_cached(
                getattr(outputs[0], "num_cached_tokens", None), generation.cached_rows, watched=tap is not None
            )
        return generation

    def forget(self) -> None:
        """Empty vLLM's prefix cache. BackendError for a release that cannot, or one that says it did not."""
        if not self._caches:
            return
        reset = getattr(self._llm, "reset_prefix_cache", None)
        if reset is None:
            raise BackendError(
                f"vLLM {self._version} has no way to empty its prefix cache", "run without --prefix-cache"
            )
        if reset() is False:  # older releases answer nothing
            raise BackendError("vLLM did not empty its prefix cache", "its log has more")

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:
        """The kernel call of the module that holds that linear; refused where ranks share it."""
        if isinstance(self._model, Ranks):
            raise BackendError(
                f"{layer} is shared out among tensor-parallel ranks, and is not run by itself there",
                "run without --tensor-parallel-size for experiments",
            )
        return self._model.multiply(layer, x_MK)

    def gpu_peak(self) -> int | None:
        """Of this process, or of all ranks together."""
        return self._model.gpu_peak()

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
        if self._ranks > 1:
            facts["tensor_parallel_size"] = str(self._ranks)
        facts.update({f"fast_path_rows_{b}bit": str(rows) for b, rows in self._model.boundaries.items()})
        return facts


def import_vllm(spec: LoadSpec) -> Any:
    """The package, with all that loading will ask of it imported; some of its variables are read when that happens."""
    os.environ.update(route_named(spec.route).environment())
    if spec.tensor_parallel > 1 and "VLLM_CPU_OMP_THREADS_BIND" not in os.environ:
        os.environ.update(rank_environment(spec.tensor_parallel, os.sched_getaffinity(0)))
    import vllm

    for name in ("LLM", "EngineArgs", "SamplingParams"):  # it imports its own modules when their names are asked for
        getattr(vllm, name)
    return vllm


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


def _check_tokens(chosen: tuple[int, ...], own: tuple[int, ...], forced: tuple[int, ...] | None) -> None:
    """The sampler must have followed the logits, or the forced ids; and no step may lie outside the capture."""
    asked = own if forced is None else forced[: len(own)]
    if chosen != asked:
        raise CaptureError(
            f"vLLM generated {list(chosen[:8])} where its logits, or --teacher-force, say {list(asked[:8])}",
            "its sampler does not choose greedily",
        )


def _check_cached(told: object, seen: int, *, watched: bool) -> None:
    """What vLLM says of its cache must be what the kernels' rows showed; without a tap nobody has seen them."""
    if type(told) is not int:
        raise CaptureError("this vLLM does not say how many tokens came from its prefix cache", "take a newer release")
    if watched and told != seen:
        raise CaptureError(
            f"vLLM says that {told} tokens came from its prefix cache, and its kernels left out {seen} rows",
            "its schedule is not understood",
        )
