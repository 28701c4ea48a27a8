"""A transformers model without its weights, and the checkpoint's own tensors put into it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Set
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from gptq_diff.engines.mapped import MappedEmbedding, MappedLinear, Scratch
from gptq_diff.engines.quant_linear import QuantLinear, Switchboard
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.plain import PlainCheckpoint
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.engines.shelf import Shelf


@contextlib.contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Every parameter registered inside becomes a meta tensor; buffers (rotary tables) stay real.

    `torch.device("meta")` would lose the buffers too, and a checkpoint does not hold those.
    """
    original = nn.Module.register_parameter

    def register(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.to("meta"), requires_grad=False)
        original(self, name, param)

    nn.Module.register_parameter = register  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def empty_model(path: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> nn.Module:
    """The causal language model that config.json describes, with all parameters on the meta device."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the quantised linears are ours
        with parameters_on_meta():
            model = AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=trust_remote_code)
    except (ValueError, KeyError, ImportError, OSError, StrictDataclassError) as e:
        first = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise BackendError(f"transformers cannot build this model: {first}", "see model_type in its config.json") from e
    model.eval()
    return model  # type: ignore[no-any-return]


def fill(model: nn.Module, checkpoint: Checkpoint, board: Switchboard, dtype: torch.dtype) -> None:
    """Replace the quantised linears, map embeddings and other linears, copy what is small (norms) or move it (biases).

    All of it goes to the device of board.shelf, or comes there when it is used.
    Subclasses of torch's own modules may compute something else (Gemma scales its embedding), so they are kept and
    given their weights. BackendError where the checkpoint lacks a tensor, or has one of another shape.
    """
    stored = _Stored(checkpoint, board.shelf.device)
    modules = dict(model.named_modules())
    quantised = {spec.name for spec in checkpoint.layers}
    for spec in checkpoint.layers:
        model.set_submodule(
            spec.name, _quant_linear(checkpoint.packed(spec.name), modules.get(spec.name), model, stored, board)
        )
    _fill_rest(model, modules, stored, board.shelf, dtype, quantised)


def fill_plain(model: nn.Module, checkpoint: PlainCheckpoint, shelf: Shelf, dtype: torch.dtype) -> None:
    """The same for a checkpoint that is not quantised: every linear is mapped."""
    stored = _Stored(checkpoint, shelf.device)
    _fill_rest(model, dict(model.named_modules()), stored, shelf, dtype, set())


def _fill_rest(
    model: nn.Module, modules: Mapping[str, nn.Module], stored: _Stored, shelf: Shelf, dtype: torch.dtype,
    quantised: Set[str],
) -> None:  # fmt: skip
    """All but the quantised linears. modules: the model's own, by name."""
    scratch = Scratch()
    for name, module in modules.items():
        if type(module) is nn.Embedding:
            table_VH = stored.tensor(f"{name}.weight", module.weight.shape)
            model.set_submodule(name, MappedEmbedding(table_VH, dtype))
        elif type(module) is nn.Linear and name not in quantised:
            weight_NK = _weight_or_tied(model, stored, name, module)
            linear = MappedLinear(shelf.table(weight_NK), _bias(module, name, stored), scratch)
            model.set_submodule(name, linear)
    for name, parameter in list(model.named_parameters()):
        if parameter.is_meta:
            owner, _, leaf = name.rpartition(".")
            value = stored.small(name, parameter.shape).to(dtype)
            setattr(model.get_submodule(owner), leaf, nn.Parameter(value, requires_grad=False))
    for name, buffer in list(model.named_buffers()):
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, buffer.to(shelf.device))


class _Stored:
    """The checkpoint's tensors, with a clear sentence for one that is not there or does not fit."""

    def __init__(self, checkpoint: Checkpoint | PlainCheckpoint, device: torch.device) -> None:
        self._tensor = checkpoint.tensor
        self._device = device
        self.names = frozenset(checkpoint.tensor_names())
        self._skipped = checkpoint.skipped

    def tensor(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The tensor of that name, mapped."""
        if name not in self.names:
            owner = name.rpartition(".")[0]
            for layer in self._skipped:
                if f"{layer.name}.".startswith(f"{owner}."):  # transformers keeps all experts of a block in one module
                    raise BackendError(f"{layer.name} is left out, so the model cannot run: {layer.reason}")
            raise BackendError(
                f"the checkpoint lacks the tensor {name}", "it is incomplete, or of another architecture"
            )
        tensor = self._tensor(name)
        if tensor.shape != shape:
            raise BackendError(
                f"{name} has the shape {list(tensor.shape)}, and config.json asks for {list(shape)}",
                "config.json and weights are of different models",
            )
        return tensor

    def small(self, name: str, shape: torch.Size) -> torch.Tensor:
        """The tensor of that name, on the model's device for good; on the CPU it stays mapped."""
        return self.tensor(name, shape).to(self._device)


def _quant_linear(
    linear: PackedLinear, place: nn.Module | None, model: nn.Module, stored: _Stored, board: Switchboard
) -> QuantLinear:
    spec = linear.spec
    if place is None:
        raise BackendError(
            f"the checkpoint's layer {spec.name} has no place in transformers' {type(model).__name__}",
            "the layer names follow another implementation of this architecture",
        )
    if isinstance(place, nn.Linear):
        asked = (place.in_features, place.out_features)
        if asked != (spec.in_features, spec.out_features):
            raise BackendError(
                f"{spec.name} is {spec.in_features} x {spec.out_features}, and config.json asks for "
                f"{asked[0]} x {asked[1]}",
                "config.json and weights are of different models",
            )
        # AutoGPTQ stores zeros where the architecture has no bias; engines leave them out
        linear = replace(linear, bias=_bias(place, spec.name, stored))
    return QuantLinear(linear, board)


def _bias(module: nn.Linear, name: str, stored: _Stored) -> torch.Tensor | None:
    """The stored bias where the architecture has one."""
    asked = dict(module.named_parameters()).get("bias")
    return None if asked is None else stored.small(f"{name}.bias", asked.shape)


def _weight_or_tied(model: nn.Module, stored: _Stored, name: str, module: nn.Linear) -> torch.Tensor:
    """A linear's stored weight; for a tied lm_head without one the embedding's."""
    weight = f"{name}.weight"
    tied = bool(getattr(model.config, "tie_word_embeddings", False))
    if tied and weight not in stored.names and model.get_output_embeddings() is module:  # type: ignore[operator]
        embedding = model.get_input_embeddings()  # type: ignore[operator]
        place = next(place for place, candidate in model.named_modules() if candidate is embedding)
        weight = f"{place}.weight"
    return stored.tensor(weight, module.weight.shape)
