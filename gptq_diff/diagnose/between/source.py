"""Where the numbers of one capture come from: its linears' tensors, the judge's norms, biases and embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.bias_step import judge_bias
from gptq_diff.diagnose.between.computed import Precision, precision_of
from gptq_diff.diagnose.between.sequence import Missing, Sequence

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.diagnose.between.shape import Shape


@dataclass(frozen=True)
class Norm:
    """A norm: the linear whose input it gives, its weight's name, the linear whose output is added before it."""

    feeds: str
    weight: str
    adds: str


def norms_of(shape: Shape) -> list[Norm]:
    """Every norm but the last, in order: two a block."""
    found, adds = [], ""
    for block in range(shape.blocks):
        at = f"model.layers.{block}"
        found.append(Norm(f"{at}.self_attn.q_proj", f"{at}.input_layernorm.weight", adds))
        found.append(Norm(f"{at}.mlp.gate_proj", f"{at}.post_attention_layernorm.weight", f"{at}.self_attn.o_proj"))
        adds = f"{at}.mlp.down_proj"
    return found


class Source:
    """One capture. precision: of the skeleton that it ran in."""

    def __init__(self, sequence: Sequence, checkpoint: Checkpoint, shape: Shape) -> None:
        """Missing where nothing of the capture can be judged."""
        self.sequence = sequence
        self.shape = shape
        self._checkpoint = checkpoint
        dtype = sequence.step_input(0, norms_of(shape)[0].feeds).dtype
        precision = precision_of(dtype)
        if precision is None:
            raise Missing(f"rounding to {dtype} is not known here")
        self.precision: Precision = precision

    @property
    def prompt_rows(self) -> int:
        """Rows of the prefill."""
        return self.sequence.spans[0].stop

    def embedding(self) -> torch.Tensor:
        """[T, H]: the residual stream's beginning, rounded as the engine has it."""
        table = self._checkpoint.tensor("model.embed_tokens.weight")
        return table[torch.tensor(self.sequence.token_ids)].to(self.precision.dtype)

    def output(self, layer: str) -> torch.Tensor:
        """[T, N]: what that linear gave, with its bias; Missing where another bias was added than the checkpoint's."""
        if layer.rpartition(".")[2] not in self.shape.biased:
            return self.sequence.output(layer, None)
        bias_N = self._checkpoint.tensor(f"{layer}.bias")
        step = self.sequence.bias_call(layer)
        if step is not None and judge_bias(layer, step, bias_N).cause is not None:
            raise Missing(f"the bias that was added to {layer} is not the checkpoint's")
        return self.sequence.output(layer, bias_N)

    def weight(self, name: str) -> torch.Tensor:
        """A norm's weight, rounded as the engine has it, wide."""
        return self._checkpoint.tensor(name).to(self.precision.dtype).to(self.precision.wide)
