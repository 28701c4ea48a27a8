"""Which channels are tied together, and where an architecture's joints are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.fix.architecture import joints_of
from gptq_diff.fix.joints import Joint, tied_channels
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions
from gptq_diff.records import LayerSpec


def consumer(g_idx: list[int], name: str = "o") -> PackedLinear:
    """A linear of which only the groups of its rows matter."""
    none = torch.empty(0)
    spec = LayerSpec(name, len(g_idx), 8, 4, 2, sym=True, desc_act=True, format="gptq", has_bias=False)
    return PackedLinear(spec, none, none, none, torch.tensor(g_idx), None)


def tied(column_K: list[int], *consumers: list[int]) -> list[tuple[list[int], tuple[tuple[int, ...], ...]]]:
    """(channels of the producer, groups by consumer) of every tied set."""
    joint = Joint("v", tuple("abc"[: len(consumers)]), torch.tensor(column_K))
    found = tied_channels(joint, tuple(map(consumer, consumers)))
    return [(one.columns.nonzero().flatten().tolist(), one.groups) for one in found]


def test_a_group_moves_as_one() -> None:
    assert tied([0, 1, 2, 3], [0, 0, 1, 1]) == [([0, 1], ((0,),)), ([2, 3], ((1,),))]


def test_desc_act_follows_g_idx() -> None:
    """A group's channels lie anywhere."""
    assert tied([0, 1, 2, 3], [1, 0, 0, 1]) == [([0, 3], ((1,),)), ([1, 2], ((0,),))]


def test_consumers_with_other_groups_tie_more() -> None:
    """What one of them keeps together cannot be parted by the other."""
    assert tied([0, 1, 2, 3], [0, 0, 1, 1], [0, 1, 1, 2]) == [([0, 1, 2, 3], ((0, 1), (0, 1, 2)))]


def test_heads_that_share_a_value_head_are_tied() -> None:
    """Two query heads read each value channel; groups of one head's half tie the same half of both heads."""
    assert tied([0, 1, 0, 1, 2, 3, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]) == [
        ([0], ((0, 2),)), ([1], ((1, 3),)), ([2], ((4, 6),)), ([3], ((5, 7),)),
    ]  # fmt: skip


def test_a_group_across_value_heads_ties_them() -> None:
    """One group over heads of two value heads leaves one set."""
    assert tied([0, 0, 1, 1], [0, 1, 1, 2]) == [([0, 1], ((0, 1, 2),))]


def test_the_joints_of_a_block(tiny_model: Path) -> None:
    """Both norms, values and up, in order of execution; value channels as repeat_kv lays the heads out."""
    with open_checkpoint(tiny_model) as checkpoint:
        joints = joints_of(checkpoint)
    block = "model.layers.2"
    assert [(j.producer, len(j.consumers)) for j in joints if j.producer.startswith(block)] == [
        (f"{block}.input_layernorm.weight", 3),
        (f"{block}.self_attn.v_proj", 1),
        (f"{block}.post_attention_layernorm.weight", 2),
        (f"{block}.mlp.up_proj", 1),
    ]
    values = next(j for j in joints if j.producer.endswith("v_proj")).column_K
    repeated = torch.arange(64).view(2, 1, 32).expand(2, 2, 32).reshape(-1)  # 2 value heads of 32, each for 2 heads
    assert torch.equal(values, repeated)
    assert str(joints[0]) == "model.layers.0.input_layernorm -> self_attn.q_proj, self_attn.k_proj, self_attn.v_proj"


def test_one_group_for_all(tmp_path: Path) -> None:
    """With group_size -1 every joint has one tied set."""
    model = build_model("tiny-qwen2", BuildOptions(blocks=1, group_size=-1), tmp_path / "m")
    with open_checkpoint(model) as checkpoint:
        for joint in joints_of(checkpoint):
            assert len(tied_channels(joint, tuple(map(checkpoint.packed, joint.consumers)))) == 1


@pytest.mark.parametrize("architecture", ["GemmaForCausalLM", "Qwen2MoeForCausalLM", "PhiForCausalLM"])
def test_others_are_refused_by_name(architecture: str, small_model: Path, tmp_path: Path) -> None:
    """Nobody looked at their code; Gemma's norms would not even let a factor through."""
    shutil.copytree(small_model, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": [architecture]}))
    with open_checkpoint(tmp_path / "m") as checkpoint, pytest.raises(UsageError, match=architecture):
        joints_of(checkpoint)


def test_what_is_not_quantised_has_no_joint(small_model: Path, tmp_path: Path) -> None:
    """Without scales there is nothing to divide: a joint goes when any of its linears is left out of quantisation."""
    with open_checkpoint(small_model) as checkpoint:
        checkpoint.layers = tuple(s for s in checkpoint.layers if s.name != "model.layers.1.self_attn.k_proj")
        producers = {joint.producer for joint in joints_of(checkpoint)}
    assert "model.layers.1.input_layernorm.weight" not in producers
    assert "model.layers.1.self_attn.v_proj" in producers
