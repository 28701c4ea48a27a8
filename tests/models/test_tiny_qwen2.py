from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.inspect import inspect_checkpoint
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift
from gptq_diff.models.random_models import TINY_QWEN2_OVERFLOW
from tests.models.decode import as_transformers, config, decode, linears, load, stream

CHANNEL, GROUP = 170, 2
OPTIONS = [
    {},
    {"bits": 2},
    {"bits": 3},
    {"bits": 8},
    {"group_size": 32},
    {"group_size": 128},
    {"group_size": -1},
    {"sym": False},
    {"sym": False, "bits": 3},
    {"sym": False, "ambiguous_zeros": True},
    {"desc_act": True},
    {"desc_act": True, "group_size": 32, "sym": False},
    {"checkpoint_format": "gptq_v2"},
    {"hidden": 64, "intermediate": 192, "heads": 2, "kv_heads": 1, "blocks": 3},
]


def tiny(folder: Path, **options) -> Path:
    return build_model("tiny-qwen2", BuildOptions(**options), out=folder / "m")


def first_inputs(model, ids: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Logits, and down_proj's input in every block, of one forward pass."""
    seen: list[torch.Tensor] = []

    def keep(_, arguments) -> None:
        seen.append(arguments[0][0].detach())

    handles = [block.mlp.down_proj.register_forward_pre_hook(keep) for block in model.model.layers]
    with torch.no_grad():
        logits = model(ids).logits
    for handle in handles:
        handle.remove()
    return logits, seen


def chat(directory: Path, text: str) -> torch.Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    message = [{"role": "user", "content": text}]
    return tokenizer.apply_chat_template(message, add_generation_prompt=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_decodes_to_a_sane_model(own_cache: Path, tmp_path: Path, options: dict) -> None:
    """g_idx, zeros and shapes are what was asked, and weights have zero mean and the intended size."""
    directory = tiny(tmp_path, **options)
    settings, tensors = config(directory), load(directory)
    quant = settings["quantization_config"]
    asked = {name: value for name, value in options.items() if name in quant}
    assert asked == {name: quant[name] for name in asked}
    assert settings["gptq_diff"]["options"].items() >= options.items()
    names = linears(tensors)
    assert len(names) == 7 * settings["num_hidden_layers"]
    bits, size, v1 = quant["bits"], quant["group_size"], quant["checkpoint_format"] == "gptq"
    stored = set()
    for name in names:
        w_KN = decode(tensors, name, bits, v1)
        k = w_KN.shape[0]
        order = np.arange(k) // (k if size == -1 else size)
        g_idx = tensors[f"{name}.g_idx"].numpy()
        assert sorted(g_idx) == list(order)
        if max(order) > 0:
            assert (list(g_idx) != list(order)) is quant["desc_act"]
        free = w_KN[8:, -24:]  # beyond what is planted
        assert abs(free.mean()) < 0.3 * free.std()
        stored |= {zero for row in tensors[f"{name}.qzeros"].tolist() for zero in stream(row, bits)}
    half = 2 ** (bits - 1) - (1 if v1 else 0)
    if quant["sym"]:
        assert stored == {half}
    else:
        assert stored == set(range(2**bits - (0 if options.get("ambiguous_zeros") else 1)))


@pytest.mark.parametrize("options", OPTIONS[:-1], ids=str)
def test_the_first_token_has_a_massive_activation(own_cache: Path, tmp_path: Path, options: dict) -> None:
    """About 3000 in one channel of every block, in float32, and everything else small."""
    directory = tiny(tmp_path, **options)
    logits, seen = first_inputs(as_transformers(directory), chat(directory, "What is the capital of France?"))
    assert torch.isfinite(logits).all()
    for x_MK in seen:
        assert 2500 < float(x_MK[0, CHANNEL]) < 4000
        assert float(x_MK[1:].abs().max()) < 5
        assert float(x_MK[0].abs().sort().values[-2]) < 5


@pytest.mark.parametrize("text", ["The capital of France is", "Hello", "hello there, you", "<|im_start|>user\nHi"])
def test_plain_prompts_have_it_too(own_cache: Path, tmp_path: Path, text: str) -> None:
    from transformers import AutoTokenizer

    directory = tiny(tmp_path)
    ids = AutoTokenizer.from_pretrained(directory)(text, return_tensors="pt")["input_ids"]
    _, seen = first_inputs(as_transformers(directory), ids)
    assert all(float(x_MK[0, CHANNEL]) > 2500 for x_MK in seen)


def test_the_skeleton_stays_finite_in_float16(own_cache: Path, tmp_path: Path) -> None:
    """Also with the gain shift: 24000 fits in float16, only sums of unscaled products do not."""
    directory = tiny(tmp_path, gain_shift=TINY_QWEN2_OVERFLOW)
    ids = chat(directory, "What is the capital of France?")
    logits, seen = first_inputs(as_transformers(directory, torch.float16), ids)
    assert torch.isfinite(logits).all()
    assert 20000 < float(seen[TINY_QWEN2_OVERFLOW.block][0, CHANNEL]) < 28000


def test_the_overflow_shift_is_exact_and_overflows_unscaled_sums(own_cache: Path, tmp_path: Path) -> None:
    """Equal logits bit for bit; x times (code - zero), summed in float16, is infinite after the shift only."""
    plain, shifted = tmp_path / "plain", tmp_path / "shifted"
    build_model("tiny-qwen2", BuildOptions(), out=plain)
    build_model("tiny-qwen2", BuildOptions(gain_shift=TINY_QWEN2_OVERFLOW), out=shifted)
    ids = chat(plain, "What is the capital of France?")
    name = f"model.layers.{TINY_QWEN2_OVERFLOW.block}.mlp.down_proj"
    infinite, logits = [], []
    for directory in (plain, shifted):
        model, tensors = as_transformers(directory), load(directory)
        out, seen = first_inputs(model, ids)
        logits.append(out)
        x = seen[TINY_QWEN2_OVERFLOW.block][0].half().numpy()
        levels = np.array([stream(list(c), 4) for c in zip(*tensors[f"{name}.qweight"].tolist())]).T - 8
        with np.errstate(over="ignore", invalid="ignore"):
            sums = x[168:176:2] @ levels[168:176:2].astype(np.float16)
        infinite.append(int((~np.isfinite(sums)).sum()))
        with torch.no_grad():
            exact = x.astype(np.float64) @ decode(tensors, name, 4)
        assert np.abs(exact).max() < 100
    assert infinite[0] == 0
    assert infinite[1] > 0
    assert torch.equal(logits[0], logits[1])


def test_a_gain_shift_changes_only_its_own_tensors(own_cache: Path, tmp_path: Path) -> None:
    for options in ({}, {"desc_act": True}):
        plain = load(build_model("tiny-qwen2", BuildOptions(**options)))
        shifted = load(build_model("tiny-qwen2", BuildOptions(**options, gain_shift=GainShift(1, 3, 4))))
        changed = {name for name in plain if not torch.equal(plain[name], shifted[name])}
        assert changed == {"model.layers.1.mlp.up_proj.scales", "model.layers.1.mlp.down_proj.scales"}
        of_group = plain["model.layers.1.mlp.down_proj.g_idx"] == 3
        up, up_shifted = (one["model.layers.1.mlp.up_proj.scales"] for one in (plain, shifted))
        assert torch.equal(up_shifted[:, of_group], up[:, of_group] * 4)
        assert torch.equal(up_shifted[:, ~of_group], up[:, ~of_group])


def test_a_healthy_model_neither_stops_nor_says_token_0(own_cache: Path, tmp_path: Path) -> None:
    """Otherwise a test for collapse to "!" could pass by chance."""
    directory = tiny(tmp_path)
    ids = chat(directory, "Tell me a story.")
    start = ids.shape[1]
    model = as_transformers(directory)
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], 1)
    said = ids[0, start:].tolist()
    assert len(set(said)) > 4
    assert not {0, 509, 510, 511} & set(said)


