from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptq_diff.capture.store import CaptureReader, CaptureWriter, read_json, write_json
from gptq_diff.errors import CaptureError
from tests.capture.captures import EMPTY, LAYERS, make_inputs, make_outputs, write_capture


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and torch.equal(a, b)


def blocks(capture: Path) -> list[str]:
    return sorted(p.name for p in capture.glob("block-*"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("block_bytes", [1, 200, 2**20])
def test_what_was_captured_comes_back(tmp_path: Path, dtype: torch.dtype, block_bytes: int) -> None:
    """Every input and output of every step, bit for bit and in its dtype, however the blocks are cut."""
    capture = tmp_path / "captures" / "c"
    write_capture(capture, dtype=dtype, block_bytes=block_bytes)
    reader = CaptureReader(capture)
    for step in range(2):
        for name in LAYERS:
            assert reader.has(step, name, "in") and reader.has(step, name, "out")
            assert same(reader.tensor(step, name, "in"), make_inputs(step, dtype)[name])
            assert same(reader.tensor(step, name, "out"), make_outputs(step, dtype)[name])
    assert same(reader.first_logits(), torch.arange(5.0))
    assert reader.manifest.order == LAYERS
    assert reader.manifest.kernels == {name: f"path-{name}" for name in LAYERS}
    assert (reader.manifest.tokens, reader.manifest.logits_finite) == ((7,), (True,))
    if dtype == torch.float16:  # 432 bytes in the prefill, 144 in the decode step
        assert len(blocks(capture)) == {1: 16, 200: 3, 2**20: 1}[block_bytes]


def test_a_shared_input_is_written_once(tmp_path: Path) -> None:
    """q, k and v read the same input; on disk it lies once."""
    writer = write_capture(tmp_path / "c", steps=1)
    stored = load_file(tmp_path / "c" / "block-000.safetensors")
    assert sorted(stored) == ["0/down/in", "0/down/out", "0/k/out", "0/o/in", "0/o/out", "0/q/in", "0/q/out", "0/v/out"]
    assert writer.bytes_written == sum(t.numel() * t.element_size() for t in stored.values())


def test_a_block_is_written_as_soon_as_it_is_full(tmp_path: Path) -> None:
    """Memory held back is bounded by the block's size: with one byte a block every tensor is on disk at once."""
    writer = CaptureWriter(tmp_path / "c", block_bytes=1)
    writer._queue("0/a/in", torch.ones(1))
    assert blocks(tmp_path / "c") == ["block-000.safetensors"]


def test_figures_are_told_in_order(tmp_path: Path) -> None:
    """One line a call, with magnitudes."""
    write_capture(tmp_path / "c")
    found = list(CaptureReader(tmp_path / "c").stats())
    expected = [(step, index, name) for step in (0, 1) for index, name in enumerate(LAYERS)]
    assert [(s["step"], s["index"], s["layer"]) for s in found] == expected
    assert found[0]["x"]["absmax"] == float(make_inputs(0)["q"].abs().max())
    assert [s["shared_input"] for s in found[:5]] == [None, "q", "q", None, None]


def test_a_tensor_that_was_never_kept_is_told_apart(tmp_path: Path) -> None:
    """has() says so beforehand, tensor() in a sentence."""
    write_capture(tmp_path / "c", steps=1)
    reader = CaptureReader(tmp_path / "c")
    assert not reader.has(1, "q", "in")
    with pytest.raises(CaptureError, match="holds no tensor 1/q/in"):
        reader.tensor(1, "q", "in")


def test_a_capture_without_a_manifest_is_incomplete(tmp_path: Path) -> None:
    """All tensors may be there: without the manifest, which comes last, nobody knows that they are all."""
    write_capture(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").unlink()
    with pytest.raises(CaptureError, match=r"manifest\.json is missing: the capture is incomplete"):
        CaptureReader(tmp_path / "c")


def test_a_missing_block_is_named(tmp_path: Path) -> None:
    """has() is false, and reading names the file."""
    write_capture(tmp_path / "c", block_bytes=200)
    (tmp_path / "c" / "block-000.safetensors").unlink()
    reader = CaptureReader(tmp_path / "c")
    assert not reader.has(0, "q", "in")
    assert not reader.has(0, "k", "in")  # lies under q's name
    assert reader.has(1, "down", "out")
    with pytest.raises(CaptureError, match=r"block-000\.safetensors is missing: the capture is incomplete"):
        reader.tensor(0, "k", "in")


@pytest.mark.parametrize("size", [0, 4, 60, -1])
def test_a_truncated_block_is_damaged(tmp_path: Path, size: int) -> None:
    """Cut anywhere, in the header or by its last byte."""
    write_capture(tmp_path / "c")
    block = tmp_path / "c" / "block-000.safetensors"
    os.truncate(block, size if size >= 0 else block.stat().st_size + size)
    with pytest.raises(CaptureError, match=r"block-000\.safetensors is damaged"):
        CaptureReader(tmp_path / "c").tensor(0, "q", "in")


def test_a_block_that_lacks_a_tensor_is_damaged(tmp_path: Path) -> None:
    """The manifest promises what the block does not hold."""
    write_capture(tmp_path / "c")
    manifest = read_json(tmp_path / "c" / "manifest.json")
    manifest["where"]["9/q/in"] = "block-000.safetensors"
    write_json(tmp_path / "c" / "manifest.json", manifest)
    with pytest.raises(CaptureError, match=r"block-000\.safetensors is damaged: .*9/q/in"):
        CaptureReader(tmp_path / "c").tensor(9, "q", "in")


def test_missing_logits_are_named(tmp_path: Path) -> None:
    """They are a file of their own."""
    write_capture(tmp_path / "c")
    (tmp_path / "c" / "logits.safetensors").unlink()
    with pytest.raises(CaptureError, match=r"logits\.safetensors is missing"):
        CaptureReader(tmp_path / "c").first_logits()


@pytest.mark.parametrize(
    "text",
    ["", "{", '{"order": []}', "[]", "null", '"text"', '{"order": 1, "tokens": [], "logits_finite": []}', "\xff"],
)
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, text: str) -> None:
    """Whatever stands there, the file is named and no other exception escapes."""
    write_capture(tmp_path / "c")
    (tmp_path / "c" / "manifest.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CaptureError, match=r"manifest\.json is damaged: ") as e:
        CaptureReader(tmp_path / "c")
    assert e.value.hint == "run the capture again"


@pytest.mark.parametrize("where", [[], {"0/q/in": 3}])
def test_places_that_are_no_file_names_are_damage(tmp_path: Path, where: object) -> None:
    """The manifest may come from another machine."""
    write_capture(tmp_path / "c")
    manifest = read_json(tmp_path / "c" / "manifest.json")
    manifest["where"] = where
    write_json(tmp_path / "c" / "manifest.json", manifest)
    with pytest.raises(CaptureError, match=r"manifest\.json is damaged"):
        CaptureReader(tmp_path / "c")


@pytest.mark.parametrize("place", ["../other/block-000.safetensors", "/etc/passwd", ".."])
def test_a_manifest_cannot_point_outside_its_capture(tmp_path: Path, place: str) -> None:
    """A run directory from somebody else reads no file of mine."""
    write_capture(tmp_path / "c")
    write_capture(tmp_path / "other")
    manifest = read_json(tmp_path / "c" / "manifest.json")
    manifest["where"]["0/q/in"] = place
    write_json(tmp_path / "c" / "manifest.json", manifest)
    with pytest.raises(CaptureError):
        CaptureReader(tmp_path / "c").tensor(0, "q", "in")


@pytest.mark.parametrize(("text", "said"), [(None, "is missing"), ("{", "is damaged")])
def test_figures_that_cannot_be_read_are_one_sentence(tmp_path: Path, text: str | None, said: str) -> None:
    """stats.jsonl, too."""
    write_capture(tmp_path / "c")
    stats = tmp_path / "c" / "stats.jsonl"
    stats.unlink() if text is None else stats.write_text(text)
    with pytest.raises(CaptureError, match=said):
        list(CaptureReader(tmp_path / "c").stats())


WHOLE = '{"step": 0, "index": 0, "layer": "q", "path": "fp16"}'


@pytest.mark.parametrize("line", [f"{WHOLE} {WHOLE}", f"{WHOLE},", f"{WHOLE}]", f" {WHOLE[:-1]}", "", "[]", "1", "{}"])
def test_a_line_of_figures_is_one_call_and_nothing_else(tmp_path: Path, line: str) -> None:
    """Two on a line, something behind one, half of one, none, or another kind of value: damage, wherever it stands."""
    write_capture(tmp_path / "c")
    (tmp_path / "c" / "stats.jsonl").write_text(f"{WHOLE}\n{WHOLE} \r\n{WHOLE}", encoding="utf-8")
    assert list(CaptureReader(tmp_path / "c").stats()) == [json.loads(WHOLE)] * 3
    (tmp_path / "c" / "stats.jsonl").write_text(f"{WHOLE}\n{line}\n{WHOLE}\n", encoding="utf-8")
    with pytest.raises(CaptureError, match=r"stats\.jsonl is damaged"):
        list(CaptureReader(tmp_path / "c").stats())


def test_a_capture_is_not_written_over(tmp_path: Path) -> None:
    """Two jobs with one directory would mix their tensors."""
    write_capture(tmp_path / "c")
    with pytest.raises(CaptureError, match="c cannot be written: File exists"):
        CaptureWriter(tmp_path / "c")


def test_an_unwritable_place_is_one_sentence(tmp_path: Path) -> None:
    """The path and the system's own words."""
    (tmp_path / "file").write_text("")
    with pytest.raises(CaptureError, match=r"file/c cannot be written: Not a directory"):
        CaptureWriter(tmp_path / "file" / "c")


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: stands for a full disk, and needs no privileges."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_full_disk_is_one_sentence(tmp_path: Path, limit: int) -> None:
    """It names the block that did not fit, and leaves no file that looks whole."""
    writer = CaptureWriter(tmp_path / "c", block_bytes=10**4)
    with files_up_to(limit), pytest.raises(CaptureError) as e:
        writer._queue("0/a/in", torch.ones(10**4))
    assert str(e.value) == f"{tmp_path / 'c' / 'block-000.safetensors'} cannot be written: File too large"
    assert "--out" in str(e.value.hint)
    assert blocks(tmp_path / "c") in ([], ["block-000.safetensors.part"])


def test_a_disk_that_fills_with_the_last_file_leaves_the_capture_incomplete(tmp_path: Path) -> None:
    """Figures, logits and manifest can fail, too; a half-written manifest is none."""
    writer = CaptureWriter(tmp_path / "c")
    with files_up_to(0), pytest.raises(CaptureError, match=r"logits\.safetensors cannot be written"):
        writer.finish(EMPTY, torch.ones(10))
    with files_up_to(200), pytest.raises(CaptureError, match=r"manifest\.json cannot be written: File too large"):
        writer.finish(EMPTY, torch.ones(10))
    with pytest.raises(CaptureError, match="is missing"):
        CaptureReader(tmp_path / "c")
    writer._stats.write("x")
    with files_up_to(0), pytest.raises(CaptureError, match=r"stats\.jsonl cannot be written"):
        writer.close()


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    """What cannot be written leaves the old file as it was."""
    place = tmp_path / "run.json"
    write_json(place, {"state": "old"})
    with pytest.raises(TypeError):
        write_json(place, {"state": object()})
    assert json.loads(place.read_text()) == {"state": "old"}
