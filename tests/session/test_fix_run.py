"""`model fix` as a whole: the fast path agrees afterwards, the reference's logits stay, and what cannot be is said."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.errors import CannotJudge, GptqDiffError, NothingFound, UsageError
from gptq_diff.fix.architecture import joints_of
from gptq_diff.fix.check import check_same
from gptq_diff.fix.plan import Move, move_by_hand
from gptq_diff.fix.shifted import Shifted
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions, GainShift
from gptq_diff.models.random_models import TINY_QWEN2_OVERFLOW
from gptq_diff.session.captured_inputs import inputs_of_prompts, inputs_of_run
from gptq_diff.session.fix_run import Fixed, fix_by_hand, fix_for_headroom
from gptq_diff.session.prepare import PromptSource
from tests.checkpoint.build import linear_tensors, quant_config, write_checkpoint
from tests.session.in_process import FIRST, SECOND, asked, result, run

pytestmark = pytest.mark.usefixtures("here")
OVERFLOWS = "model.layers.1.mlp.down_proj"
FORMATS: dict[str, dict[str, Any]] = {
    "4 bit": {},
    "4 bit, desc_act": {"desc_act": True},
    "4 bit, one group a column": {"group_size": -1},
    "4 bit, groups within heads, v2, asymmetric": {"group_size": 32, "sym": False, "checkpoint_format": "gptq_v2"},
    "3 bit": {"bits": 3},
    "2 bit": {"bits": 2},
}


def fixed(model: Path, place: Path, bits: float = 2.0, prompts: Sequence[Sequence[int]] = (FIRST, SECOND)) -> Fixed:
    """Fixed for the inputs of a run of the reference alone."""
    if not (place / "run").exists():
        run(asked(model, "hf-fp32", prompts, capture="full"), place / "run")
    with open_checkpoint(model) as checkpoint, inputs_of_run(place / "run", checkpoint) as inputs:
        return fix_for_headroom(checkpoint, inputs, bits, place / "fixed")


def logits(place: Path, prompt: str = "p1") -> torch.Tensor:
    return RunDir(place).reader("hf-fp32", prompt).first_logits()


def test_the_overflow_is_gone(shifted_model: Path, tmp_path: Path) -> None:
    """The tiny model that overflows on the fast path agrees there once it is fixed; the reference's logits stay."""
    made = fixed(shifted_model, tmp_path)
    before = run(asked(shifted_model, "sim-exllama", (FIRST, SECOND)), tmp_path / "before")
    after = run(asked(tmp_path / "fixed", "sim-exllama", (FIRST, SECOND), capture="full"), tmp_path / "after")
    assert result(before, "sim-exllama").status == "overflow"
    assert {r.status for r in after.results} == {"agree"}
    assert min(row.bits for row in after.headroom if row.arithmetic == "lane") >= 2
    for prompt in ("p1", "p2"):
        assert torch.equal(logits(tmp_path / "after", prompt), logits(tmp_path / "run", prompt))
    (move,) = (move for move in made.moves if move.consumers == (OVERFLOWS,))
    assert (move.groups, move.reason) == (((TINY_QWEN2_OVERFLOW.group,),), "")
    assert move.gain == 2.0 ** -math.ceil(2 - move.bits)  # type: ignore[operator]


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_every_joint_in_every_format(options: dict[str, Any], tmp_path: Path) -> None:
    """Much headroom is asked for, so that norms, values and up are all shifted: every chain gets it, and the logits of
    the reference are what they were, to the last bit or a few units of float32."""
    model = build_model("tiny-qwen2", BuildOptions(blocks=2, **options), tmp_path / "model")
    made = fixed(model, tmp_path, 13.0)
    shifted = {move.producer.removesuffix(".weight").rpartition(".")[2] for move in made.moves if move.gain < 1}
    assert shifted == {"input_layernorm", "v_proj", "post_attention_layernorm", "up_proj"}
    lanes = {one.layer: one.after["lane"] for one in made.layers}
    refused = {name for move in made.moves if move.gain != move.wanted for name in move.consumers}
    assert all(bits >= 13 for name, bits in lanes.items() if name not in refused)
    after = run(asked(tmp_path / "fixed", "hf-fp32", (FIRST, SECOND), capture="full"), tmp_path / "after")
    assert {r.status for r in after.results} == {"agree"}
    for prompt in ("p1", "p2"):
        old, new = logits(tmp_path / "run", prompt), logits(tmp_path / "after", prompt)
        assert float((new - old).abs().max()) <= 1e-5 * float(old.abs().max())


