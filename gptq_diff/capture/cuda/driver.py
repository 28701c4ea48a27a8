"""The CUDA driver, as far as loading a kernel and launching it goes, without a compiler and without torch's dispatch.

A launch through the driver takes less of this process than one through torch (benchmarks/gpu/thirty_two/call_cost.py),
and a tap launches once a kernel call. API: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__EXEC.html
"""

from __future__ import annotations

import ctypes
from typing import Any, Callable

import torch

from gptq_diff.errors import BackendError

RawStream = Callable[[int], int]
EARLIER, OUT_OF_RESOURCES = 700, 701
"""CUresult: from 700 on it is what ran before that failed (an illegal address), but for a launch that asks too much."""


class Driver:
    """libcuda, of a context that torch has made current."""

    def __init__(self, library: Any) -> None:
        self._library = library
        self.launch: Any = library.cuLaunchKernelEx
        """(CUlaunchConfig *, CUfunction, void **, void **) -> CUresult"""

    @classmethod
    def found(cls) -> Driver | None:
        """None where there is none, or one from before CUDA 11.8 (no cuLaunchKernelEx).

        As a PyDLL: a launch takes less time than letting go of Python's interpreter lock and taking it again.
        """
        try:
            return cls(ctypes.PyDLL("libcuda.so.1"))
        except (OSError, AttributeError):
            return None

    def function(self, image: bytes, name: str) -> ctypes.c_void_p | None:
        """The kernel of that name in PTX text, compiled by the driver; None where it does not take it."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        if self._library.cuModuleLoadData(ctypes.byref(module), ctypes.c_char_p(image + b"\0")):
            return None
        if self._library.cuModuleGetFunction(ctypes.byref(function), module, ctypes.c_char_p(name.encode())):
            return None
        return function

    def refused(self, code: int) -> BackendError:
        """What the driver says about a launch that it did not make."""
        text = ctypes.c_char_p()
        self._library.cuGetErrorString(code, ctypes.byref(text))
        said = (text.value or b"no reason given").decode(errors="replace")
        if code >= EARLIER and code != OUT_OF_RESOURCES:
            return BackendError(
                f"the GPU failed at something that was launched before: {said}", "the engine's log has more"
            )
        return BackendError(
            f"the GPU does not start the kernel that looks at calls: {said}", "the engine's log has more"
        )


def raw_stream() -> RawStream:
    """A function that gives the handle of torch's current stream on a device."""
    quick: RawStream | None = getattr(torch._C, "_cuda_getCurrentRawStream", None)
    if quick is not None:
        return quick
    return lambda device: int(torch.cuda.current_stream(device).cuda_stream)
