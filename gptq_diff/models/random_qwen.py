"""Random models of Qwen2's architecture, written as they are generated."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.errors import UsageError
from gptq_diff.models.ahead import in_order, threads_here
from gptq_diff.models.base import Progress
from gptq_diff.models.config_files import write_configs
from gptq_diff.models.gain_shift import shift_linears
from gptq_diff.models.massive import ATTENTION_RMS, LEVEL, MEAN, MLP_RMS, OWN, first_token_rms, plan_for
from gptq_diff.models.options import BuildOptions, QuantFormat
from gptq_diff.models.packed_tensors import linear_data, linear_plans, tensor_data
from gptq_diff.models.qwen_tokenizer import openers, qwen_tokenizer
from gptq_diff.models.random_linear import random_linear
from gptq_diff.models.random_qwen_shape import QwenShape
from gptq_diff.models.random_rows import embedding_rows, head_rows
from gptq_diff.models.tensor_file import TensorData, TensorPlan, write_tensors
from gptq_diff.models.tokenizer_files import write_tokenizer

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

CONTEXT = 32768
LOGITS_RMS = 3.0
_BIAS_RMS = 0.1
# Output rms of every linear for inputs of rms 1. The MLP's product silu(gate) * up has rms 0.064 for gate and up of
# 0.35; o_proj's input has that of v.
_V_RMS, _GATE_RMS, _PRODUCT_RMS = 0.5, 0.35, 0.064
_GAINS = {
    "self_attn.q_proj": 1.0,
    "self_attn.k_proj": 1.0,
    "self_attn.v_proj": _V_RMS,
    "self_attn.o_proj": ATTENTION_RMS / _V_RMS,
    "mlp.gate_proj": _GATE_RMS,
    "mlp.up_proj": _GATE_RMS,
    "mlp.down_proj": MLP_RMS / _PRODUCT_RMS,
}


@dataclasses.dataclass(frozen=True)
class RandomQwen:
    """A recipe: the name, its default shapes and quantisation, and the version of what it writes."""

    name: str
    version: int
    shape: QwenShape
    bits: int
    group_size: int

    def resolve(self, options: BuildOptions) -> BuildOptions:
        """Fill in this model's defaults; refuse what cannot be built."""
        quant, shape = self._quant(options), self._shape(options)
        shape.check_groups(quant.group_size)
        shift = options.gain_shift
        if shift is not None and not 0 <= shift.block < shape.blocks:
            raise UsageError(f"gain shift {shift}: this model has blocks 0 to {shape.blocks - 1} only")
        shapes = {name: getattr(shape, name) for name in ("hidden", "intermediate", "blocks", "heads", "kv_heads")}
        return BuildOptions(**dataclasses.asdict(quant), **shapes, seed=options.seed or 0, gain_shift=shift)

    def write(self, directory: Path, options: BuildOptions, sources: Path, progress: Progress) -> None:  # noqa: ARG002
        """Generate and write; nothing is downloaded, and in memory are as many linears as there are threads at work."""
        quant, shape = self._quant(options), self._shape(options)
        plans = list(_plans(shape, quant))
        write_tensors(directory, plans, _data(shape, quant, options, progress))
        special = shape.first_special
        generation = {"bos_token_id": special, "pad_token_id": special, "eos_token_id": [special + 2, special]}
        write_configs(directory, _architecture(shape), {**generation, "do_sample": False}, quant)
        write_tokenizer(directory, qwen_tokenizer(special, CONTEXT))

    def _quant(self, options: BuildOptions) -> QuantFormat:
        return QuantFormat.resolve(options, bits=self.bits, group_size=self.group_size)

    def _shape(self, options: BuildOptions) -> QwenShape:
        wanted = {name: getattr(options, name) for name in ("hidden", "intermediate", "blocks", "heads", "kv_heads")}
        return dataclasses.replace(self.shape, **{name: value for name, value in wanted.items() if value is not None})


def _plans(shape: QwenShape, quant: QuantFormat) -> Iterator[TensorPlan]:
    yield TensorPlan("model.embed_tokens.weight", "F16", (shape.vocabulary, shape.hidden))
    for block in range(shape.blocks):
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield TensorPlan(f"model.layers.{block}.{norm}.weight", "F16", (shape.hidden,))
        for spec in shape.linears(block, quant).values():
            yield from linear_plans(spec)
    yield TensorPlan("model.norm.weight", "F16", (shape.hidden,))
    yield TensorPlan("lm_head.weight", "F16", (shape.vocabulary, shape.hidden))


def _data(shape: QwenShape, quant: QuantFormat, options: BuildOptions, progress: Progress) -> Iterator[TensorData]:
    seed = options.seed or 0
    progress("generating the embeddings")
    opening = openers(qwen_tokenizer(shape.first_special, CONTEXT))
    threads = threads_here()
    yield TensorData("model.embed_tokens.weight", in_order(embedding_rows(shape, opening, seed), threads))
    for made in in_order(_blocks(shape, quant, options, progress), threads):
        yield from made
    yield tensor_data("model.norm.weight", torch.ones(shape.hidden, dtype=torch.float16))
    progress("generating the output head")
    yield TensorData("lm_head.weight", in_order(head_rows(shape, LOGITS_RMS, seed), threads))


Making = Callable[[], "list[TensorData]"]


def _blocks(shape: QwenShape, quant: QuantFormat, options: BuildOptions, progress: Progress) -> Iterator[Making]:
    """Norms and linears in the order of the plans; each is made by itself, but for the two that a gain shift joins."""
    for block in range(shape.blocks):
        progress(f"generating block {block + 1} of {shape.blocks}")
        yield partial(_norms, shape, quant, block)
        shift = options.gain_shift
        shifted = () if shift is None or shift.block != block else ("mlp.up_proj", "mlp.down_proj")
        for part in shape.linears(block, quant):
            if part not in shifted:
                yield partial(_linears, shape, quant, options, block, (part,))
        if shifted:
            yield partial(_linears, shape, quant, options, block, shifted)


def _norms(shape: QwenShape, quant: QuantFormat, block: int) -> list[TensorData]:
    ones = torch.ones(shape.hidden, dtype=torch.float16)
    before_mlp = ones.clone()
    before_mlp[[OWN, MEAN, LEVEL]] = first_token_rms(shape, block, quant.bits)
    return [
        tensor_data(f"model.layers.{block}.input_layernorm.weight", ones),
        tensor_data(f"model.layers.{block}.post_attention_layernorm.weight", before_mlp),
    ]


def _linears(
    shape: QwenShape, quant: QuantFormat, options: BuildOptions, block: int, parts: tuple[str, ...]
) -> list[TensorData]:
    """One linear, or up_proj and down_proj with the gain shift."""
    specs = shape.linears(block, quant)
    made: list[PackedLinear] = []
    for part in parts:
        plan = plan_for(part, specs[part], shape, block)
        made.append(random_linear(specs[part], quant, plan, options.seed or 0, _GAINS[part], _BIAS_RMS))
    if len(parts) == 2 and options.gain_shift is not None:
        made = list(shift_linears(made[0], made[1], options.gain_shift))
    return [data for linear in made for data in linear_data(linear)]


def _architecture(shape: QwenShape) -> dict[str, object]:
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.blocks,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "max_window_layers": shape.blocks,
        "use_sliding_window": False,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": False,
        "use_cache": True,
        "bos_token_id": shape.first_special,
        "eos_token_id": shape.first_special + 2,
    }
