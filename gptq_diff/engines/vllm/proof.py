"""Proof that a vLLM module holds what we take it for: its packed tensors against the checkpoint's, column by column.

Kernels shuffle the weights right after loading, so the comparison is made in between: while `proving` is in force,
vLLM's own step "process weights after loading" first shows the model as it was read.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gptq_diff.checkpoint.brought import brought, let_go
from gptq_diff.engines.vllm.modules import FusedLinear, Part, fused_linears
from gptq_diff.errors import BackendError

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear
    from gptq_diff.checkpoint.reader import Checkpoint

PLACES = (
    ("vllm.model_executor.model_loader.base_loader", "process_weights_after_loading"),
    ("vllm.model_executor.model_loader.loader", "_process_weights_after_loading"),
)
"""Where releases call that step from: 0.9 and newer, and before."""


WHAT = ("qweight", "qzeros", "scales")


@dataclass(frozen=True)
class Place:
    """Which part of a linear's W [K, N] a module holds: from that row and that column on."""

    row: int
    column: int


@dataclass
class Proof:
    """What was seen between reading and shuffling.

    rank, ranks: whose modules these are, and how many share the model.
    places: linears whose part was proved, with the part. biases: module -> its bias as read; kernels may permute it
    later.
    """

    rank: int = 0
    ranks: int = 1
    places: dict[str, Place] = field(default_factory=dict)
    biases: dict[str, torch.Tensor] = field(default_factory=dict)


