"""Bad input: each is a CheckpointError with one sentence that says what, where and what to do."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import CheckpointError
from tests.checkpoint.build import linear_tensors, quant_config, tiny, write_checkpoint

Q = "model.layers.0.self_attn.q_proj"


def refusal(path: Path) -> str:
    """The sentence, after checking that it is one: no newline, no bare class name, exit code 2."""
    with pytest.raises(CheckpointError) as caught, open_checkpoint(path) as checkpoint:
        for spec in checkpoint.layers:
            checkpoint.packed(spec.name)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert len(sentence) > 30
    assert caught.value.exit_code == 2
    return sentence


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object], **config: object) -> Path:
    """A sound checkpoint, changed: `change` gets its tensors."""
    tensors = {**linear_tensors(Q, 64, 32, bias=True), "norm": torch.ones(3)}
    change(tensors)
    return write_checkpoint(path, tensors, quant_config(**config))


def set_config(path: Path, text: str | bytes) -> None:
    (path / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("quantisation", "words"),
    [
        (quant_config(bits=5), "bits 5, and GPTQ packs 2, 3, 4 or 8"),
        (quant_config(bits=True), "bits True"),
        (quant_config(bits="4"), "bits '4'"),
        (quant_config(bits=...), "lacks 'bits'"),
        (quant_config(group_size=...), "lacks 'group_size'"),
        (quant_config(group_size=0), "group_size 0"),
        (quant_config(group_size=32.0), "group_size 32.0"),
        (quant_config(sym="yes"), "sym 'yes'"),
        (quant_config(desc_act=1), "desc_act 1"),
        (quant_config(checkpoint_format="marlin"), "checkpoint_format 'marlin'"),
        (quant_config(is_marlin_format=True), "checkpoint_format 'marlin'"),
        (quant_config(checkpoint_format=["gptq"]), r"checkpoint_format \['gptq'\]"),
        (quant_config(quant_method="awq"), "quant_method 'awq'.*AWQ packs codes along N"),
        (quant_config(quant_method="compressed-tensors"), "compressed-tensors stores weight_packed"),
        (quant_config(quant_method="auto-round"), "AutoRound has packing formats of its own"),
        (quant_config(quant_method="bitsandbytes"), "'bitsandbytes', and only 'gptq'"),
        ({"w_bit": 4, "q_group_size": 128, "zero_point": True}, "quant_method 'awq'"),
        ({"config_groups": {}, "format": "pack-quantized"}, "quant_method 'compressed-tensors'"),
        (quant_config(dynamic=["x"]), "'dynamic' that is no object"),
        (quant_config(dynamic={"+:(": {"bits": 8}}), r"dynamic' key '\+:\(', which is no valid regex"),
        (quant_config(dynamic={"+:.*": 8}), "not an object of settings"),
        (quant_config(dynamic={"+:.*": {"bits": 7}}), r"dynamic key '\+:\.\*', says bits 7"),
        (quant_config(dynamic={"-:.*q_proj": {}}), f"excludes {Q} from quantisation"),
        (quant_config(bits=8), "qzeros has shape .* check those values in config.json"),
        (quant_config(bits=3), "3-bit codes do not fill those words without padding"),
        (quant_config(group_size=64), "group_size 64; check those values"),
        (quant_config(group_size=-1), "group_size -1; check those values"),
    ],
)
def test_quantisation_settings(tmp_path: Path, quantisation: dict[str, object], words: str) -> None:
    """Settings that are wrong, unsupported, or do not fit the tensors."""
    write_checkpoint(tmp_path, linear_tensors(Q, 64, 32), quantisation)
    sentence = refusal(tmp_path)
    assert re.search(words, sentence), sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "config.json is not valid JSON"),
        ("[1]", "must be a JSON object, not list"),
        (b"\xff\xfe{}", "config.json is not valid JSON"),
        ("[" * 100_000, "config.json is not valid JSON"),
        ('{"a": ' + "1" * 5000 + "}", "config.json is not valid JSON"),
        ("{}", "not a GPTQ checkpoint: config.json has no quantization_config"),
        ('{"quantization_config": null}', "not a GPTQ checkpoint"),
    ],
)
def test_config_files(tmp_path: Path, text: str | bytes, words: str) -> None:
    """A config.json that is damaged, hostile or of an unquantised model."""
    tiny(tmp_path)
    set_config(tmp_path, text)
    assert words in refusal(tmp_path)


def test_places_that_are_no_model(tmp_path: Path) -> None:
    """No directory, no config.json, no weights, weights in a pickle, a GGUF file, several files without an index."""
    assert "there is no directory" in refusal(tmp_path / "nothing")
    assert "has no config.json" in refusal(tmp_path)
    tiny(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.rename(tmp_path / "first.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "second.safetensors")
    assert "2 safetensors files (first.safetensors, second.safetensors) and no index" in refusal(tmp_path)
    (tmp_path / "first.safetensors").unlink()
    (tmp_path / "second.safetensors").unlink()
    assert "has no *.safetensors file" in refusal(tmp_path)
    (tmp_path / "model.gguf").touch()
    assert "is a GGUF model" in refusal(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04never opened")
    assert "pytorch_model.bin, a pickle, which can run code and is never opened" in refusal(tmp_path)


def header_of(file: Path) -> tuple[dict[str, dict[str, object]], bytes]:
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def write_raw(file: Path, header: object, data: bytes) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_damaged_safetensors(tmp_path: Path) -> None:
    """Truncated anywhere, too long, with a broken header, or with offsets that lie: named, and never read past."""
    file = tiny(tmp_path) / "model.safetensors"
    whole = file.read_bytes()
    header, data = header_of(file)
    for length in (0, 5):
        file.write_bytes(whole[:length])
        assert "not a whole safetensors file" in refusal(tmp_path)
    file.write_bytes(whole[:100])
    assert "its header claims" in refusal(tmp_path)
    file.write_bytes(whole[:-1])
    assert f"is truncated: {len(whole) - 1} bytes instead of {len(whole)}" in refusal(tmp_path)
    file.write_bytes(whole + b"x")
    assert "longer than its header says" in refusal(tmp_path)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    assert "git-lfs pointers" in refusal(tmp_path)
    write_raw(file, b"{not json", data)
    assert "the safetensors header of" in refusal(tmp_path)
    write_raw(file, {"x": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, b"1234")
    assert "broken entry for 'x'" in refusal(tmp_path)
    write_raw(file, {"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234")
    assert "gives 'x' 4 bytes where F32 [2] needs 8" in refusal(tmp_path)
    overlap = {
        "x": {"dtype": "U8", "shape": [2], "data_offsets": [0, 2]},
        "y": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
    }
    write_raw(file, overlap, b"123")
    assert "a hole or an overlap before 'y'" in refusal(tmp_path)
    write_raw(file, header, data)
    with open_checkpoint(tmp_path) as checkpoint:
        assert len(checkpoint.layers) == 4


def test_shards(tmp_path: Path) -> None:
    """A missing shard, an index that lies about a shard, one that leaves the directory, an empty one, two of them."""
    tiny(tmp_path, shards=2)
    index_file = tmp_path / "model.safetensors.index.json"
    sound = json.loads(index_file.read_text())
    second = tmp_path / "model-00002-of-00002.safetensors"
    second.rename(tmp_path / "elsewhere")
    assert "lacks the shard model-00002-of-00002.safetensors" in refusal(tmp_path)
    (tmp_path / "elsewhere").rename(second)

    def with_map(changes: dict[str, object]) -> str:
        index_file.write_text(json.dumps({"weight_map": {**sound["weight_map"], **changes}}))
        return refusal(tmp_path)

    assert "says that 'ghost' lies in model-00002-of-00002.safetensors, which lacks it" in with_map(
        {"ghost": second.name}
    )
    for outside in ("../model.safetensors", str(second), "model.bin", 3):
        assert "which is not a safetensors file beside it" in with_map({"ghost": outside})
    index_file.write_text("{}")
    assert "has no weight_map" in refusal(tmp_path)
    index_file.rename(tmp_path / "a.safetensors.index.json")
    (tmp_path / "b.safetensors.index.json").write_text("{}")
    assert "has 2 indexes" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{Q}.scales"), f"{Q} has a qweight and no scales"),
        (lambda t: t.pop(f"{Q}.qzeros"), f"{Q} has a qweight and no qzeros"),
        (lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"].float()}), "scales is stored as F32"),
        (lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"].long()}), "qweight is stored as I64"),
        (lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"].flatten()}), "qweight has shape [256]"),
        (lambda t: t.update({f"{Q}.qweight": torch.zeros(0, 32, dtype=torch.int32)}), "qweight has shape [0, 32]"),
        (lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][:, :30].clone()}), "do not fill those words"),
        (lambda t: t.update({f"{Q}.qweight": torch.zeros(64, 4, dtype=torch.int32)}), "do not fill those words"),
        (lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"][:1].clone()}), "scales has shape [1, 32] where [2, 32]"),
        (lambda t: t.update({f"{Q}.bias": t[f"{Q}.bias"][:31].clone()}), "bias has shape [31] where [32]"),
        (lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"][:32].clone()}), "g_idx has shape [32] where [64]"),
        (lambda t: t[f"{Q}.g_idx"].__setitem__(5, 2), "g_idx names groups 0 to 2, and the layer has groups 0 to 1"),
        (lambda t: t[f"{Q}.g_idx"].__setitem__(5, -1), "g_idx names groups -1 to 1"),
        (
            lambda t: [t.pop(name) for name in list(t) if name != "norm"],
            "no tensor of the checkpoint is called *.qweight",
        ),
    ],
)
def test_tensors_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], words: str
) -> None:
    """Shapes, dtypes and group indexes that contradict one another or the config."""
    assert words in refusal(rewrite(tmp_path, change))


def test_desc_act_without_g_idx(tmp_path: Path) -> None:
    """Reordered rows whose order is not stored cannot be dequantised."""
    path = rewrite(tmp_path, lambda t: t.pop(f"{Q}.g_idx"), desc_act=True)
    assert f"says desc_act, and {Q} has no g_idx" in refusal(path)


def test_unreadable_files(tmp_path: Path) -> None:
    """A directory where a file should be: the operating system's reason in a sentence."""
    tiny(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "model.safetensors").mkdir()
    assert "cannot be read: Is a directory" in refusal(tmp_path)


def test_dtype_that_torch_does_not_have(tmp_path: Path) -> None:
    """A tensor of an unknown dtype does not hinder the listing; asking for it is refused by name."""
    tiny(tmp_path)
    file = tmp_path / "model.safetensors"
    header, data = header_of(file)
    end = len(data)
    header["odd"] = {"dtype": "F4", "shape": [3], "data_offsets": [end, end + 2]}
    write_raw(file, header, data + b"ab")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(CheckpointError, match="odd has the dtype F4"):
        checkpoint.tensor("odd")
