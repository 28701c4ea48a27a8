"""What a planted fault is, and where it is planted."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gptq_diff.faults.linear import Array, Linear

Floats = npt.NDArray[np.float32]
Wide = npt.NDArray[np.floating[Any]]
Spoil = Callable[[Floats, Floats], Wide]
"""(x [M, K], y [M, N] as the sound kernel gave it) -> y as the broken one gives it; called once a kernel call."""
Patch = Callable[[Any], contextlib.AbstractContextManager[None]]
"""Given the engine's model, breaks something in it for as long as the context lasts."""


class Unplantable(Exception):  # noqa: N818  it is no error: another place is drawn
    """A kind cannot be planted there; another place is to be drawn."""


class Model(Protocol):
    """A sound checkpoint."""

    settings: Mapping[str, Any]

    def tensor(self, name: str) -> Array:
        """Any tensor."""

    def linear(self, name: str) -> Linear:
        """A quantised linear."""

    @property
    def linears(self) -> tuple[str, ...]:
        """All of them in order of execution."""


@dataclass(frozen=True)
class Site:
    """Where and how strongly to plant.

    layer: a linear. size: 0 (mild) to 1 (gross). way: "bytes" or "engine". path: the arithmetic of the kernel there.
    inputs: the healthy x [M, K] of a linear in the prefill. calls: rows M of every call of a run, the prefill first.
    """

    model: Model
    layer: str
    size: float
    way: str
    path: str
    rng: np.random.Generator
    inputs: Callable[[str], Floats]
    calls: tuple[int, ...] = ()

    @property
    def linear(self) -> Linear:
        """The linear at the site."""
        return self.model.linear(self.layer)


@dataclass(frozen=True)
class Between:
    """A fault that no linear has: the last linear that runs before it ("" for none) and the first after it."""

    before: str
    after: str
    place: str


@dataclass(frozen=True)
class Fault:
    """One planted fault.

    kind: as contract.md's CAUSE calls it, or "clamp". what: in words, with its size.
    layers: the linears whose products it changes, in order of execution.
    prepared: tensors in which the sound checkpoint too differs from the model (the fault is the model's own then).
    changed: tensors of the damaged checkpoint alone. settings: its quantisation settings that differ.
    misread: linears that the engine reads as these. spoil: linears whose products come out changed.
    patch: what is broken in the engine's model. between: where that is, for what no linear has.
    at: "kernel", "bias" (added after the kernel), "between" or "all-reduce": which step of the layer is wrong.
    changes: linear -> what every call changed there, [M, N], filled in while the faults of `spoil` and of an
    all-reduce run.
    """

    kind: str
    what: str
    layers: tuple[str, ...]
    prepared: Mapping[str, Array] = field(default_factory=dict)
    changed: Mapping[str, Array] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    misread: Mapping[str, Linear] = field(default_factory=dict)
    spoil: Mapping[str, Spoil] = field(default_factory=dict)
    patch: Patch | None = None
    between: Between | None = None
    at: str = "kernel"
    changes: dict[str, list[npt.NDArray[np.float64]]] = field(default_factory=dict)


def of_weights(site: Site, kind: str, what: str, *damaged: Linear) -> Fault:
    """A fault of packed weights: in the checkpoint's bytes, or in how the engine's kernel reads them."""
    names = tuple(linear.name for linear in damaged)
    ordered = tuple(name for name in site.model.linears if name in names)
    if site.way == "bytes":
        changed: dict[str, Array] = {}
        for linear in damaged:
            sound = site.model.linear(linear.name).tensors()
            changed.update({k: v for k, v in linear.tensors().items() if not same(v, sound[k])})
        if not changed:
            raise Unplantable("nothing would change")
        return Fault(kind, what, ordered, changed=changed)
    return Fault(kind, what, ordered, misread={linear.name: linear for linear in damaged})


def same(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bytes."""
    return a.shape == b.shape and a.tobytes() == b.tobytes()
