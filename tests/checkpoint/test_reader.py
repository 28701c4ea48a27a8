"""What an open checkpoint says and hands out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import CheckpointError
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import linear_tensors, quant_config, tiny, write_checkpoint


def test_layers_are_listed_with_their_facts(tmp_path: Path) -> None:
    """Names, shapes and settings come from headers and config, block by block."""
    with open_checkpoint(tiny(tmp_path)) as checkpoint:
        assert [spec.name for spec in checkpoint.layers] == [
            "model.layers.0.self_attn.q_proj",
            "model.layers.0.mlp.down_proj",
            "model.layers.1.self_attn.q_proj",
            "model.layers.1.mlp.down_proj",
        ]
        first = LayerSpec("model.layers.0.self_attn.q_proj", 64, 32, 4, 32, True, False, "gptq", True)
        assert checkpoint.layers[0] == first
        assert checkpoint.skipped == ()
        assert checkpoint.config["model_type"] == "tiny"
        assert "model.layers.1.norm.weight" in checkpoint.tensor_names()
        info = checkpoint.info()
    assert (info.architecture, info.bits, info.group_size, info.sym) == ("TinyForCausalLM", 4, 32, True)
    assert (info.desc_act, info.format, info.quantized_linears, info.path) == (False, "gptq", 4, str(tmp_path))


@pytest.mark.parametrize("shards", [1, 3])
def test_tensors_are_the_stored_ones(tmp_path: Path, shards: int) -> None:
    """packed() and tensor() give what was saved, from one file or from shards; a trivial g_idx becomes None."""
    stored = linear_tensors("a.0.fc1", 64, 32, seed=5, bias=True)
    with open_checkpoint(write_checkpoint(tmp_path, stored, shards=shards)) as checkpoint:
        linear = checkpoint.packed("a.0.fc1")
        assert isinstance(linear, PackedLinear)
        assert torch.equal(linear.qweight, stored["a.0.fc1.qweight"])
        assert torch.equal(linear.qzeros, stored["a.0.fc1.qzeros"])
        assert torch.equal(linear.scales, stored["a.0.fc1.scales"])
        assert linear.bias is not None
        assert torch.equal(linear.bias, stored["a.0.fc1.bias"])
        assert linear.g_idx is None
        assert torch.equal(checkpoint.tensor("a.0.fc1.g_idx"), stored["a.0.fc1.g_idx"])


def test_tensors_outlive_close_and_writing_to_one_leaves_the_file_alone(tmp_path: Path) -> None:
    """The map is private: copy on write."""
    checkpoint = open_checkpoint(tiny(tmp_path))
    before = (tmp_path / "model.safetensors").read_bytes()
    norm = checkpoint.tensor("model.layers.0.norm.weight")
    norm.fill_(3.0)
    checkpoint.close()
    assert norm.tolist() == [3.0] * 64
    assert (tmp_path / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8, torch.bool, torch.bfloat16, torch.float64])
def test_any_dtype_is_read_even_unaligned(tmp_path: Path, dtype: torch.dtype) -> None:
    """An odd header length shifts every tensor off its alignment; the values stay right."""
    values = torch.tensor([0, 1, 1, 0, 1], dtype=dtype)
    tensors = {**linear_tensors("a.0.fc1", 32, 32), "x": values}
    file = write_checkpoint(tmp_path, tensors) / "model.safetensors"
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    file.write_bytes((length + 1).to_bytes(8, "little") + data[8 : 8 + length] + b" " + data[8 + length :])
    with open_checkpoint(tmp_path) as checkpoint:
        assert torch.equal(checkpoint.tensor("x"), values)
        assert torch.equal(checkpoint.packed("a.0.fc1").qweight, tensors["a.0.fc1.qweight"])


def test_g_idx_that_reorders_is_handed_out(tmp_path: Path) -> None:
    """Under desc_act g_idx is stored per row; it is kept only where it says something."""
    g_idx = [row % 2 for row in range(64)]
    tensors = {**linear_tensors("a.0.fc1", 64, 32, g_idx=g_idx), **linear_tensors("a.0.fc2", 64, 32)}
    with open_checkpoint(write_checkpoint(tmp_path, tensors, quant_config(desc_act=True))) as checkpoint:
        assert all(spec.desc_act for spec in checkpoint.layers)
        shuffled = checkpoint.packed("a.0.fc1").g_idx
        assert shuffled is not None
        assert shuffled.tolist() == g_idx
        assert checkpoint.packed("a.0.fc2").g_idx is None


def test_group_size_minus_one_and_missing_g_idx(tmp_path: Path) -> None:
    """-1 is one group of all rows; GPTQ-for-LLaMa's files without g_idx are in order."""
    tensors = linear_tensors("a.0.fc1", 64, 32, group_size=-1)
    del tensors["a.0.fc1.g_idx"]
    with open_checkpoint(write_checkpoint(tmp_path, tensors, quant_config(group_size=-1, desc_act=True))) as checkpoint:
        assert (checkpoint.layers[0].group_size, checkpoint.layers[0].groups) == (64, 1)
        assert checkpoint.packed("a.0.fc1").g_idx is None


