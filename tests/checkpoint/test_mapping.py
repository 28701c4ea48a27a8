"""Tensors as views of a mapped file: what is stored, in every shape, and never written back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gptq_diff.checkpoint.header import TensorEntry, read_header
from gptq_diff.checkpoint.mapping import MappedFile, MappedFiles
from gptq_diff.errors import CheckpointError

TENSORS = {
    "vector": torch.arange(5, dtype=torch.float32),
    "matrix": torch.arange(21, dtype=torch.float16).view(3, 7),
    "cube": torch.arange(24, dtype=torch.int32).view(2, 3, 4),
    "four": torch.arange(16, dtype=torch.bfloat16).view(2, 2, 2, 2),
    "number": torch.tensor(3.5),
    "empty": torch.zeros(0, dtype=torch.float32),
    "no_rows": torch.zeros(0, 4, dtype=torch.float16),
    "no_columns": torch.zeros(4, 0, dtype=torch.float16),
    "octets": torch.arange(3, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
}


def test_every_shape_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    """Beside the library's own reader: values, dtype, shape, and rows that lie one after the other."""
    file = tmp_path / "all.safetensors"
    save_file(TENSORS, file)
    expected, maps = load_file(file), MappedFiles()
    for name, entry in read_header(file).items():
        found = maps.tensor(name, entry)
        assert (found.dtype, found.shape) == (expected[name].dtype, expected[name].shape)
        assert torch.equal(found, expected[name]) and found.is_contiguous()


def test_a_view_is_no_copy_and_never_reaches_the_file(tmp_path: Path) -> None:
    """All tensors of a file share its one map; what somebody writes by mistake stays in this process."""
    file = tmp_path / "one.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(4, 2)}, file)
    before = file.read_bytes()
    mapped, entries = MappedFile(file), read_header(file)
    a, b = mapped.tensor("a", entries["a"]), mapped.tensor("b", entries["b"])
    assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    a.fill_(7.0)
    assert mapped.tensor("a", entries["a"]).tolist() == [7.0] * 4
    assert file.read_bytes() == before


def test_a_tensor_outlives_its_map(tmp_path: Path) -> None:
    """The map goes when the last tensor that looks into it goes."""
    file = tmp_path / "one.safetensors"
    save_file({"a": torch.arange(4.0)}, file)
    maps = MappedFiles()
    found = maps.tensor("a", read_header(file)["a"])
    maps.close()
    del maps
    assert found.tolist() == [0.0, 1.0, 2.0, 3.0]


def test_what_is_not_aligned_is_copied(tmp_path: Path) -> None:
    """Old files have tensors that begin anywhere."""
    file = tmp_path / "odd"
    file.write_bytes(b"\0\0\0" + torch.arange(6, dtype=torch.int32).numpy().tobytes())
    found = MappedFile(file).tensor("x", TensorEntry(file, "I32", (2, 3), 3, 27))
    assert found.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_a_dtype_that_torch_has_not_is_named(tmp_path: Path) -> None:
    """In one sentence."""
    file = tmp_path / "complex"
    file.write_bytes(bytes(8))
    with pytest.raises(CheckpointError, match="x has the dtype C64, which is not supported"):
        MappedFiles().tensor("x", TensorEntry(file, "C64", (1,), 0, 8))


def test_a_file_that_cannot_be_mapped_is_named(tmp_path: Path) -> None:
    """It was there when its header was read."""
    gone = tmp_path / "gone"
    with pytest.raises(CheckpointError, match="gone cannot be mapped into memory"):
        MappedFiles().tensor("x", TensorEntry(gone, "F16", (1,), 0, 2))