def test_the_least_that_suffices(shifted_model: Path, tmp_path: Path) -> None:
    """Each shift leaves its chains the headroom, and half of it would not; nothing else is shifted."""
    made = fixed(shifted_model, tmp_path, 4.0)
    for move in made.moves:
        assert move.bits is not None
        assert 4 <= move.bits - math.log2(move.gain) < 5
    short = {one.layer for one in made.layers if one.before.get("lane", 99) < 4}
    assert {name for move in made.moves for name in move.consumers} >= short


def test_what_no_shift_changes_is_listed(shifted_model: Path, tmp_path: Path) -> None:
    """Results are what they are: a linear that is held by its result is told with how far it comes."""
    made = fixed(shifted_model, tmp_path, 13.0)
    short = {one.layer: one for one in made.short}
    held = short[OVERFLOWS]
    assert held.after["result"] < 13
    assert held.after["result"] == pytest.approx(held.before["result"], abs=1e-3)
    assert short.keys() == {one.layer for one in made.layers if any(bits < 13 for bits in one.after.values())}


def test_scales_that_cannot_take_it(small_model: Path, tmp_path: Path) -> None:
    """Where a factor would make a scale subnormal the next smaller shift is made, and tensor and factor are named."""
    made = fixed(small_model, tmp_path, 20.0)
    held = [move for move in made.moves if move.reason]
    assert held
    assert all(move.wanted < move.gain <= 1 for move in held)
    assert all("would overflow, lose bits or become subnormal times" in move.reason for move in held)


def test_the_record(shifted_model: Path, tmp_path: Path) -> None:
    """config.json says what was shifted; only those tensors differ, and every other file is the same."""
    made = fixed(shifted_model, tmp_path)
    out = tmp_path / "fixed"
    config = json.loads((out / "config.json").read_text())
    record = config.pop("gptq_diff_fix")
    assert config == json.loads((shifted_model / "config.json").read_text())
    assert [shift["gain"] for shift in record["shifts"]] == [move.gain for move in made.moves]
    with open_checkpoint(shifted_model) as old, open_checkpoint(out) as new:
        assert record["from"] == old.fingerprint()
        differ = {name for name in old.tensor_names() if not torch.equal(old.tensor(name), new.tensor(name))}
    wanted = {f"{move.producer}.scales" for move in made.moves} | {
        f"{n}.scales" for m in made.moves for n in m.consumers
    }
    assert differ == wanted
    for file in shifted_model.iterdir():
        if file.name not in ("config.json", "model.safetensors"):
            assert (out / file.name).read_bytes() == file.read_bytes()


def test_by_hand(shifted_model: Path, small_model: Path, tmp_path: Path) -> None:
    """The inverse of the shift that was built in gives the very tensors of the model without it."""
    inverse = GainShift(TINY_QWEN2_OVERFLOW.block, TINY_QWEN2_OVERFLOW.group, 1 / TINY_QWEN2_OVERFLOW.gain)
    with open_checkpoint(shifted_model) as checkpoint:
        made = fix_by_hand(checkpoint, [inverse], tmp_path / "back")
    assert made.decoded == 2
    with open_checkpoint(small_model) as sound, open_checkpoint(tmp_path / "back") as back:
        assert all(torch.equal(sound.tensor(name), back.tensor(name)) for name in sound.tensor_names())


