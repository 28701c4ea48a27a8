"""What the fingerprint notices and what it does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import CheckpointError
from tests.checkpoint.build import linear_tensors, quant_config, tiny, write_checkpoint


def fingerprint(path: Path, *, full: bool = False) -> str:
    with open_checkpoint(path) as checkpoint:
        value = checkpoint.fingerprint(full=full)
    assert len(value) == 64
    int(value, 16)
    return value


def test_place_shards_and_json_layout_do_not_matter(tmp_path: Path) -> None:
    """The same tensors and config have the same fingerprint wherever and however they lie."""
    one, three = tiny(tmp_path / "one"), tiny(tmp_path / "three", shards=3)
    config = json.loads((three / "config.json").read_text())
    (three / "config.json").write_text(json.dumps(dict(reversed(config.items())), indent=4))
    assert fingerprint(one) == fingerprint(three)
    assert fingerprint(one, full=True) == fingerprint(three, full=True)
    assert fingerprint(one, full=True) == fingerprint(one)  # everything this small is hashed whole


@pytest.mark.parametrize("suffix", ["scales", "qzeros", "g_idx"])
def test_every_element_of_the_small_tensors_counts(tmp_path: Path, suffix: str) -> None:
    """One element changed anywhere in scales, qzeros or g_idx changes the fingerprint, samples or not."""
    tensors = linear_tensors("a.0.fc1", 1024, 256, group_size=8)
    quant = quant_config(group_size=8)
    before = fingerprint(write_checkpoint(tmp_path / "before", tensors, quant))
    flat = tensors[f"a.0.fc1.{suffix}"].view(-1)
    flat[flat.numel() // 3] += 1
    assert fingerprint(write_checkpoint(tmp_path / "after", tensors, quant)) != before


def test_a_large_tensor_is_sampled_unless_full(tmp_path: Path) -> None:
    """A byte between samples is seen only by full=True; the first and the last byte always are."""
    tensors = {**linear_tensors("a.0.fc1", 32, 32), "big": torch.zeros(1_000_000, dtype=torch.uint8)}
    before = write_checkpoint(tmp_path / "before", tensors)
    for index, seen in ((0, True), (999_999, True), (5000, False)):
        tensors["big"] = torch.zeros(1_000_000, dtype=torch.uint8)
        tensors["big"][index] = 1
        after = write_checkpoint(tmp_path / f"after{index}", tensors)
        assert (fingerprint(before) != fingerprint(after)) is seen
        assert fingerprint(before, full=True) != fingerprint(after, full=True)


def test_config_shapes_and_names_count(tmp_path: Path) -> None:
    """Other settings, another name or another shape of the same bytes are another checkpoint."""
    tensors = {**linear_tensors("a.0.fc1", 32, 32), "x": torch.zeros(2, 3)}
    seen = {fingerprint(write_checkpoint(tmp_path / "a", tensors))}
    seen.add(fingerprint(write_checkpoint(tmp_path / "b", tensors, quant_config(sym=False))))
    tensors["x"] = torch.zeros(3, 2)
    seen.add(fingerprint(write_checkpoint(tmp_path / "c", tensors)))
    tensors["y"] = tensors.pop("x")
    seen.add(fingerprint(write_checkpoint(tmp_path / "d", tensors)))
    assert len(seen) == 4


def test_a_file_that_shrinks_or_goes_is_an_error(tmp_path: Path) -> None:
    """Somebody writes to the checkpoint while it is read: a sentence, no wrong hash."""
    file = tiny(tmp_path) / "model.safetensors"
    with open_checkpoint(tmp_path) as checkpoint:
        file.write_bytes(file.read_bytes()[:-100])
        with pytest.raises(CheckpointError, match="became shorter"):
            checkpoint.fingerprint()
        file.unlink()
        with pytest.raises(CheckpointError, match="cannot be read: No such file"):
            checkpoint.fingerprint()
        with pytest.raises(CheckpointError, match="cannot be mapped into memory"):
            checkpoint.tensor("model.layers.0.norm.weight")
