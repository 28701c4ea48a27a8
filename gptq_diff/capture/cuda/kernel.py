"""Looks at kernel calls on an NVIDIA GPU: the kernel of seen.cu, launched through the driver."""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from importlib.resources import files

import torch

from gptq_diff.capture.call import Fused
from gptq_diff.capture.cuda.driver import Driver, raw_stream
from gptq_diff.capture.looks import INFINITY, MOST_PARTS, Looker, Prepared

THREADS = 256
"""Of a block; as in seen.cu."""
BLOCKS_A_PROCESSOR = 8
UNIT = 8
"""Values of a vector."""

_STATIC = struct.Struct(f"=QQQQIIII{MOST_PARTS}I7I")
"""struct Seen from `to` on, then CUlaunchConfig up to its sharedMemBytes."""
_CALL = struct.Struct(f"=QQ{_STATIC.size}s")
_SEEN_BYTES = 64 + 4 * MOST_PARTS
_CONFIG_BYTES = 56
_STREAM_AT = _SEEN_BYTES + 32
"""CUlaunchConfig: seven unsigned int and padding, then the stream, the attributes and their number."""


class CudaLooker(Looker):
    """One GPU's. What a launch needs lies in one piece of memory that every look writes its own part of."""

    unit = UNIT

    def __init__(self, driver: Driver, function: ctypes.c_void_p, device: torch.device, processors: int) -> None:
        self._driver = driver
        self._function = function
        self._device = device.index or 0
        self._most_blocks = BLOCKS_A_PROCESSOR * processors
        self._memory = (ctypes.c_uint64 * ((_SEEN_BYTES + _CONFIG_BYTES) // 8))()
        address = ctypes.addressof(self._memory)
        self._arguments = (ctypes.c_void_p * 1)(address)
        self._config = ctypes.c_void_p(address + _SEEN_BYTES)
        self._stream, self._stream_of = 0, raw_stream()
        self._launch, self._fill = driver.launch, _CALL.pack_into

    def prepared(
        self, parts: Fused, x_MK: torch.Tensor, y_MN: torch.Tensor, to: torch.Tensor | None, told: torch.Tensor,
        bias_N: torch.Tensor | None,
    ) -> Prepared:  # fmt: skip
        """What does not change from call to call of a launch's arguments and of its grid, as bytes."""
        rows, columns = y_MN.shape
        assert to is None or not to.data_ptr() % 16
        widths = [width // UNIT for width in parts.widths]
        most = max(x_MK.numel() // UNIT, rows * max(widths), 1)
        blocks = min(self._most_blocks, -(-most // THREADS))
        return _STATIC.pack(
            0 if to is None else to.data_ptr(), 0 if bias_N is None else bias_N.data_ptr(), told.data_ptr(),
            x_MK.numel() // UNIT, rows, columns // UNIT, len(widths), INFINITY[x_MK.dtype],
            *widths, *[0] * (MOST_PARTS - len(widths)), blocks, 1, 1, THREADS, 1, 1, 0,
        )  # fmt: skip

    def look(self, prepared: Prepared, x_MK: torch.Tensor, y_MN: torch.Tensor) -> bool:
        """One launch on torch's current stream; x and y have to be contiguous, and begin at multiples of 16 bytes."""
        x, y = x_MK.data_ptr(), y_MN.data_ptr()
        if (x | y) & 15 or not x_MK.is_contiguous() or not y_MN.is_contiguous():
            return False
        stream = self._stream_of(self._device)
        if stream != self._stream:
            self._use(stream)
        self._fill(self._memory, 0, x, y, prepared)
        code = self._launch(self._config, self._function, self._arguments, None)
        if code:
            raise self._driver.refused(code)
        return True

    def _use(self, stream: int) -> None:
        """Launch there from now on."""
        struct.pack_into("=Q", self._memory, _STREAM_AT, stream)
        self._stream = stream


@lru_cache
def looker_of(device: torch.device) -> Looker | None:
    """The one for that GPU; None on a CPU, and where the driver is missing or does not take the kernel."""
    if device.type != "cuda" or torch.version.cuda is None:
        return None
    driver = Driver.found()
    if driver is None:
        return None
    with torch.cuda.device(device):
        torch.zeros(1, device=device)  # makes torch's context current
        function = driver.function(files(__package__).joinpath("seen.ptx").read_bytes(), "seen")
    if function is None:
        return None
    return CudaLooker(driver, function, device, torch.cuda.get_device_properties(device).multi_processor_count)
