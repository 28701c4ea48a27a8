"""Everything suspicious that can be planted in a layer is counted, and a sound layer is left in peace."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from gptq_diff.checkpoint.inspect import LayerInspection, inspect_checkpoint, inspect_linear
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.checkpoint.stuck import pruned_groups, stuck_groups
from gptq_diff.checkpoint.zeros import ambiguous_zeros
from gptq_diff.cli.model_inspect import inspect
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors, quant_config, tiny, write_checkpoint


def sound(bits: int = 4, group_size: int = 32, k: int = 64, n: int = 32, *, sym: bool = True) -> PackedLinear:
    """A linear of random codes with nothing odd about it."""
    spec = LayerSpec("x", k, n, bits, group_size, sym, False, "gptq", False)
    codes = torch.randint(0, 2**bits, (k, n), generator=torch.Generator().manual_seed(3))
    zeros = torch.full((spec.groups, n), 2 ** (bits - 1))
    scales = torch.full((spec.groups, n), 0.01, dtype=torch.float16)
    return PackedLinear(spec, pack_rows(codes, bits), pack_zeros(zeros, bits, "gptq"), scales, None, None)


def test_a_sound_layer_has_no_suspicions() -> None:
    """No false alarm at any width."""
    for bits in (2, 3, 4, 8):
        assert inspect_linear(sound(bits)).suspicions == ()


@pytest.mark.parametrize(
    ("value", "field", "words"),
    [
        (float("nan"), "nan_scales", "1 NaN scales"),
        (float("-inf"), "inf_scales", "1 infinite scales"),
        (0.0, "zero_scales", "1 zero scales"),
        (2.0**-20, "subnormal_scales", "1 subnormal scales"),
        (-0.5, "negative_scales", "1 negative scales"),
    ],
)
def test_odd_scales(value: float, field: str, words: str) -> None:
    """One odd scale among 64 is counted under its own name; the range is of the finite ones."""
    linear = sound()
    linear.scales[1, 7] = value
    found = inspect_linear(linear)
    assert getattr(found, field) == 1
    assert found.suspicions[0] == words
    assert found.scale_max == pytest.approx(0.01, rel=1e-3)


def test_bfloat16_scales_are_judged_by_their_own_range() -> None:
    """2^-20 is subnormal in float16 and ordinary in bfloat16."""
    linear = sound()
    linear = replace(linear, scales=torch.full_like(linear.scales, 2.0**-20, dtype=torch.bfloat16))
    assert inspect_linear(linear).subnormal_scales == 0
    linear.scales[0, 0] = 2.0**-130
    assert inspect_linear(linear).subnormal_scales == 1


def test_no_finite_scale_at_all() -> None:
    """The range is None, not an error."""
    linear = sound()
    linear.scales.fill_(float("nan"))
    found = inspect_linear(linear)
    assert (found.scale_min, found.scale_max, found.nan_scales) == (None, None, 64)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("order", ["words", "codes", "shuffled"])
def test_stuck_groups_are_found_exactly(bits: int, order: str) -> None:
    """A group with one value throughout is found, one with a single other code is not; by words and by codes."""
    group_size = {"words": 32, "codes": 28, "shuffled": 32}[order]
    linear = sound(bits, group_size, k=96)
    codes = torch.randint(0, 2**bits, (96, 32), generator=torch.Generator().manual_seed(4))
    rows = torch.arange(96)
    group_K = rows // group_size
    if order == "shuffled":
        group_K = group_K[torch.randperm(96, generator=torch.Generator().manual_seed(5))]
        linear = replace(linear, g_idx=group_K.to(torch.int32))
    codes[group_K == 1, 9] = 2**bits - 1
    codes[group_K == 0, 3] = 0
    codes[group_K == 2, 5] = 1
    codes[rows[group_K == 2][-1], 5] = 0
    linear = replace(linear, qweight=pack_rows(codes, bits))
    expected = torch.zeros(linear.spec.groups, 32, dtype=torch.bool)
    for group in range(linear.spec.groups):
        for n in range(32):
            expected[group, n] = len(set(codes[group_K == group, n].tolist())) == 1
    assert bool(expected[1, 9])
    assert bool(expected[0, 3])
    assert not bool(expected[2, 5])
    assert torch.equal(stuck_groups(linear), expected)
    assert inspect_linear(linear).stuck_groups == int(expected.sum())


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pruned_groups_are_no_suspicion_and_stuck_ones_beside_them_are(bits: int, shuffled: bool) -> None:
    """All codes the zero point is a weight of zero; all codes another value, or 0 with a zero point of 0, is not."""
    linear = sound(bits, k=96, sym=False)
    spec = replace(linear.spec, format="gptq_v2")
    codes = torch.randint(0, 2**bits, (96, 32), generator=torch.Generator().manual_seed(4))
    zeros = torch.full((3, 32), 2 ** (bits - 1))
    zeros[1, 4], zeros[2, 6] = 1, 0
    group_K = torch.arange(96) // 32
    if shuffled:
        group_K = group_K[torch.randperm(96, generator=torch.Generator().manual_seed(5))]
    codes[group_K == 0, 2] = 2 ** (bits - 1)
    codes[group_K == 1, 4] = 1
    g_idx = group_K.to(torch.int32) if shuffled else None
    pruned = replace(
        linear, spec=spec, g_idx=g_idx, qweight=pack_rows(codes, bits), qzeros=pack_zeros(zeros, bits, "gptq_v2")
    )
    assert pruned_groups(pruned, stuck_groups(pruned)).nonzero().tolist() == [[0, 2], [1, 4]]
    assert not any("groups" in words for words in inspect_linear(pruned).suspicions)
    codes[group_K == 2, 6] = 0
    codes[group_K == 0, 9] = 0
    stuck = replace(pruned, qweight=pack_rows(codes, bits))
    assert inspect_linear(stuck).pruned_groups == 2
    assert "2 of 96 groups with all codes at one value" in inspect_linear(stuck).suspicions


def test_a_group_without_rows_is_not_stuck() -> None:
    """g_idx may leave a group empty."""
    linear = replace(sound(), g_idx=torch.ones(64, dtype=torch.int32))
    assert not bool(stuck_groups(linear)[0].any())


def test_ambiguous_zeros_are_v1s_largest_stored_value() -> None:
    """Zero 16 in 4-bit v1 is counted; in v2 the same bits are a plain 15."""
    zeros = torch.full((2, 32), 8)
    zeros[1, 4:7] = 16
    linear = sound(sym=False)
    linear = replace(linear, qzeros=pack_zeros(zeros, 4, "gptq"))
    assert ambiguous_zeros(linear).nonzero().tolist() == [[1, 4], [1, 5], [1, 6]]
    assert inspect_linear(linear).suspicions == ("3 ambiguous zero points (stored 15)",)
    v2 = replace(linear, spec=replace(linear.spec, format="gptq_v2"))
    assert inspect_linear(v2).ambiguous_zeros == 0


def test_zero_points_off_centre_matter_for_symmetric_layers_only() -> None:
    """A v2 file called v1 has all its zeros one too high: said for sym, normal otherwise."""
    off = pack_zeros(torch.full((2, 32), 9), 4, "gptq")
    assert inspect_linear(replace(sound(), qzeros=off)).suspicions == ("64 zero points off 8 though symmetric",)
    assert inspect_linear(replace(sound(sym=False), qzeros=off)).suspicions == ()


def test_rows_reordered_without_desc_act_and_a_broken_bias() -> None:
    """Engines that trust desc_act=false do not read g_idx."""
    g_idx = torch.arange(64, dtype=torch.int32) % 2
    found = inspect_linear(replace(sound(), g_idx=g_idx, bias=torch.tensor([float("nan")] * 2 + [0.0] * 30)))
    assert found.suspicions == ("2 NaN or infinite biases", "g_idx reorders rows though desc_act is false")


def planted(path: Path) -> Path:
    """A checkpoint with one bad layer, an expert and a quantize_config.json that disagrees."""
    tensors = {
        **linear_tensors("model.layers.0.fc1", 64, 32),
        **linear_tensors("model.layers.1.fc1", 64, 32, seed=1),
        **linear_tensors("model.layers.1.experts.0.fc1", 64, 32),
    }
    tensors["model.layers.1.fc1.scales"][0, 0] = float("nan")
    write_checkpoint(path, tensors)
    (path / "quantize_config.json").write_text(json.dumps(quant_config(group_size=128)))
    return path


def test_report_of_a_checkpoint(tmp_path: Path) -> None:
    """Layers, suspicious ones, skipped ones, and notes on the settings."""
    with open_checkpoint(planted(tmp_path)) as checkpoint:
        report = inspect_checkpoint(checkpoint)
    assert [layer.spec.name for layer in report.suspicious] == ["model.layers.1.fc1"]
    assert [skipped.name for skipped in report.skipped] == ["model.layers.1.experts.0.fc1"]
    assert report.notes == (
        "quantize_config.json says group_size 128 and config.json 32: engines that read the former go wrong",
    )
    assert isinstance(report.layers[0], LayerInspection)
    (tmp_path / "quantize_config.json").write_text("{")
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.notes()[0].startswith("engines that read quantize_config.json go wrong: ")


def shown(path: Path, *, as_json: bool = False) -> str:
    console = Console(file=io.StringIO(), width=200, color_system=None)
    inspect(str(path), as_json=as_json, console=console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_table(tmp_path: Path) -> None:
    """One row a layer with its shape and scale range; what is odd stands in the row; then skipped, notes, a count."""
    text = shown(planted(tmp_path))
    (row,) = [line for line in text.splitlines() if "model.layers.1.fc1" in line]
    for cell in ("64", "32", "4", "1 NaN scales"):
        assert cell in row
    assert "skipped model.layers.1.experts.0.fc1: MoE expert" in text
    assert "note: quantize_config.json says group_size 128" in text
    assert "2 quantised linears, 1 of them suspicious, 1 skipped" in text


def test_json_goes_to_stdout_and_nothing_to_the_console(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Valid JSON even with NaN scales, for programs."""
    assert shown(planted(tmp_path), as_json=True) == ""
    report = json.loads(capsys.readouterr().out)
    assert report["model"]["quantized_linears"] == 3
    assert report["layers"][1]["name"] == "model.layers.1.fc1"
    assert report["layers"][1]["nan_scales"] == 1
    assert report["layers"][1]["suspicions"] == ["1 NaN scales"]
    assert report["skipped"][0]["reason"].startswith("MoE expert")


def test_names_cannot_write_to_the_terminal(tmp_path: Path) -> None:
    """Escape sequences and Rich markup in a tensor's name are shown as text."""
    evil = "model.layers.0.[red]\x1b[2Jx"
    text = shown(write_checkpoint(tmp_path, linear_tensors(evil, 64, 32)))
    assert "\x1b" not in text
    assert "[red]\N{REPLACEMENT CHARACTER}[2Jx" in text


def test_note_on_remote_code(tmp_path: Path) -> None:
    """A checkpoint that brings Python files is said to, and they are left alone."""
    config = json.loads((tiny(tmp_path) / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "x.Y"}}))
    assert "note: config.json points to Python files of the checkpoint" in shown(tmp_path)
