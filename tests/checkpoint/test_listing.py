"""Order, overrides, experts, lm_head; and that listing reads headers only."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest
import torch

from gptq_diff.checkpoint.config import parse_quantisation
from gptq_diff.checkpoint.listing import natural_key
from gptq_diff.checkpoint.module_quant import LayerQuant
from gptq_diff.checkpoint.reader import open_checkpoint
from tests.checkpoint.build import linear_tensors, quant_config, write_checkpoint


def shuffled(names: list[str]) -> list[str]:
    return random.Random(1).sample(names, len(names))


def test_natural_order() -> None:
    """Block 2 before block 10; q, k, v, o, gate, up, down within a block; lm_head after everything."""
    leaves = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    leaves += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    expected = [f"model.layers.{block}.{leaf}" for block in (0, 2, 10) for leaf in leaves] + ["lm_head"]
    assert sorted(shuffled(expected), key=natural_key) == expected
    gpt2 = ["h.0.attn.c_attn", "h.0.attn.c_proj", "h.0.mlp.c_fc", "h.0.mlp.c_proj"]
    assert sorted(shuffled(gpt2), key=natural_key) == gpt2


def test_unknown_leaves_still_have_one_order() -> None:
    """Names outside the known architectures stand before the last linear of their half, by name."""
    names = ["l.0.attn.q_proj", "l.0.attn.bar", "l.0.attn.foo", "l.0.attn.o_proj"]
    names += ["l.0.mlp.up_proj", "l.0.mlp.bar", "l.0.mlp.down_proj", "l.1.mlp.bar"]
    assert sorted(shuffled(names), key=natural_key) == names


def test_dynamic_overrides_as_gptqmodel_reads_them() -> None:
    """The first key that matches decides; `+:` and no prefix mean the same; `-:` excludes; match is at the start."""
    raw = quant_config(
        dynamic={
            r"-:model\.layers\.0\.": {},
            r"+:.*\.down_proj": {"bits": 8, "group_size": 64, "unknown": 1},
            r".*\.1\.": {"sym": False, "desc_act": True},
            "down_proj": {"bits": 2},
        }
    )
    quant = parse_quantisation(raw, "config.json")
    assert quant.for_module("model.layers.0.mlp.down_proj") is None
    assert quant.for_module("model.layers.1.mlp.down_proj") == LayerQuant(8, 64, sym=True, desc_act=False)
    assert quant.for_module("model.layers.1.mlp.up_proj") == LayerQuant(4, 32, sym=False, desc_act=True)
    assert quant.for_module("model.layers.2.mlp.up_proj") == LayerQuant(4, 32, sym=True, desc_act=False)


@pytest.mark.parametrize("dynamic", [None, False, {}])
def test_no_overrides(dynamic: object) -> None:
    """GPTQModel writes null where there are none."""
    assert parse_quantisation(quant_config(dynamic=dynamic), "config.json").overrides == ()


def test_defaults_of_old_files() -> None:
    """AutoGPTQ before 0.7 wrote no quant_method and no checkpoint_format; transformers' defaults hold for sym."""
    quant = parse_quantisation({"bits": 4, "group_size": 128}, "quantize_config.json")
    assert quant.base == LayerQuant(4, 128, sym=True, desc_act=False)
    assert quant.format == "gptq"
    assert parse_quantisation({**quant_config(), "format": "gptq_v2"}, "config.json").format == "gptq_v2"


def test_overrides_excluded_modules_and_a_quantised_lm_head_in_one_checkpoint(tmp_path: Path) -> None:
    """8 bits in down_proj, a plain o_proj excluded by `-:`, the rest 4 bits, lm_head quantised and last."""
    tensors = {
        **linear_tensors("lm_head", 32, 64),
        **linear_tensors("model.layers.0.mlp.down_proj", 64, 32, bits=8, group_size=-1),
        **linear_tensors("model.layers.0.self_attn.q_proj", 64, 32),
        "model.layers.0.self_attn.o_proj.weight": torch.zeros(32, 32),
    }
    dynamic = {r"+:.*down_proj": {"bits": 8, "group_size": -1}, r"-:.*o_proj": {}}
    with open_checkpoint(
        write_checkpoint(tmp_path, tensors, quant_config(dynamic=dynamic, lm_head=True))
    ) as checkpoint:
        listed = [(spec.name, spec.bits, spec.group_size) for spec in checkpoint.layers]
    assert listed == [
        ("model.layers.0.self_attn.q_proj", 4, 32),
        ("model.layers.0.mlp.down_proj", 8, 64),
        ("lm_head", 4, 32),
    ]


