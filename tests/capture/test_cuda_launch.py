"""What a launch is given, read back as seen.cu and CUDA's header declare it; the driver here only records."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest
import torch

from gptq_diff.capture.call import Fused
from gptq_diff.capture.cuda import kernel
from gptq_diff.capture.cuda.driver import Driver
from gptq_diff.capture.looks import MOST_PARTS
from gptq_diff.capture.strip import Strip
from gptq_diff.errors import BackendError

POINTERS, NUMBERS = ("x", "y", "to", "bias", "told"), ("rows", "inner_vectors", "row_vectors", "parts", "infinity")
GRID = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared")


class Seen(ctypes.Structure):
    """struct Seen of seen.cu."""

    _fields_ = [
        *((name, ctypes.c_uint64) for name in POINTERS), *((name, ctypes.c_uint) for name in NUMBERS),
        ("widths", ctypes.c_uint * MOST_PARTS), ("unused", ctypes.c_uint),
    ]  # fmt: skip


class Config(ctypes.Structure):
    """CUlaunchConfig."""

    _fields_ = [
        *((name, ctypes.c_uint) for name in GRID),
        ("stream", ctypes.c_uint64), ("attributes", ctypes.c_uint64), ("attribute_count", ctypes.c_uint),
    ]  # fmt: skip


class Recording:
    """A driver that keeps what it is asked to launch; code: what it answers."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.launched: list[tuple[dict[str, Any], dict[str, Any]]] = []

    def launch(self, config: ctypes.c_void_p, function: ctypes.c_void_p, arguments: Any, extra: None) -> int:
        seen, grid = Seen.from_address(arguments[0]), Config.from_address(config.value or 0)
        told = {name: getattr(seen, name) for name in (*POINTERS, *NUMBERS, "unused")}
        of_grid = {name: getattr(grid, name) for name in (*GRID, "stream", "attributes", "attribute_count")}
        self.launched.append((told | {"widths": list(seen.widths)}, of_grid))
        return self.code

    def refused(self, code: int) -> BackendError:
        return BackendError(f"refused with {code}", "")


def looker_with(driver: Any, monkeypatch: pytest.MonkeyPatch, streams: list[int]) -> kernel.CudaLooker:
    monkeypatch.setattr(kernel, "raw_stream", lambda: lambda device: streams[0])
    return kernel.CudaLooker(driver, ctypes.c_void_p(7), torch.device("cuda:0"), 132)


def test_every_field_lies_where_the_kernel_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies and a bias, then neither, on another stream, with other rows."""
    assert ctypes.sizeof(Seen) == kernel._SEEN_BYTES
    assert ctypes.sizeof(Config) == kernel._CONFIG_BYTES
    driver, streams = Recording(), [0x1234]
    looker = looker_with(driver, monkeypatch, streams)
    x, y, bias = torch.ones(3, 64).half(), torch.ones(3, 96).half(), torch.ones(96).half()
    strip = Strip(0, torch.zeros(1000).half(), torch.zeros(99, dtype=torch.int32))
    assert strip.told is not None
    kind = looker.kind(Fused(("a", "b", "c"), (64, 16, 16)), 64, torch.float16)
    assert looker.look(kind, 3, x, y, strip, 8, 3, bias)
    streams[0] = 0x5678
    assert looker.look(kind, 2, x[:2], y[:2], strip, -1, 12, None)
    (first, grid), (second, other) = driver.launched
    same = {"inner_vectors": 8, "row_vectors": 12, "parts": 3, "infinity": 0x7C00, "unused": 0,
            "widths": [8, 2, 2, 0, 0, 0, 0, 0]}  # fmt: skip
    assert first == same | {
        "x": x.data_ptr(), "y": y.data_ptr(), "to": strip.values[8:].data_ptr(), "bias": bias.data_ptr(),
        "told": strip.told[3:].data_ptr(), "rows": 3,
    }  # fmt: skip
    assert second == same | {
        "x": x.data_ptr(), "y": y.data_ptr(), "to": 0, "bias": 0, "told": strip.told[12:].data_ptr(), "rows": 2,
    }  # fmt: skip
    expected = dict(zip(GRID, (kernel.BLOCKS_A_PROCESSOR * 132, 1, 1, kernel.THREADS, 1, 1, 0)))
    assert grid == expected | {"stream": 0x1234, "attributes": 0, "attribute_count": 0}
    assert other == expected | {"stream": 0x5678, "attributes": 0, "attribute_count": 0}


def test_what_does_not_lie_as_it_has_to_is_not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Recording()
    looker = looker_with(driver, monkeypatch, [1])
    parts, strip = Fused(("a",), (16,)), Strip(0, torch.zeros(96).half(), torch.zeros(6, dtype=torch.int32))
    kind, y = looker.kind(parts, 16, torch.float16), torch.ones(3, 16).half()
    flat = torch.ones(49).half()
    for x in (torch.ones(3, 32).half()[:, :16], flat[1:].view(3, 16)):
        assert not looker.look(kind, 3, x, y, strip, 0, 0, None)
        assert not looker.look(kind, 3, y, x, strip, 0, 0, None)
    assert driver.launched == []


def test_a_launch_that_fails_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    looker = looker_with(Recording(719), monkeypatch, [1])
    x = torch.ones(3, 16).half()
    strip = Strip(0, torch.zeros(96).half(), torch.zeros(6, dtype=torch.int32))
    with pytest.raises(BackendError, match="refused with 719"):
        looker.look(looker.kind(Fused(("a",), (16,)), 16, torch.float16), 3, x, x.clone(), strip, 0, 0, None)


@pytest.mark.parametrize(("code", "said"), [(1, "does not start the kernel"), (701, "does not start"), (700, "before")])
def test_what_failed_before_is_not_blamed_on_the_look(code: int, said: str) -> None:
    """CUDA tells a fault of what ran earlier at the next launch."""

    class Library:
        cuLaunchKernelEx = None

        def cuGetErrorString(self, code: int, text: Any) -> int:
            text._obj.value = b"an illegal memory access"
            return 0

    assert said in str(Driver(Library()).refused(code))
    assert "illegal memory access" in str(Driver(Library()).refused(code))


def test_without_a_driver_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where the library is missing, nor where it is older than cuLaunchKernelEx."""

    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "PyDLL", missing)
    assert Driver.found() is None
    monkeypatch.setattr(ctypes, "PyDLL", lambda name: object())
    assert Driver.found() is None
