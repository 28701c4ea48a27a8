"""What the benchmark at 32B's shape does to a model is undone, and what it writes down can be read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import torch

from benchmarks.peers import table as peers_table
from benchmarks.thirty_two import table
from benchmarks.thirty_two.planted import planted
from benchmarks.thirty_two.slices import first_blocks
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.models.build import build_model
from gptq_diff.models.gain_shift import shift_linears
from gptq_diff.models.options import BuildOptions, GainShift


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return build_model("tiny-qwen2", BuildOptions(blocks=3), tmp_path / "model")


def digest(directory: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in directory.iterdir()}


def test_a_planted_shift_is_exact_and_taken_back(model: Path) -> None:
    """Inside, both linears are those that the gain shift makes; outside, after an error, every byte is as before."""
    before, shift = digest(model), GainShift(1, 2, 8)
    names = [f"model.layers.1.mlp.{part}_proj" for part in ("up", "down")]
    with open_checkpoint(model) as checkpoint:
        wanted = [p.scales.clone() for p in shift_linears(*(checkpoint.packed(n) for n in names), shift)]
    with pytest.raises(RuntimeError, match="on the way"), planted(model, shift) as layer:
        with open_checkpoint(model) as checkpoint:
            assert all(torch.equal(checkpoint.packed(n).scales, w) for n, w in zip(names, wanted))
        assert layer == names[1] and digest(model) != before
        raise RuntimeError("on the way")
    assert digest(model) == before


def test_a_slice_is_the_first_blocks_of_the_same_files(model: Path, tmp_path: Path) -> None:
    """Fewer linears, the same tensors, nothing copied."""
    part = first_blocks(model, 2, tmp_path / "part")
    with open_checkpoint(part) as few, open_checkpoint(model) as whole:
        assert [s.name for s in few.layers] == [s.name for s in whole.layers if ".layers.2." not in s.name]
        name = few.layers[-1].name
        assert torch.equal(few.packed(name).qweight, whole.packed(name).qweight)
    assert all(f.is_symlink() for f in part.glob("*.safetensors"))


def row(wall: float, **more: object) -> dict[str, object]:
    seconds = {"hf-fp32": {"generate": wall / 4}, "sim-exllama": {"generate": wall / 2}}
    return {
        "wall_seconds": wall, "cpu_seconds": wall, "judged_seconds": wall / 5, "seconds": seconds,
        "worker_bytes": 2**30, "parent_bytes": 2**29, **more,
    }  # fmt: skip


def test_results_become_tables_and_a_picture() -> None:
    """A run within its limit and one beyond it, the planted case, the slices; the picture is XML with a line each."""
    results = {
        "floors": {"packed_bytes": 16e9, "read_rate": 8e9, "peak": 1.6e11, "peak_rows": 6e10, "rows": 37},
        "hf-fp32": row(80.0, most_seconds=120, floor_seconds=16.0, of_floor=5.0),
        "targeted": row(200.0, most_seconds=180, floor_seconds=20.0, of_floor=10.0),
        "planted": row(90.0, planted="model.layers.7.mlp.down_proj", right=True, verdict="It breaks there.",
                       compared={"sim-exllama": 1}),
        "slices": [{"blocks": 2, **row(10.0)}, {"blocks": 64, **row(200.0)}],
    }  # fmt: skip
    text = table.table(results)
    assert "| `hf-fp32` alone | 80 | <= 120 | ok | 80 | 16 | 5.0x |" in text and "| <= 180 | MISSED |" in text
    assert "Planted at `model.layers.7.mlp.down_proj`: found there by both simulators, 1 linears simulated." in text
    assert text.count("\n| 2 |") == text.count("\n| 64 |") == 1 and f"({table.PICTURE})" in text
    drawn = ET.fromstring(table.picture(results))
    assert len(drawn.findall(".//{*}polyline")) == 6


def test_tools_become_a_table() -> None:
    """A tool that compares, one that does not, one that was not run."""
    ran = {"tool": "a", "versions": "a 1", "ratio": 2.0, "added_bytes": 3e6, "written_bytes": 4e6, "names": "nothing"}
    text = peers_table.table({"tools": [
        {**ran, "compare_seconds": 2.0, "compared_bytes": 8e6}, {**ran, "compare_seconds": None, "compared_bytes": 0},
        {"tool": "b", "failed": "no environment"},
    ]})  # fmt: skip
    assert "| a | a 1 | 2.00 | 3 | 4.0 | 4 MB/s (2.00 s) | nothing |" in text and "not run: no environment" in text