def test_rows_need_not_be_a_multiple_of_the_group(tmp_path: Path) -> None:
    """The last group may be short: 80 rows in groups of 32 are three groups."""
    with open_checkpoint(write_checkpoint(tmp_path, linear_tensors("a.0.fc1", 80, 32))) as checkpoint:
        assert checkpoint.layers[0].groups == 3
        assert checkpoint.packed("a.0.fc1").g_idx is None


@pytest.mark.parametrize(("bits", "v2"), [(2, False), (3, False), (4, True), (8, True)])
def test_every_width_and_format(tmp_path: Path, bits: int, v2: bool) -> None:
    """2, 3, 4 and 8 bits in v1 and v2, bfloat16 scales."""
    tensors = linear_tensors("a.0.fc1", 64, 32, bits=bits, v2=v2, dtype=torch.bfloat16)
    config = quant_config(bits=bits, checkpoint_format="gptq_v2" if v2 else "gptq")
    with open_checkpoint(write_checkpoint(tmp_path, tensors, config)) as checkpoint:
        (spec,) = checkpoint.layers
        assert (spec.bits, spec.in_features, spec.out_features) == (bits, 64, 32)
        assert spec.format == ("gptq_v2" if v2 else "gptq")


def test_old_autogptq_layout(tmp_path: Path) -> None:
    """quantize_config.json beside a config.json without quantisation, and a file named by model_file_base_name."""
    write_checkpoint(tmp_path, linear_tensors("a.0.fc1", 64, 32))
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").rename(tmp_path / "gptq_model-4bit-32g.safetensors")
    save_file({"adapter": torch.zeros(1)}, tmp_path / "other.safetensors")
    legacy = {"bits": 4, "group_size": 32, "sym": True, "model_file_base_name": "gptq_model-4bit-32g"}
    (tmp_path / "quantize_config.json").write_text(json.dumps(legacy))
    with open_checkpoint(tmp_path) as checkpoint:
        assert [spec.name for spec in checkpoint.layers] == ["a.0.fc1"]
        assert checkpoint.architecture == "unknown"


def test_nested_text_config(tmp_path: Path) -> None:
    """Multi-modal models keep quantization_config under text_config."""
    write_checkpoint(tmp_path, linear_tensors("a.0.fc1", 64, 32))
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"quantization_config": quant_config()}}))
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.layers) == 1


def test_code_of_a_checkpoint_is_never_touched(tmp_path: Path) -> None:
    """auto_map and a Python file beside it change nothing but needs_remote_code, with or without permission."""
    tiny(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    for trust in (False, True):
        with open_checkpoint(tmp_path, trust_remote_code=trust) as checkpoint:
            assert checkpoint.needs_remote_code
            assert checkpoint.trust_remote_code is trust
    assert not (tmp_path / "ran").exists()


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    """A wrong layer or tensor name is an error with the name in it, not a KeyError."""
    with open_checkpoint(tiny(tmp_path)) as checkpoint:
        with pytest.raises(CheckpointError, match=r"no quantised linear called 'model.layers.0.norm'"):
            checkpoint.packed("model.layers.0.norm")
        with pytest.raises(CheckpointError, match="no tensor called 'nothing'"):
            checkpoint.tensor("nothing")
