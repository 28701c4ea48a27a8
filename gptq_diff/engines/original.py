"""The unquantised model in the transformers engine, tapped at the linears that the checkpoint has quantised."""

from __future__ import annotations

import torch
from torch import nn

from gptq_diff.checkpoint.plain import open_plain
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.mapped import MappedLinear
from gptq_diff.engines.quant_linear import Switchboard
from gptq_diff.engines.skeleton import empty_model, fill_plain
from gptq_diff.errors import BackendError
from gptq_diff.records import ORIGINAL


class TappedLinear(nn.Module):
    """An unquantised linear with the tap where a quantised one has it: between the product and the bias."""

    def __init__(self, name: str, linear: MappedLinear, board: Switchboard) -> None:
        super().__init__()
        self._name = name
        self._linear = linear
        self._board = board

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., N] in the dtype of x [..., K]."""
        x_MK = self._board.rows_of(x)
        y_MN = self._linear.product(x_MK).to(x.dtype)
        if self._board.tap is not None:
            self._board.tap.record(self._name, x_MK, y_MN, ORIGINAL)
        bias = self._linear.bias
        if bias is not None:
            y_MN = y_MN + bias.to(device=x.device, dtype=x.dtype)
        return y_MN.reshape(*x.shape[:-1], y_MN.shape[1])


class OriginalEngine(HfEngine):
    """LoadSpec.original as a whole model; LoadSpec.model says which of its linears are of interest."""

    def _load(self, spec: LoadSpec, dtype: torch.dtype) -> nn.Module:
        if spec.original is None:
            raise BackendError("there is no unquantised model to load", "give --original DIR")
        plain = open_plain(spec.original)
        model = empty_model(plain.path, dtype, trust_remote_code=spec.trust_remote_code)
        fill_plain(model, plain, self._board.shelf, dtype)
        modules = dict(model.named_modules())
        for layer in self._checkpoint.layers:
            linear = modules.get(layer.name)
            if not isinstance(linear, MappedLinear):
                raise BackendError(
                    f"the unquantised model has no plain linear called {layer.name}",
                    "it is of another architecture than the quantised one",
                )
            model.set_submodule(layer.name, TappedLinear(layer.name, linear, self._board))
        return model

    def use_kernel(self, name: str) -> None:
        """There is one way to multiply by a plain weight."""
        if name != ORIGINAL:
            raise BackendError(f"the unquantised model has no kernel called {name!r}", "take hf-original")
