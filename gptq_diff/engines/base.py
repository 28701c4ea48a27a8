"""What hosts a model: an engine loads it once, then runs prompts with one kernel mode after another."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.tap import Tap
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    import torch

    from gptq_diff.jobs import Job
    from gptq_diff.kernels.base import Product


@dataclass(frozen=True)
class LoadSpec:
    """What a worker loads.

    engine: "transformers", ...
    model: checkpoint directory, absolute.
    dtype: of the skeleton, "float16", "float32" or "bfloat16".
    device: "cpu", "cuda", "cuda:N", or "auto" for a GPU where there is one; vLLM finds its own.
    threads: CPU threads for torch, or 0 for its own choice.
    route: Preset.route, "" for an engine with one way in; for kernels of a release, the folder of its builds.
    longest: tokens that the longest job needs, prompt and answer together.
    original: the unquantised model, absolute, to be loaded in place of `model`, whose layers say what is tapped.
    tensor_parallel: processes, each on a GPU of its own, that share the model; 1 for one.
    prefix_cache: keep what was computed of a prompt for later ones that begin alike, in the engines that can.
    """

    engine: str
    model: Path
    dtype: str
    device: str
    trust_remote_code: bool
    threads: int
    seed: int
    route: str = ""
    longest: int = 0
    original: Path | None = None
    tensor_parallel: int = 1
    prefix_cache: bool = False


@dataclass(frozen=True)
class Generation:
    """What one prompt gave.

    tokens: greedy ids, up to the asked number or the model's end-of-sequence token (included).
    logits_finite: one entry a step: whether any logit of the last position was finite.
    first_logits_V: float32 [vocabulary] of step 0.
    steps: forward passes made.
    cached_rows: of the prompt that came from a prefix cache, its first ones; no tap saw them.
    """

    tokens: tuple[int, ...]
    logits_finite: tuple[bool, ...]
    first_logits_V: torch.Tensor
    steps: int
    cached_rows: int = 0


class Engine(abc.ABC):
    """A loaded model."""

    @abc.abstractmethod
    def use_kernel(self, name: str) -> None:
        """Switch every quantised linear to that kernel."""

    @property
    @abc.abstractmethod
    def skipped(self) -> dict[str, str]:
        """Layer -> reason, for linears that the present kernel cannot take (they run, and are not judged)."""

    @property
    @abc.abstractmethod
    def tapped(self) -> frozenset[str]:
        """Canonical names of the linears that a tap will see in every step."""

    @abc.abstractmethod
    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """Prefill and greedy decode of one prompt; `forced` ids are fed instead of the model's own choice."""

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:  # noqa: ARG002  for the engines that can
        """The present kernel on that linear alone: y[M, N] without bias, on whatever device, and the path that ran.

        x_MK: [M, K] on any device; the engine brings it to where and to what dtype its linears take. BackendError for
        a linear that no tap would see, and in an engine that cannot call one linear by itself.
        """
        raise BackendError(f"this engine cannot run {layer} by itself", "no experiments can be made on it")

    def forget(self) -> None:  # noqa: B027  nothing to forget without a prefix cache
        """Empty the prefix cache, if this load has one: the next prompt is computed whole."""

    def planted(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """The job's fault, if it has one, planted for as long as the context lasts; BackendError where it cannot be."""
        if job.plant is None:
            return contextlib.nullcontext()
        raise BackendError("no fault can be planted in this engine's kernels", "take hf- or sim- backends")

    def knowing(
        self,
        earlier: Sequence[tuple[str, Path]],  # noqa: ARG002  for the engines that can
    ) -> contextlib.AbstractContextManager[None]:
        """While the context lasts, products may be taken from these captures of the same prompt, by kernel mode."""
        return contextlib.nullcontext()

    def gpu_peak(self) -> int | None:
        """The most bytes on GPUs since the last call, of all of this engine's processes; None where it uses none."""
        from gptq_diff.engines.device import gpu_peak

        return gpu_peak()

    @abc.abstractmethod
    def versions(self) -> dict[str, str]:
        """Package versions that matter for what was computed."""
