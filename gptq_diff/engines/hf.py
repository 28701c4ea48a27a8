"""The transformers engine: one skeleton, any kernel of ours in its quantised linears."""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.base import Engine, Generation, LoadSpec
from gptq_diff.engines.decode import Decoder
from gptq_diff.engines.device import find_device, spare_bytes
from gptq_diff.engines.known import Knowing
from gptq_diff.engines.known import earlier as readers
from gptq_diff.engines.planting import planted_in
from gptq_diff.engines.quant_linear import QuantLinear, Switchboard
from gptq_diff.engines.shelf import Shelf
from gptq_diff.engines.skeleton import empty_model, fill
from gptq_diff.errors import BackendError
from gptq_diff.jobs import Job
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.precision import full_precision
from gptq_diff.kernels.released import release_kernel
from gptq_diff.releases import backend_of_release

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


class HfEngine(Engine):
    """A checkpoint in a transformers skeleton of the given dtype.

    spare: how many bytes of packed weights may stay on the device; the others are brought there for each use.
    """

    def __init__(self, spec: LoadSpec, spare: Callable[[torch.device], int] = spare_bytes) -> None:
        if spec.threads:
            torch.set_num_threads(spec.threads)
        torch.manual_seed(spec.seed)
        dtype, self._device = DTYPES[spec.dtype], find_device(spec.device)
        self._checkpoint = open_checkpoint(spec.model, trust_remote_code=spec.trust_remote_code)
        shelf = Shelf(self._device, spare(self._device))
        self._board = Switchboard(make_kernel("fp16"), make_kernel("fp16"), shelf=shelf)
        self._model = self._load(spec, dtype)
        self._decoder = Decoder(self._model, str(self._device))
        self._dtype = dtype
        self._builds = Path(spec.route)

    def _load(self, spec: LoadSpec, dtype: torch.dtype) -> nn.Module:
        """The skeleton with the checkpoint in it."""
        model = empty_model(spec.model, dtype, trust_remote_code=spec.trust_remote_code)
        fill(model, self._checkpoint, self._board, dtype)
        return model

    def use_kernel(self, name: str) -> None:
        """Switch every quantised linear to the kernel of that name, a release's (`vllm==0.20.2:exllama`) among them."""
        if backend_of_release(name) is None:
            self.install(make_kernel(name))
            return
        device = str(self._device) if self._device.type == "cuda" else "cuda:0"
        self.install(release_kernel(name, self._builds, device))

    def install(self, kernel: Kernel) -> None:
        """Switch every quantised linear to that kernel; layers it refuses run in float16 and count as skipped."""
        self._board.kernel = kernel
        support = {spec.name: kernel.supports(spec) for spec in self._checkpoint.layers}
        self._board.refused = {name: s.reason for name, s in support.items() if not s.ok}

    @property
    def kernel(self) -> Kernel:
        """The present kernel."""
        return self._board.kernel

    @property
    def checkpoint(self) -> Checkpoint:
        """What is loaded."""
        return self._checkpoint

    @property
    def model(self) -> nn.Module:
        """The skeleton."""
        return self._model

    def planted(self, job: Job) -> contextlib.AbstractContextManager[None]:
        """The job's fault in the kernel or the skeleton."""
        return super().planted(job) if job.plant is None else planted_in(self, job, job.plant)

    @contextlib.contextmanager
    def knowing(self, earlier: Sequence[tuple[str, Path]]) -> Iterator[None]:
        """Simulated products that another simulator has made for the same input are not made again."""
        kernel = self._board.kernel
        known = [(make_kernel(name), path) for name, path in earlier if name.startswith("sim-")]
        if known and kernel.name.startswith("sim-"):
            self._board.kernel = Knowing(kernel, readers(known))
        try:
            yield
        finally:
            self._board.kernel = kernel

    @property
    def kept_bytes(self) -> int:
        """Bytes of packed weights and of the output head that stay on the device."""
        return self._board.shelf.used

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why the present kernel cannot take it."""
        return dict(self._board.refused)

    @property
    def tapped(self) -> frozenset[str]:
        """Every quantised linear that the present kernel takes."""
        return frozenset(s.name for s in self._checkpoint.layers).difference(self._board.refused)

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """Greedy decode with a key-value cache; stops after the model's own end-of-sequence token."""
        self._board.tap = tap
        try:
            with full_precision():
                return self._decoder.generate(token_ids, max_new_tokens=max_new_tokens, forced=forced, tap=tap)
        finally:
            self._board.tap = None
            self._board.forget()

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:
        """The kernel on that linear, as the skeleton calls it."""
        module = self._model.get_submodule(layer) if layer in self.tapped else None
        if not isinstance(module, QuantLinear):
            raise BackendError(f"the present kernel does not run {layer}", "name a quantised linear that it takes")
        with torch.inference_mode(), full_precision():
            return module.product(x_MK.to(device=self._device, dtype=self._dtype))

    def versions(self) -> dict[str, str]:
        """Interpreter and packages."""
        import transformers

        facts = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "numpy": np.__version__,
        }
        if self._device.type == "cuda":
            facts["gpu"] = torch.cuda.get_device_name(self._device)
        return facts