@pytest.mark.parametrize(
    ("shift", "said"),
    [
        (GainShift(7, 0, 0.5), "no quantised model.layers.7.mlp.up_proj"),
        (GainShift(1, 9, 0.5), "has groups 0 to 3 only"),
        (GainShift(1, 0, 2.0**-30), "would overflow, lose bits or become subnormal"),
    ],
)
def test_by_hand_refused(shift: GainShift, said: str, small_model: Path, tmp_path: Path) -> None:
    """With the reason, and nothing is written."""
    with open_checkpoint(small_model) as checkpoint, pytest.raises(UsageError, match=said):
        fix_by_hand(checkpoint, [shift], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_to_shift(small_model: Path, tmp_path: Path) -> None:
    """A model with the headroom already is left alone."""
    with pytest.raises(NothingFound, match="already"):
        fixed(small_model, tmp_path, -5.0)
    assert not (tmp_path / "fixed").exists()


def test_the_runs_tensors_must_be_there(shifted_model: Path, small_model: Path, tmp_path: Path) -> None:
    """A run that dropped them, or one of another checkpoint, is refused."""
    run(asked(shifted_model, "hf-fp16", capture="stats"), tmp_path / "run")
    with pytest.raises(CannotJudge, match="left them out"):
        fixed(shifted_model, tmp_path)
    with open_checkpoint(small_model) as other, pytest.raises(UsageError, match="not this checkpoint"):
        inputs_of_run(tmp_path / "run", other).__enter__()


def test_prompts_in_place_of_a_run(shifted_model: Path, tmp_path: Path) -> None:
    """The reference runs on them, and the same shifts are found."""
    stdin = io.BytesIO(json.dumps([{"id": "p1", "token_ids": list(FIRST)}]).encode())
    source = PromptSource("-", None, chat_template=True)
    with ExitStack() as stack:
        checkpoint = stack.enter_context(open_checkpoint(shifted_model))
        inputs = stack.enter_context(inputs_of_prompts(shifted_model, source, stdin, lambda *_: None))
        made = fix_for_headroom(checkpoint, inputs, 2.0, tmp_path / "out")
    assert made.moves == fixed(shifted_model, tmp_path, prompts=(FIRST,)).moves


def test_the_output_must_be_free(shifted_model: Path, tmp_path: Path) -> None:
    (tmp_path / "fixed").mkdir()
    (tmp_path / "fixed" / "mine").touch()
    with pytest.raises(UsageError, match="is not empty"):
        fixed(shifted_model, tmp_path)


class TestCheck:
    """The proof itself: it passes what is right and names what is not."""

    def test_a_wrong_tensor_is_named(self, shifted_model: Path, tmp_path: Path) -> None:
        """The last bit of one scale, norm, embedding or zero point: each is found."""
        made = fixed(shifted_model, tmp_path)
        for name in (f"{OVERFLOWS}.scales", "model.norm.weight", "model.embed_tokens.weight", f"{OVERFLOWS}.qzeros"):
            with open_checkpoint(shifted_model) as old, open_checkpoint(tmp_path / "fixed") as new:
                flip(new, name)
                with pytest.raises(GptqDiffError, match="not the same function at"):
                    check_same(old, new, joints_of(old), [move for move in made.moves if move.gain != 1])
                flip(new, name)

    def test_a_shift_that_was_not_made(self, shifted_model: Path) -> None:
        """The unchanged checkpoint is not what moves would have made of it."""
        with open_checkpoint(shifted_model) as old:
            joints = joints_of(old)
            made = fix_by_hand_moves(old)
            with pytest.raises(GptqDiffError, match="not the same function at"):
                check_same(old, old, joints, made)


def flip(checkpoint: Checkpoint, name: str) -> None:
    """Invert the last bit of a tensor's first number, in the file."""
    entry = checkpoint.entry(name)
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        byte = file.read(1)[0]
        file.seek(entry.start)
        file.write(bytes([byte ^ 1]))


def fix_by_hand_moves(checkpoint: Checkpoint) -> list[Move]:
    joint = next(joint for joint in joints_of(checkpoint) if joint.consumers == (OVERFLOWS,))
    return [move_by_hand(Shifted(checkpoint), joint, 0, 0.5)]


def test_shards_keep_their_names(tmp_path: Path) -> None:
    """A checkpoint in two shards with biases stays one in two shards, its bias shifted with its scales."""
    tensors = {}
    for part, k, n in (("gate_proj", 64, 128), ("up_proj", 64, 128), ("down_proj", 128, 64)):
        name = f"model.layers.0.mlp.{part}"
        tensors.update(linear_tensors(name, k, n, seed=k + n, bias=True))
    model = write_checkpoint(tmp_path / "m", tensors, quant_config(), shards=2)
    config = json.loads((model / "config.json").read_text())
    config |= {"architectures": ["LlamaForCausalLM"], "num_attention_heads": 2, "hidden_size": 64}
    (model / "config.json").write_text(json.dumps(config))
    with open_checkpoint(model) as checkpoint:
        fix_by_hand(checkpoint, [GainShift(0, 1, 0.5)], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(p.name for p in model.iterdir())
    with open_checkpoint(model) as old, open_checkpoint(tmp_path / "out") as new:
        before, after = (c.packed("model.layers.0.mlp.up_proj") for c in (old, new))
        factors = torch.ones(128).index_fill_(0, torch.arange(32, 64), 0.5)
        assert torch.equal(after.bias, before.bias * factors)
        assert torch.equal(after.scales, before.scales * factors)
