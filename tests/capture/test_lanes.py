"""The way of copies out of a GPU, on a real one where somebody asks for it: events and pinned memory are not faked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.capture import staging
from gptq_diff.capture.lanes import HostLane, lane_of, largest_of
from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Fused, Tap
from tests.capture.captures import KeepingSink
from tests.devices import REAL, in_force

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_largest_of_every_so_many(dtype: torch.dtype) -> None:
    """In one pass, by numpy's figures; NaN where there is one."""
    values = torch.randn(60, generator=torch.Generator().manual_seed(0)).to(dtype)
    values[7], values[23], values[41] = -INF, NAN, 0.0
    expected = np.abs(values.double().numpy()).reshape(-1, 5).max(axis=1)
    np.testing.assert_array_equal(largest_of(values, 5).double().numpy(), expected)


def test_tensors_of_a_cpu_stay_in_main_memory() -> None:
    """No stream, no pinned memory."""
    assert isinstance(lane_of(torch.ones(1)), HostLane)


def random_calls(tap: Tap, device: str, blocks: int) -> None:
    """Two steps; every tensor is overwritten right after the call, as engines do."""
    draw = torch.Generator().manual_seed(1)
    for step, rows in enumerate((37, 1)):
        tap.begin_step(step)
        for block in range(blocks):
            x_MK = torch.randn((rows, 512), generator=draw).half().to(device)
            y_MN = torch.randn((rows, 768), generator=draw).half().to(device)
            if block == 3 and step == 0:
                y_MN[5, 700], x_MK[2, 7] = INF, NAN
            tap.record_fused(Fused((f"{block}.q", f"{block}.k"), (512, 256)), x_MK, y_MN, "p")
            tap.record(f"{block}.o", x_MK, y_MN, "p")
            x_MK.fill_(7.0)
            y_MN.zero_()
        tap.end_step()


@pytest.mark.parametrize("blocks", [5, 200])
@pytest.mark.parametrize("later", [False, True], ids=["at each step's end", "beside the engine"])
def test_what_a_gpu_gives_is_what_the_cpu_gives(monkeypatch: pytest.MonkeyPatch, blocks: int, later: bool) -> None:
    """Figures and tensors, through streams, pinned memory, chunks that are used again and a ring that fills up."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2**20)
    monkeypatch.setattr(staging, "RING_BYTES", 2**22)
    layers = frozenset(f"{block}.{name}" for block in range(blocks) for name in "qko")

    class Copying(KeepingSink):
        """Keeps copies: the ring's memory is used again."""

        def take(self, call: object, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
            kept = [None if t is None else t.clone() for t in (x_MK, y_MN)]
            super().take(call, *kept)  # type: ignore[arg-type]

    here, there = Copying(), Copying()
    there.later = later
    with Tap(layers, here) as tap:
        random_calls(tap, "cpu", blocks)
    with in_force(REAL) as device, Tap(layers, there) as tap:
        random_calls(tap, device, blocks)
    assert there.calls == here.calls
    for key, kept in here.tensors.items():
        for ours, theirs in zip(there.tensors[key], kept):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                assert torch.equal(ours.cpu().view(torch.int16), theirs.view(torch.int16)), key


def test_statistics_of_a_gpu_are_those_of_the_cpu() -> None:
    """Without tensors, NaN and infinities among them."""
    layers = frozenset(f"{block}.{name}" for block in range(400) for name in "qko")
    here, there = NullSink(), NullSink()
    with Tap(layers, here) as tap:
        random_calls(tap, "cpu", 400)
    with in_force(REAL) as device, Tap(layers, there) as tap:
        random_calls(tap, device, 400)
    assert there.calls == here.calls