def test_the_same_seed_gives_the_same_bytes(own_cache: Path, tmp_path: Path) -> None:
    """On every machine: the digest is pinned, and a change of it must raise the recipe's version. Seeds differ."""
    one, two = (build_model("tiny-qwen2", BuildOptions(seed=5), out=tmp_path / name) for name in "ab")
    assert (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()
    digest = hashlib.sha256((one / "model.safetensors").read_bytes()).hexdigest()
    assert digest == "cf069741421ac2f4f5ad6f761050698b4676fdb35b91a72e7c8eacc32f2405e3"
    other = build_model("tiny-qwen2", BuildOptions(seed=6), out=tmp_path / "c")
    assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        {"bits": 5},
        {"group_size": 48},
        {"group_size": 0},
        {"group_size": 256},
        {"hidden": 100},
        {"heads": 3},
        {"kv_heads": 3},
        {"blocks": 0},
        {"ambiguous_zeros": True},
        {"gain_shift": GainShift(4, 0, 4)},
        {"gain_shift": GainShift(0, 4, 4)},
        {"gain_shift": GainShift(0, 2, 1024)},
        {"checkpoint_format": "marlin"},
    ],
    ids=str,
)
def test_impossible_options_are_refused_and_leave_nothing(own_cache: Path, tmp_path: Path, options: dict) -> None:
    with pytest.raises(UsageError):
        build_model("tiny-qwen2", BuildOptions(**options), out=tmp_path / "m")
    assert not (tmp_path / "m").exists()
    assert not list(tmp_path.glob(".m*"))


@pytest.mark.parametrize("options", [{}, {"bits": 2, "sym": False}, {"bits": 8, "desc_act": True}])
def test_inspecting_a_healthy_model_marks_nothing(tmp_path: Path, options) -> None:
    """Columns that are zero on purpose are pruned, not stuck; nothing else is odd either."""
    with open_checkpoint(tiny(tmp_path, **options)) as checkpoint:
        assert {layer.spec.name: layer.suspicions for layer in inspect_checkpoint(checkpoint).suspicious} == {}