def test_experts_are_skipped_by_name_with_the_reason(tmp_path: Path) -> None:
    """Routed experts are skipped, stacked ones too; a shared expert is an ordinary linear."""
    tensors = {
        **linear_tensors("model.layers.0.mlp.experts.7.up_proj", 64, 32),
        **linear_tensors("model.layers.0.mlp.shared_expert.up_proj", 64, 32),
        "model.layers.1.mlp.experts.qweight": torch.zeros(4, 8, 32, dtype=torch.int32),
    }
    with open_checkpoint(write_checkpoint(tmp_path, tensors)) as checkpoint:
        assert [spec.name for spec in checkpoint.layers] == ["model.layers.0.mlp.shared_expert.up_proj"]
        names = [skipped.name for skipped in checkpoint.skipped]
        assert names == ["model.layers.0.mlp.experts.7.up_proj", "model.layers.1.mlp.experts"]
        assert all(skipped.reason.startswith("MoE expert: ") for skipped in checkpoint.skipped)
        assert checkpoint.info().quantized_linears == 3


def sparse_checkpoint(directory: Path, shards: int, layers: int, k: int, n: int) -> int:
    """Headers as of a 32B model and no data: holes that take no disk; returns the bytes that the files claim."""
    config = {"architectures": ["X"], "quantization_config": quant_config(group_size=128)}
    (directory / "config.json").write_text(json.dumps(config))
    parts = {"qweight": ("I32", (k // 8, n)), "qzeros": ("I32", (k // 128, n // 8)), "scales": ("F16", (k // 128, n))}
    weight_map: dict[str, str] = {}
    total = 0
    for shard in range(shards):
        file, header, position = f"model-{shard}.safetensors", {}, 0
        for layer in range(shard, layers, shards):
            for suffix, (dtype, shape) in parts.items():
                size = shape[0] * shape[1] * (2 if dtype == "F16" else 4)
                name = f"model.layers.{layer}.mlp.down_proj.{suffix}"
                header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
                position += size
                weight_map[name] = file
        text = json.dumps(header).encode()
        with (directory / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            stream.truncate(8 + len(text) + position)
        total += position
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return total


def test_a_32b_checkpoint_is_listed_from_its_headers(tmp_path: Path) -> None:
    """18 GB in sparse files: listing takes under a second and allocates next to nothing; one layer maps lazily."""
    claimed = sparse_checkpoint(tmp_path, shards=8, layers=256, k=27648, n=5120)
    assert claimed > 18e9
    before = anonymous_bytes()
    start = time.perf_counter()
    with open_checkpoint(tmp_path) as checkpoint:
        seconds = time.perf_counter() - start
        assert len(checkpoint.layers) == 256
        linear = checkpoint.packed("model.layers.255.mlp.down_proj")
        assert linear.qweight[3000, :4].tolist() == [0, 0, 0, 0]
        assert anonymous_bytes() - before < 20_000_000
    assert seconds < 1


def test_reading_a_tensor_stays_in_the_page_cache(tmp_path: Path) -> None:
    """Touching all of a mapped 64 MB tensor adds no anonymous memory: its pages are the file's."""
    tensors = {**linear_tensors("a.0.fc1", 32, 32), "big": torch.ones(16_000_000)}
    write_checkpoint(tmp_path, tensors)
    del tensors
    with open_checkpoint(tmp_path) as checkpoint:
        before = anonymous_bytes()
        big = checkpoint.tensor("big")
        assert float(big.max()) == 1.0
        assert anonymous_bytes() - before < 8_000_000


def anonymous_bytes() -> int:
    """RssAnon of this process: memory that belongs to no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
