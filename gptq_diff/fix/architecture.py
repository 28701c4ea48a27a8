"""Where the joints of an architecture are. Only what was looked at is named here.

Llama, Mistral and Qwen2 (transformers' modeling_llama.py, modeling_mistral.py, modeling_qwen2.py) share one block:
norms that multiply by their weight alone, attention that is linear in its values, and down_proj reading act(gate) * up.
Gemma's norms multiply by one plus the weight, which no power of two passes through; Qwen2's larger relatives route
between experts; Phi's linears are fused. A new name needs a look at its code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import UsageError
from gptq_diff.fix.joints import Joint

NAMED = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM")


def joints_of(checkpoint: Checkpoint) -> list[Joint]:
    """Every joint in order of execution whose neighbours are all there; UsageError for an architecture not named.

    A linear that is not quantised has no scales to take a factor, so its joint is left out.
    """
    if checkpoint.architecture not in NAMED:
        raise UsageError(
            f"model fix does not know where {checkpoint.architecture} can be shifted: its norms, its attention and its "
            "MLP would have to be looked at first",
            f"it knows {', '.join(NAMED)}",
        )
    quantised = {spec.name for spec in checkpoint.layers}
    stored = set(checkpoint.tensor_names())
    return [
        joint
        for joint in _all(checkpoint)
        if quantised.issuperset(joint.consumers)
        and (joint.producer in stored if joint.is_norm else joint.producer in quantised)
    ]


def _all(checkpoint: Checkpoint) -> Iterator[Joint]:
    width = {spec.name: spec.in_features for spec in checkpoint.layers}
    blocks = sorted({int(name.split(".")[2]) for name in width if name.startswith("model.layers.")})
    for block in (f"model.layers.{number}" for number in blocks):
        attention, mlp = f"{block}.self_attn", f"{block}.mlp"
        qkv = tuple(f"{attention}.{part}_proj" for part in "qkv")
        yield _joint(f"{block}.input_layernorm.weight", qkv, width)
        values = _value_channels(checkpoint)
        if width.get(f"{attention}.o_proj") == len(values):
            yield Joint(f"{attention}.v_proj", (f"{attention}.o_proj",), values)
        both = (f"{mlp}.gate_proj", f"{mlp}.up_proj")
        yield _joint(f"{block}.post_attention_layernorm.weight", both, width)
        yield _joint(f"{mlp}.up_proj", (f"{mlp}.down_proj",), width)
    yield _joint("model.norm.weight", ("lm_head",), width)


def _joint(producer: str, consumers: tuple[str, ...], width: dict[str, int]) -> Joint:
    return Joint(producer, consumers, torch.arange(width.get(consumers[0], 1)))


def _value_channels(checkpoint: Checkpoint) -> torch.Tensor:
    """int64 [heads * head_dim]: the channel of v_proj that each channel of o_proj's input is made of.

    Heads in order share the value heads in order (repeat_kv in transformers' modeling_llama.py).
    """
    heads, hidden = _number(checkpoint, "num_attention_heads"), _number(checkpoint, "hidden_size")
    kv_heads = _number(checkpoint, "num_key_value_heads", heads)
    size = _number(checkpoint, "head_dim", hidden // heads)
    head = torch.arange(heads) // (heads // kv_heads)
    return (head[:, None] * size + torch.arange(size)).flatten()


def _number(checkpoint: Checkpoint, key: str, default: int | None = None) -> int:
    value = checkpoint.config.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, int) or value < 1:
        raise UsageError(f"config.json of {checkpoint.path} has no {key}, so its heads are unknown", "complete it")
    return value
