"""Looks at kernel calls on an NVIDIA GPU: the kernel of seen.cu, launched through the driver."""

from __future__ import annotations

import ctypes
import struct
from functools import lru_cache
from importlib.resources import files

import torch

from gptq_diff.capture.call import Fused
from gptq_diff.capture.cuda.driver import Driver, raw_stream
from gptq_diff.capture.looks import INFINITY, MOST_PARTS, Kind, Looker
from gptq_diff.capture.strip import Strip

THREADS = 256
"""Of a block; as in seen.cu."""
BLOCKS_A_PROCESSOR = 8
UNIT = 8
"""Values of a vector."""

_KIND = struct.Struct(f"=IIII{MOST_PARTS}I4x7I")
"""struct Seen from `inner_vectors` on, then CUlaunchConfig up to its sharedMemBytes."""
_CALL = struct.Struct(f"=QQQQQI{_KIND.size}s")
_SEEN_BYTES = 96
_CONFIG_BYTES = 56
_STREAM_AT = _SEEN_BYTES + 32
"""CUlaunchConfig: seven unsigned int and padding, then the stream, the attributes and their number."""


class CudaLooker(Looker):
    """One GPU's; one thread of a process looks.

    What a launch needs lies in one piece of memory, which every look fills anew.
    """

    unit = UNIT

    def __init__(self, driver: Driver, function: ctypes.c_void_p, device: torch.device, processors: int) -> None:
        self._driver = driver
        self._function = function
        self._device = device.index or 0
        self._blocks = BLOCKS_A_PROCESSOR * processors
        self._memory = (ctypes.c_uint64 * ((_SEEN_BYTES + _CONFIG_BYTES) // 8))()
        address = ctypes.addressof(self._memory)
        self._arguments = (ctypes.c_void_p * 1)(address)
        self._config = ctypes.c_void_p(address + _SEEN_BYTES)
        self._stream, self._stream_of = 0, raw_stream()
        self._launch, self._fill = driver.launch, _CALL.pack_into

    def kind(self, parts: Fused, inner: int, dtype: torch.dtype) -> Kind:
        """What of a launch's arguments and of its grid does not change from call to call, as bytes."""
        widths = [width // UNIT for width in parts.widths]
        return _KIND.pack(
            inner // UNIT, sum(widths), len(widths), INFINITY[dtype], *widths, *[0] * (MOST_PARTS - len(widths)),
            self._blocks, 1, 1, THREADS, 1, 1, 0,
        )  # fmt: skip

    def look(
        self, kind: Kind, rows: int, x_MK: torch.Tensor, y_MN: torch.Tensor, strip: Strip, at: int, told: int,
        bias_N: torch.Tensor | None,
    ) -> bool:  # fmt: skip
        """One launch on torch's current stream; x and y have to be contiguous, and begin at multiples of 16 bytes."""
        x, y = x_MK.data_ptr(), y_MN.data_ptr()
        if (x | y) & 15 or not x_MK.is_contiguous() or not y_MN.is_contiguous():
            return False
        stream = self._stream_of(self._device)
        if stream != self._stream:
            self._use(stream)
        self._fill(
            self._memory, 0, x, y, 0 if at < 0 else strip.values_at + 2 * at,
            0 if bias_N is None else bias_N.data_ptr(), strip.told_at + 4 * told, rows, kind,
        )  # fmt: skip
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
