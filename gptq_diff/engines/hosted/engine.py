"""An engine on a Hugging Face model with a library's own quantised linears in it; what differs is in the subclasses."""

from __future__ import annotations

import abc
import platform
from collections import Counter
from typing import Any, ClassVar

import torch
from torch import nn

from gptq_diff.capture.bias_step import bias_step
from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.decode import Decoder
from gptq_diff.engines.device import find_device
from gptq_diff.engines.hosted.modules import HostedLinear, hosted_linears
from gptq_diff.engines.hosted.proof import Proof
from gptq_diff.engines.hosted.rest import prove_rest
from gptq_diff.engines.hosted.taps import BiasTap, tapped, without_bias
from gptq_diff.errors import BackendError
from gptq_diff.kernels.base import Product


class HostedEngine(Engine):
    """A loaded model of that library.

    library: its name in sentences. tested: releases that this engine was run with.
    wanted: kernel mode -> kinds (HostedLinear.kind) that every linear must run on; None for whatever was taken.
    """

    library: ClassVar[str]
    tested: ClassVar[frozenset[str]]
    wanted: ClassVar[dict[str, frozenset[str] | None]]

    def _host(self, device: str, checkpoint: Checkpoint, model: nn.Module, proof: Proof, version: str) -> None:
        """Take over a model that the library has loaded and that was proved meanwhile."""
        self._checkpoint = checkpoint
        self._linears = hosted_linears(model, checkpoint.layers, self.library)
        proof.check(self._linears, self.library)
        self._biases = proof.biases
        self._filled_in = prove_rest(model, checkpoint, self.library)
        self._decoder = Decoder(model, device)
        self._version = version
        self._judged: list[HostedLinear] = []
        self._refused: dict[str, str] = {}

    @abc.abstractmethod
    def path(self, linear: HostedLinear, x_MK: torch.Tensor) -> str:
        """The arithmetic that the call just made has run (kernels.base.Product.path)."""

    @abc.abstractmethod
    def unknown(self, linear: HostedLinear) -> str:
        """Why the kernel of that linear has no error model here; empty where it has one."""

    def use_kernel(self, name: str) -> None:
        """Check every module's kernel against the mode: another one than asked for is a BackendError."""
        if name not in self.wanted:
            raise BackendError(f"{self.library} has no kernel mode called {name!r}", "see `gptq-diff backends`")
        kinds = self.wanted[name]
        for linear in self._linears:
            if kinds is not None and linear.kind not in kinds:
                raise BackendError(
                    f"{self.library} runs {linear.spec.name} on its kernel {linear.kind}, not on {name}",
                    "this model, device or installation does not come to that kernel",
                )
        self._refused = {linear.spec.name: self.unknown(linear) for linear in self._linears if self.unknown(linear)}
        self._judged = [linear for linear in self._linears if linear.spec.name not in self._refused]
        if not self._judged:
            first = next(iter(self._refused.values()))
            raise BackendError(f"no linear of this model can be judged: {first}", "name one of its kernels")

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why it is not judged."""
        held = {linear.spec.name for linear in self._linears}
        reason = f"{self.library} has no quantised module for it"
        return {**{s.name: reason for s in self._checkpoint.layers if s.name not in held}, **self._refused}

    @property
    def tapped(self) -> frozenset[str]:
        """Every linear whose kernel has an error model."""
        return frozenset(linear.spec.name for linear in self._judged)

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """Greedy decode with a key-value cache; taps only meanwhile."""
        if tap is None:
            return self._decoder.generate(token_ids, max_new_tokens=max_new_tokens, forced=forced, tap=None)
        seen = tap

        def record(linear: HostedLinear, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            seen.record(linear.spec.name, x_MK, y_MN, self.path(linear, x_MK))

        def bias(linear: HostedLinear, product_RN: torch.Tensor, with_bias_1N: torch.Tensor) -> None:
            if linear.spec.has_bias:
                seen.record_bias(bias_step(linear.spec.name, product_RN, with_bias_1N))

        with tapped(self._judged, self._biases, record, BiasTap(lambda: seen.asks_bias, bias)):
            return self._decoder.generate(token_ids, max_new_tokens=max_new_tokens, forced=forced, tap=tap)

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:
        """The module's own forward without its bias; float16, on the device of its packed weight."""
        linear = next((linear for linear in self._judged if linear.spec.name == layer), None)
        if linear is None:
            raise BackendError(f"{self.library} does not run {layer} on a kernel that is judged", "name another linear")
        module: Any = linear.module
        x_MK = x_MK.to(device=module.qweight.device, dtype=torch.float16)
        with torch.inference_mode(), without_bias(module):
            y: torch.Tensor = module(x_MK)
        return Product(y.reshape(-1, y.shape[-1]), self.path(linear, x_MK))

    def versions(self) -> dict[str, str]:
        """Interpreter, packages, device, and the library's classes with the number of linears on each."""
        import transformers

        classes = Counter(f"{type(linear.module).__name__} ({linear.kind})" for linear in self._linears)
        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            self.library: self._version,
            "kernels": ", ".join(f"{name} x {count}" for name, count in sorted(classes.items())),
        }
        if self._filled_in:
            facts["filled_in"] = f"{', '.join(self._filled_in)}: {self.library} leaves tied weights unread"
        if self._version.partition("+")[0] not in self.tested:
            facts["adapter"] = f"untested with this {self.library}"
        if torch.cuda.is_available():
            facts["gpu"] = torch.cuda.get_device_name()
        return facts


def place(spec: LoadSpec) -> str:
    """Where to load, "cpu" or "cuda:N": as asked for; "auto" and "" are the first GPU that torch sees, else the CPU.

    Sets threads and seed as asked for. BackendError where that GPU is not there.
    """
    device = find_device(spec.device or "auto")
    if spec.threads:
        torch.set_num_threads(spec.threads)
    torch.manual_seed(spec.seed)
    return "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"


def first_sentence(error: BaseException) -> str:
    """The first line of what an error says, or its class where it says nothing."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:300]
