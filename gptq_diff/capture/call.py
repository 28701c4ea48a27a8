"""What the tap tells of a kernel call, and who is told: the words that capturing is written in."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch

    from gptq_diff.numerics.magnitude import Magnitude

ALL_REDUCE = "all-reduce"
"""Path, and part, of the sum over tensor-parallel ranks: x holds the ranks' summands below each other, y is the sum."""
REPLICATED = "replicated"
"""Path, and part, of a tensor that two ranks should hold alike and do not: x is the first rank's, y the other's."""

BIAS = "bias"
"""Path, and part, of a linear's bias: x holds one row of the product (its median, smallest and largest values where a
kernel was run anew for this), y that row as the engine gives it with its bias."""


def stored_name(layer: str, part: str) -> str:
    """The name that a call's tensors are stored under; no layer's name holds an `@`."""
    return f"{layer}@{part}" if part else layer


def layer_of(stored: str) -> str:
    """The layer in a stored name."""
    return stored.partition("@")[0]


class Call(NamedTuple):
    """One kernel call as the tap saw it (a tuple: hundreds are made after every step, and a dataclass takes longer).

    step: 0 is the prefill, then one per decode step.
    index: place of the layer in the step's order of execution.
    layer: canonical (Hugging Face) name.
    path: the arithmetic that really ran (kernels.base.Product.path).
    rows, in_features, out_features: M, K, N.
    x, y: magnitudes of the input and of the output.
    shared_input: stored name of an earlier call of this step whose input is the very same tensor, or None.
    part: "" for the whole linear, else a tensor-parallel rank's number, ALL_REDUCE or REPLICATED.
    first: the row of W that x[:, 0] is multiplied with; above 0 for a rank's share only.
    """

    step: int
    index: int  # type: ignore[assignment]  # a tuple's own `index` is not asked for
    layer: str
    path: str
    rows: int
    in_features: int
    out_features: int
    x: Magnitude
    y: Magnitude
    shared_input: str | None
    part: str = ""
    first: int = 0

    @property
    def stored(self) -> str:
        """The name that this call's tensors are stored under."""
        return stored_name(self.layer, self.part)


class Sink(abc.ABC):
    """Takes what the tap sees; tensors are the tap's own contiguous copies, and come when `wants_tensors` is true.

    later: whether calls of a GPU may come after their step has ended, from a thread of the tap's own, as far as its
    memory lets them wait; at the latest when the tap is closed.
    """

    wants_tensors: bool
    later: bool = False

    @abc.abstractmethod
    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        """Keep one call; x is None where `call.shared_input` names the layer that brought it."""

    def let_go(self) -> None:  # noqa: B027  most sinks hold nothing
        """The memory of the tensors taken so far will be used again: a sink that still holds any has to copy them."""


@dataclass(frozen=True)
class Fused:
    """The linears that one kernel computes at once, in the order of their columns.

    widths: columns of each, side by side in the output, nothing before, between or after them.
    """

    layers: tuple[str, ...]
    widths: tuple[int, ...]

    @cached_property
    def unit(self) -> int:
        """The largest number that divides every width."""
        return gcd(*self.widths)
