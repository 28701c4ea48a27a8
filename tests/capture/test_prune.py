from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gptq_diff.capture import prune
from gptq_diff.capture.prune import keep_only, size_of
from gptq_diff.capture.store import CaptureReader
from gptq_diff.errors import CaptureError
from tests.capture.captures import LAYERS, make_inputs, make_outputs, write_capture


def kept(capture: Path) -> set[str]:
    """The layers of which everything is there and right; partly there, or wrong, is an error."""
    reader = CaptureReader(capture)
    found = set()
    for name in LAYERS:
        there = [reader.has(step, name, side) for step in (0, 1) for side in ("in", "out")]
        assert all(there) or not any(there), f"{name} is kept in part"
        if all(there):
            found.add(name)
            for step in (0, 1):
                assert torch.equal(reader.tensor(step, name, "in"), make_inputs(step)[name])
                assert torch.equal(reader.tensor(step, name, "out"), make_outputs(step)[name])
    return found


@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
@pytest.mark.parametrize("layers", ["", "q", "k", "k v", "q v", "o", "down o", "q k v o down"])
def test_exactly_those_layers_stay(tmp_path: Path, layers: str, block_bytes: int) -> None:
    """With their inputs, also where an input lay under the name of a layer that goes; what is freed is told."""
    capture = tmp_path / "c"
    write_capture(capture, block_bytes=block_bytes)
    before = size_of(capture)
    freed = keep_only(capture, frozenset(layers.split()))
    assert kept(capture) == set(layers.split())
    assert size_of(capture) == before - freed
    reader = CaptureReader(capture)
    assert reader.manifest.order == LAYERS  # everything else is as it was
    assert len(list(reader.stats())) == 2 * len(LAYERS)
    assert same_logits(reader)


def same_logits(reader: CaptureReader) -> bool:
    return torch.equal(reader.first_logits(), torch.arange(5.0))


def test_it_can_be_pruned_again(tmp_path: Path) -> None:
    """Less and less stays; what is gone does not come back."""
    capture = tmp_path / "c"
    write_capture(capture)
    for layers in ("q k o", "k o", "o down", ""):
        keep_only(capture, frozenset(layers.split()))
        assert kept(capture) == set(layers.split()) - {"down"}
    assert size_of(capture) == 0


def test_an_input_shared_by_layers_that_stay_is_written_once(tmp_path: Path) -> None:
    """q, k and v together need their input once."""
    capture = tmp_path / "c"
    write_capture(capture)
    keep_only(capture, frozenset("qkv"))
    where = CaptureReader(capture).manifest.where
    assert where["0/k/in"] == where["0/v/in"] == "=0/q/in"


class Crash(Exception):
    pass


@pytest.mark.parametrize("first", ["", "q k o"])
@pytest.mark.parametrize("moment", ["before the block", "after the block", "after the manifest"])
def test_a_crash_in_between_loses_nothing_that_is_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, first: str
) -> None:
    """Killed at any point, the capture holds the old layers or the new ones, whole; and can be pruned later."""
    capture = tmp_path / "c"
    write_capture(capture)
    if first:
        keep_only(capture, frozenset(first.split()))
    old = kept(capture)

    def crash(*_: object) -> None:
        raise Crash

    with monkeypatch.context() as patched, pytest.raises(Crash):
        if moment == "before the block":
            patched.setattr(prune, "save_tensors", crash)
        elif moment == "after the block":
            patched.setattr(prune, "write_json", crash)
        else:
            patched.setattr(Path, "unlink", crash)
        keep_only(capture, frozenset("ko"))
    assert kept(capture) == ({"k", "o"} if moment == "after the manifest" else old)
    keep_only(capture, frozenset("o"))
    assert kept(capture) == {"o"}
    assert len(list(capture.glob("block-*"))) == 1


def test_an_incomplete_capture_is_refused(tmp_path: Path) -> None:
    """Nothing is deleted from what nobody vouches for."""
    capture = tmp_path / "c"
    write_capture(capture)
    (capture / "manifest.json").unlink()
    size = size_of(capture)
    with pytest.raises(CaptureError):
        keep_only(capture, frozenset("o"))
    assert size_of(capture) == size
