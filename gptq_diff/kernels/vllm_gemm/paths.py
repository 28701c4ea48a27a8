"""Forcing a path of gptq_gemm by the number of rows, and saying which one ran."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Callable

import torch

from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.vllm_gemm.boundary import find_boundary
from gptq_diff.kernels.vllm_gemm.op import Gemm

FAST = "exllama-fast"
RECONSTRUCT = "exllama-reconstruct"


class PathGuard:
    """Stands in for `vllm._custom_ops.gptq_gemm` while it is installed.

    force: FAST, RECONSTRUCT or None for the path that vLLM takes by itself.
    path: the one that the last call took; None before any, and after `taken`.
    """

    def __init__(self, ops: ModuleType, device: str) -> None:
        self._ops: Any = ops
        self._device = device
        self._gemm: Gemm = self._ops.gptq_gemm
        self._signature = self.__signature__ = inspect.signature(self._gemm)  # seen through, so op.multiply can ask it
        self._places = {name: place for place, name in enumerate(self._signature.parameters)}
        missing = {"a", "use_exllama", "bit"} - self._signature.parameters.keys()
        if missing:
            raise BackendError(
                f"this vLLM's gptq_gemm has no parameter {min(missing)!r}", "its paths can be neither told nor forced"
            )
        self._boundaries: dict[int, int] = {}
        self.force: str | None = None
        self.path: str | None = None

    def boundary(self, bits: int) -> int:
        """Rows up to which the fast path runs, found at the first question."""
        if bits not in self._boundaries:
            self._boundaries[bits] = find_boundary(self._ops, self._gemm, bits, self._device)
        return self._boundaries[bits]

    @property
    def boundaries(self) -> dict[int, int]:
        """What has been found so far: bits -> rows."""
        return dict(self._boundaries)

    def taken(self) -> str | None:
        """The path of the calls since the last question."""
        path, self.path = self.path, None
        return path

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Every call of the op inside goes through this guard; the original is put back in any case."""
        self._ops.gptq_gemm = self
        try:
            yield
        finally:
            self._ops.gptq_gemm = self._gemm

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """gptq_gemm with the forced path."""
        if kwargs or len(args) != len(self._places):  # binding takes longer than launching the kernel does
            call = self._signature.bind(*args, **kwargs)
            call.apply_defaults()
            args = tuple(call.arguments.values())
        x_place, places = self._places["a"], self._places
        if not args[places["use_exllama"]]:
            raise CaptureError(
                "vLLM runs a linear without exllama's layout (desc_act under tensor parallelism)",
                "that kernel has no error model here: take another backend",
            )
        x_MK: torch.Tensor = args[x_place]
        rows, limit = x_MK.shape[0], self.boundary(args[places["bit"]])
        self.path = self.force or (FAST if rows <= limit else RECONSTRUCT)

        def run(part: torch.Tensor) -> torch.Tensor:
            return self._gemm(*args[:x_place], part, *args[x_place + 1 :])

        return in_rows(run, x_MK, limit, self.path)


def in_rows(run: Callable[[torch.Tensor], torch.Tensor], x_MK: torch.Tensor, limit: int, path: str) -> torch.Tensor:
    """One product by that path: in slices of at most `limit` rows, or padded with zeros to one row above it."""
    rows = x_MK.shape[0]
    y_MN: torch.Tensor
    if path == FAST and rows > limit:
        y_MN = torch.cat([run(part.contiguous()) for part in torch.split(x_MK, limit)])
    elif path == RECONSTRUCT and rows <= limit:
        padded = x_MK.new_zeros((limit + 1, x_MK.shape[1]))
        padded[:rows] = x_MK
        y_MN = run(padded)[:rows].contiguous()
    else:
        y_MN = run(x_MK)
    return y_MN