@contextlib.contextmanager
def proving(checkpoint: Checkpoint, rank: int = 0, ranks: int = 1) -> Iterator[Proof]:
    """Prove every quantised module of the model that is loaded inside; refused where a tensor differs."""
    proof = Proof(rank, ranks)
    holder, name = _place()
    if holder is None:
        yield proof
        return
    original = getattr(holder, name)

    def first_prove(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        prove_all(fused_linears(model, checkpoint.layers, ranks), checkpoint, proof)
        return original(model, *args, **kwargs)

    setattr(holder, name, first_prove)
    try:
        yield proof
    finally:
        setattr(holder, name, original)


def _place() -> tuple[ModuleType | None, str]:
    for module_name, name in PLACES:
        with contextlib.suppress(ImportError):
            module = importlib.import_module(module_name)
            if hasattr(module, name):
                return module, name
    return None, ""


def prove_all(linears: Sequence[FusedLinear], checkpoint: Checkpoint, proof: Proof) -> None:
    """`prove` for every module. On a GPU all are compared there where they are expected, and looked at once.

    What is not where it was expected is looked for by `prove`.
    """
    device = device_of(linears)
    as_expected = frozenset[str]() if device.type == "cpu" else _where_expected(linears, checkpoint, proof, device)
    for linear in linears:
        if all(part.spec.name in as_expected for part in linear.parts):
            for part in linear.parts:
                proof.places[part.spec.name] = places(part, proof)[0]
            _keep_bias(linear, proof)
        else:
            prove(linear, checkpoint, proof)


def device_of(linears: Sequence[FusedLinear]) -> torch.device:
    """Where their tensors lie."""
    held = (getattr(linear.module, what, None) for linear in linears for what in WHAT)
    return next((tensor.device for tensor in held if tensor is not None), torch.device("cpu"))


def _where_expected(
    linears: Sequence[FusedLinear], checkpoint: Checkpoint, proof: Proof, device: torch.device
) -> frozenset[str]:
    """The linears whose packed tensors lie, bit for bit, where this rank is expected to hold them."""
    parts = {part.spec.name: (linear.module, part) for linear in linears for part in linear.parts}
    names, counts = [], []
    for spec, stored in brought(checkpoint, [part.spec for _, part in parts.values()], device):
        module, part = parts[spec.name]
        place = places(part, proof)[0]
        pairs = [side_by_side(getattr(module, what, None), stored, part, what, place) for what in WHAT]
        if all(pair is not None and pair[0].shape == pair[1].shape for pair in pairs):
            names.append(spec.name)
            counts.append(torch.stack([unequal(*pair) for pair in pairs if pair is not None]).sum())
    equal = (torch.stack(counts) == 0).tolist() if counts else []
    let_go()
    return frozenset(name for name, same in zip(names, equal) if same)


def prove(linear: FusedLinear, checkpoint: Checkpoint, proof: Proof) -> None:
    """Find the part of each linear that the module holds: qweight, qzeros and scales, bit for bit."""
    for part in linear.parts:
        stored = checkpoint.packed(part.spec.name)
        differing = ""
        for place in places(part, proof):
            differing_here = _differing(linear.module, stored, part, place)
            if not differing_here:
                proof.places[part.spec.name] = place
                break
            differing = differing or differing_here
        else:
            raise BackendError(
                f"vLLM's {linear.name} does not hold {part.spec.name} in its columns {part.first} to "
                f"{part.last - 1}: {differing}",
                "how this release fuses linears is not understood",
            )
    _keep_bias(linear, proof)


def _keep_bias(linear: FusedLinear, proof: Proof) -> None:
    bias = getattr(linear.module, "bias", None)
    if bias is not None:
        proof.biases[linear.name] = bias.detach().clone()


def places(part: Part, proof: Proof) -> list[Place]:
    """Where an even share can lie, the one that this rank is expected to hold first."""
    columns = part.last - part.first
    shares = [
        Place(row * part.rows, column * columns)
        for row in range(part.spec.in_features // part.rows)
        for column in range(part.spec.out_features // columns)
    ]
    expected = proof.rank * len(shares) // proof.ranks  # where fewer shares than ranks exist, neighbours hold the same
    return [shares[expected], *(share for share in shares if share != shares[expected])]


def _differing(module: nn.Module, stored: PackedLinear, part: Part, place: Place) -> str:
    for what in WHAT:
        found = differs(getattr(module, what, None), stored, part, what, place)
        if found:
            return f"{what} {found}"
    return ""


_NOWHERE = Place(0, 0)


def differs(
    held: torch.Tensor | None, stored: PackedLinear, part: Part, what: str, place: Place = _NOWHERE
) -> str:  # fmt: skip
    """How a module's tensor departs from that part of the checkpoint's; empty where it does not."""
    pair = side_by_side(held, stored, part, what, place)
    if pair is None:
        return "is not there"
    columns, own = pair
    if columns.shape != own.shape:
        return f"has the shape {list(columns.shape)}, not {list(own.shape)}"
    count = int(unequal(columns, own))
    return f"differs in {count} of {own.numel()} values" if count else ""


def side_by_side(
    held: torch.Tensor | None, stored: PackedLinear, part: Part, what: str, place: Place
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """A module's columns and that part of the checkpoint's tensor, where the module is; None where it has none."""
    if held is None:
        return None
    own: torch.Tensor = getattr(stored, what)
    per_column = part.spec.bits / 32 if what == "qzeros" else 1.0  # int32 words along N
    columns = held[:, int(part.first * per_column) : int(part.last * per_column)].detach()
    width = int((part.last - part.first) * per_column)
    first = int(place.column * per_column)
    own = _rows(own, part, what, place, held.shape[0])[:, first : first + width]
    return columns, own.to(device=held.device, dtype=held.dtype)


def unequal(columns: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """How many values differ in bits, of two tensors of one shape and dtype; a tensor, which nobody waits for here."""
    bits = {2: torch.int16, 4: torch.int32}[own.element_size()]
    return (columns.contiguous().view(bits) != own.contiguous().view(bits)).sum()


def _rows(own: torch.Tensor, part: Part, what: str, place: Place, held: int) -> torch.Tensor:
    """The rows of a packed tensor that belong to the share; groups that span shares are held whole by every rank."""
    if what == "qweight":
        first = place.row * part.spec.bits // 32
    elif held == own.shape[0]:
        return own
    else:
        first = place.row // part.spec.group_size
    return own[first : first + held]
