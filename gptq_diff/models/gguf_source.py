"""A Llama model in a GGUF file, read as Hugging Face names it.

transformers reads GGUF models too, but asks for `accelerate` and takes 25 s for this one; the `gguf` package alone
dequantises it in 1.5 s. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gptq_diff.errors import UsageError

BLOCK_TENSORS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass(frozen=True)
class GgufVocabulary:
    """A byte-level BPE vocabulary as GGUF keeps it.

    tokens: by id; merges: pairs written with a space between, best first; special: ids of control tokens.
    """

    tokens: list[str]
    merges: list[str]
    special: list[int]
    chat_template: str


class GgufLlama:
    """An open GGUF file of llama architecture; tensors are memory-mapped and dequantised one at a time."""

    def __init__(self, path: Path) -> None:
        try:
            import gguf
        except ImportError:
            raise UsageError(
                "reading the model's GGUF file needs the package `gguf`", hint="pip install 'gptq-diff[models]'"
            ) from None
        self._dequantize = gguf.quants.dequantize
        reader = gguf.GGUFReader(path)
        self._fields = reader.fields
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    def number(self, key: str) -> float:
        """A number of the metadata, for example `llama.block_count`."""
        return float(self._value(key))

    def count(self, key: str) -> int:
        """An integer of the metadata."""
        return int(self._value(key))

    def vocabulary(self) -> GgufVocabulary:
        """The tokenizer's data."""
        kinds: Sequence[int] = self._value("tokenizer.ggml.token_type")
        return GgufVocabulary(
            tokens=list(self._value("tokenizer.ggml.tokens")),
            merges=list(self._value("tokenizer.ggml.merges")),
            special=[token for token, kind in enumerate(kinds) if kind == 3],  # 3: control token
            chat_template=str(self._value("tokenizer.chat_template")),
        )

    def tensor(self, name: str) -> torch.Tensor:
        """A weight in float32, [N, K] for linears."""
        found = self._tensors[f"{name}.weight"]
        return torch.from_numpy(self._dequantize(found.data, found.tensor_type).copy())

    def block_tensor(self, block: int, part: str) -> torch.Tensor:
        """A weight of a decoder block under its Hugging Face name, for example `mlp.up_proj`; float32."""
        w = self.tensor(f"blk.{block}.{BLOCK_TENSORS[part]}")
        if part == "self_attn.q_proj":
            return _halves_apart(w, self.count("llama.attention.head_count"))
        if part == "self_attn.k_proj":
            return _halves_apart(w, self.count("llama.attention.head_count_kv"))
        return w

    def _value(self, key: str) -> Any:
        return self._fields[key].contents()


def _halves_apart(w_NK: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder the rows of q or k [N, K] from GGUF's rotary layout to Hugging Face's.

    llama.cpp rotates neighbours (rows 2i and 2i + 1 of a head), Hugging Face row i with row i + head_dim / 2.
    """
    n, k = w_NK.shape
    return w_NK.reshape(heads, n // heads // 2, 2, k).transpose(1, 2).reshape(n, k)
