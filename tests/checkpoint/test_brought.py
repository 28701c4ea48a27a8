"""Linears on their way to a GPU: what arrives is what the files hold, in order, and little of it at a time."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.checkpoint import brought as module
from gptq_diff.checkpoint.brought import AHEAD, brought, read_into
from gptq_diff.checkpoint.header import TensorEntry
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.errors import CheckpointError
from tests.checkpoint.build import linear_tensors, quant_config, write_checkpoint

CPU = torch.device("cpu")


class FakeStream:
    """Takes part in nothing: everything is done when it is asked for."""

    def record_event(self) -> FakeStream:
        return self

    def wait_event(self, event: object) -> None:
        assert isinstance(event, FakeStream)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a GPU that is the CPU."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream())
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda self, stream: None)
    monkeypatch.setattr(module, "host_memory", torch.empty_like)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    """Twelve linears in blocks, every third with a bias and with an order of its own for its rows."""
    tensors: dict[str, torch.Tensor] = {}
    for i in range(12):
        odd = i % 3 == 0
        tensors |= linear_tensors(
            f"model.layers.{i}.mlp.down_proj", 64, 32, seed=i, bias=odd, g_idx=[1, 0] * 32 if odd else None
        )
    return open_checkpoint(write_checkpoint(tmp_path / "model", tensors, quant_config(desc_act=True)))


@pytest.mark.usefixtures("streams")
def test_every_byte_arrives_in_order(checkpoint: Checkpoint) -> None:
    """Against the same tensors as the map shows them."""
    specs = checkpoint.layers
    assert len(specs) == 12
    there = list(brought(checkpoint, specs, CPU))
    assert [spec for spec, _ in there] == list(specs)
    for spec, linear in there:
        mapped = checkpoint.packed(spec.name)
        assert linear.spec == spec
        for what in ("qweight", "qzeros", "scales", "g_idx", "bias"):
            ours, theirs = getattr(linear, what), getattr(mapped, what)
            assert (ours is None) == (theirs is None)
            assert ours is None or torch.equal(ours, theirs)
            assert ours is None or what == "g_idx" or ours.data_ptr() != theirs.data_ptr()
    assert any(linear.bias is not None and linear.g_idx is not None for _, linear in there)


@pytest.mark.usefixtures("streams")
def test_no_more_than_a_few_are_ahead(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """Host memory for them is bounded; one that nobody waits for any more is not read."""
    asked: list[str] = []
    packed = checkpoint.packed
    monkeypatch.setattr(checkpoint, "packed", lambda name: (asked.append(name), packed(name))[1])
    for i, _ in enumerate(brought(checkpoint, checkpoint.layers, CPU)):
        assert len(asked) <= min(i + 1 + AHEAD, 12)
        if i == 2:
            break
    assert len(asked) <= 3 + AHEAD


@pytest.mark.usefixtures("streams")
def test_what_cannot_be_read_is_told_to_whoever_waits_for_it(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = checkpoint.entry("model.layers.3.mlp.down_proj.scales")
    real = module.os.preadv

    def preadv(fd: int, views: Any, at: int) -> int:
        if at == broken.start:
            raise OSError(5, "Input/output error")
        return real(fd, views, at)

    monkeypatch.setattr(module.os, "preadv", preadv)
    seen: list[str] = []
    with pytest.raises(CheckpointError, match="cannot be read: Input/output error"):
        for spec, _ in brought(checkpoint, checkpoint.layers, CPU):
            seen.append(spec.name)
    names = [spec.name for spec in checkpoint.layers]
    assert seen == names[: names.index("model.layers.3.mlp.down_proj")]


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    """It was cut after its header was checked."""
    file = tmp_path / "short"
    file.write_bytes(b"0123456789")
    whole = torch.empty(4, dtype=torch.int16)
    read_into(whole, TensorEntry(file, "I16", (4,), 2, 10))
    assert whole.numpy().tobytes() == b"23456789"
    with pytest.raises(CheckpointError, match="ends before byte 14"):
        read_into(whole, TensorEntry(file, "I16", (4,), 6, 14))
    with pytest.raises(CheckpointError, match="holds 6 bytes where 8 were expected"):
        read_into(whole, TensorEntry(file, "I16", (3,), 0, 6))


def test_a_read_that_gives_less_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux reads at most 2 GiB at once, and less when a signal comes."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(64)))
    real = module.os.preadv
    monkeypatch.setattr(module.os, "preadv", lambda fd, views, at: real(fd, [views[0][:5]], at))
    whole = torch.empty(32, dtype=torch.uint8)
    read_into(whole, TensorEntry(file, "U8", (32,), 16, 48))
    assert whole.tolist() == list(range(16, 48))


FORKS = """
import os, sys, threading
import torch
from gptq_diff.checkpoint.brought import pool_after_fork

def work():
    together.wait()
    try:
        torch.ones(100_000).sum()
    except RuntimeError as error:
        failed.append(error)

torch.set_num_threads(4)
torch.ones(100_000).sum()
broken, anew = 0, sys.argv[1] == "anew"
for _ in range(20 if anew else 200):  # on a busy machine threads seldom meet: as it is, one that fails will do
    if broken and not anew:
        break
    child = os.fork()
    if child == 0:
        if anew:
            pool_after_fork()
        together, failed = threading.Barrier(16), []
        threads = [threading.Thread(target=work) for _ in range(16)]
        for step in ("start", "join"):
            for thread in threads:
                getattr(thread, step)()
        os._exit(len(failed) > 0)
    broken += os.waitpid(child, 0)[1] != 0
print(broken)
"""


def test_threads_of_a_forked_child() -> None:
    """Torch fails where several of them work first at once, as readers in an engine's ranks do; not after this."""
    broken = {}
    for kind in ("as it is", "anew"):
        command = [sys.executable, "-c", FORKS, kind]
        broken[kind] = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert broken["as it is"] > 0, "torch has mended it: pool_after_fork can go"
    assert broken["anew"] == 0
