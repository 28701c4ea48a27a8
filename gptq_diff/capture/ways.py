"""Ways of copying a call's x and y onto the stage. All give the same; which one launches fastest is found on the GPU.

What a copy costs is its launch, not its bytes, and that depends on torch's release: so they are timed, once a load.
"""

from __future__ import annotations

import time
from typing import Callable, NamedTuple

import torch


class Views(NamedTuple):
    """Of the memory that a call goes to: all of it flat, and its two parts in the shapes of x and of y."""

    flat: torch.Tensor
    parts: tuple[torch.Tensor, torch.Tensor]


Way = Callable[[Views, torch.Tensor, torch.Tensor], object]


def one_launch(views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
    """Both below each other, by concatenating them there."""
    torch.cat((x_MK.reshape(-1), y_MN.reshape(-1)), out=views.flat)


def many_at_once(views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
    """One launch too, made for lists of any length."""
    torch._foreach_copy_(views.parts, (x_MK, y_MN))


def one_by_one(views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
    """Two copies, which the driver may make without a kernel."""
    views.parts[0].copy_(x_MK)
    views.parts[1].copy_(y_MN)


WAYS: tuple[Way, ...] = (one_launch, many_at_once, one_by_one)
LAUNCHES, ROUNDS = 50, 4


def views_of(flat: torch.Tensor, x_shape: torch.Size, y_shape: torch.Size) -> Views:
    """flat: as many values as both have."""
    border = x_shape.numel()
    return Views(flat, (flat[:border].view(x_shape), flat[border:].view(y_shape)))


def fastest(device: torch.device, dtype: torch.dtype = torch.float16) -> Way:
    """The way that takes this process the least time there: some 10 milliseconds of trying on a GPU, none on a CPU."""
    if device.type != "cuda":
        return one_launch
    x_MK, y_MN = (torch.zeros(37, columns, dtype=dtype, device=device) for columns in (1024, 1024))
    views = views_of(torch.empty(x_MK.numel() + y_MN.numel(), dtype=dtype, device=device), x_MK.shape, y_MN.shape)
    return min(WAYS, key=lambda way: min(_seconds(way, views, x_MK, y_MN) for _ in range(ROUNDS)))


def _seconds(way: Way, views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> float:
    """That so many launches take, of an idle GPU; what it does with them is not waited for."""
    torch.cuda.synchronize(x_MK.device)
    started = time.perf_counter()
    for _ in range(LAUNCHES):
        way(views, x_MK, y_MN)
    return time.perf_counter() - started
