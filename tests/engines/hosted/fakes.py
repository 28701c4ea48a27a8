"""Stand-ins for auto_gptq and GPTQModel: a small model with quantised linears whose kernel is a plain product."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from gptq_diff.checkpoint.reader import open_checkpoint
from tests.checkpoint.build import linear_tensors, write_checkpoint

VOCABULARY, WIDTH = 64, 64
QUERY, DOWN, HEAD = "model.attn.q_proj", "model.mlp.down_proj", "lm_head"
LAYERS = (QUERY, DOWN)


def exact(tensors: dict[str, torch.Tensor], name: str, group_size: int = 32) -> torch.Tensor:
    """float32 [K, N] of a 4-bit v1 linear, nibble by nibble: shares nothing with the package."""
    words, zeros, scales = (tensors[f"{name}.{what}"] for what in ("qweight", "qzeros", "scales"))
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    codes = ((words[:, None, :] >> shifts[None, :, None]) & 15).reshape(-1, words.shape[1])
    zero = ((zeros[:, :, None] >> shifts) & 15).reshape(zeros.shape[0], -1) + 1
    group = torch.arange(codes.shape[0]) // group_size
    return (codes - zero[group]).float() * scales.float()[group]


def tensors_of_model(*, head: bool = True) -> dict[str, torch.Tensor]:
    """A q_proj with a bias, a down_proj, an embedding, a norm; head: a stored lm_head, else it is tied."""
    draw = torch.Generator().manual_seed(1)
    embedding = torch.randn((VOCABULARY, WIDTH), generator=draw).to(torch.float16)
    tensors = {
        **linear_tensors(QUERY, WIDTH, WIDTH, seed=1, bias=True),
        **linear_tensors(DOWN, WIDTH, WIDTH, seed=2),
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": torch.full((WIDTH,), 0.5, dtype=torch.float16),
    }
    return {**tensors, "lm_head.weight": embedding.flip(0)} if head else tensors


def write_model(directory: Path, *, head: bool = True) -> Path:
    """That model as a checkpoint."""
    return write_checkpoint(directory, tensors_of_model(head=head))


class QuantLinear(nn.Module):
    """As both libraries have them: packed buffers, a QUANT_TYPE, the bias added at the end of forward."""

    def __init__(self, kind: str, name: str, stored: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.QUANT_TYPE = kind
        for what in ("qweight", "qzeros", "scales", "g_idx"):
            self.register_buffer(what, stored[f"{name}.{what}"].clone())
        self.register_buffer("bias", stored.get(f"{name}.bias", torch.zeros(WIDTH, dtype=torch.float16)).clone())
        self.w_KN = exact(stored, name)
        self.autogptq_cuda_available = True
        self.linear_mode: str | None = None
        self.settles = "inference"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.linear_mode = self.settles
        y = (x.float() @ self.w_KN).to(x.dtype)
        return y if self.bias is None else y + self.bias

    def shuffle(self) -> None:
        """What kernels do after loading; the buffers are of no use afterwards."""
        self.qweight.zero_()


class FakeModel(nn.Module):
    """Embedding, q_proj, down_proj, norm, lm_head; the cache is the number of rows seen."""

    def __init__(self, directory: Path, kind: str) -> None:
        super().__init__()
        checkpoint = open_checkpoint(directory)
        stored = {name: checkpoint.tensor(name) for name in checkpoint.tensor_names()}
        self.config = SimpleNamespace(eos_token_id=checkpoint.config.get("eos_token_id"))
        self.model, self.model.attn, self.model.mlp = nn.Module(), nn.Module(), nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.model.embed_tokens.weight = nn.Parameter(stored["model.embed_tokens.weight"].clone())
        self.model.attn.q_proj = QuantLinear(kind, QUERY, stored)
        self.model.mlp.down_proj = QuantLinear(kind, DOWN, stored)
        self.model.norm = nn.Module()
        self.model.norm.weight = nn.Parameter(stored["model.norm.weight"].clone())
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        tied = self.model.embed_tokens.weight
        self.lm_head.weight = nn.Parameter(stored["lm_head.weight"].clone()) if "lm_head.weight" in stored else tied

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def forward(self, input_ids: torch.Tensor, past_key_values: Any = None, use_cache: bool = True) -> Any:
        hidden = self.model.embed_tokens(input_ids)
        hidden = self.model.mlp.down_proj(self.model.attn.q_proj(hidden)) * self.model.norm.weight
        rows = input_ids.shape[1] + (past_key_values or 0)
        return SimpleNamespace(logits=self.lm_head(hidden), past_key_values=rows)

    @property
    def linears(self) -> list[QuantLinear]:
        return [self.model.attn.q_proj, self.model.mlp.down_proj]
