"""A wrong sum over tensor-parallel ranks: two ranks, played in one process, share o_proj's and down_proj's rows."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Patch, Site, Unplantable

KIND = "all-reduce"
RANKS = 2
Sum = Callable[[str, Any], Any]
"""(layer, summands [R, M, N]) -> their sum [M, N]."""


def plant(site: Site) -> Fault:
    """One rank's summand left out, or added twice, in some columns; or the sum made in bfloat16."""
    leaf = site.layer.rpartition(".")[2]
    if site.way != "engine" or leaf not in ("o_proj", "down_proj") or site.linear.desc_act:
        raise Unplantable("its rows are not shared out")
    at_columns = pick.columns(site)
    rank, way = int(site.rng.integers(RANKS)), str(site.rng.choice(["lost", "twice"]))
    factor = 0.0 if way == "lost" else 2.0

    changes: dict[str, list[npt.NDArray[np.float64]]] = {}

    def wrong(layer: str, summands_RMN: Any) -> Any:
        if layer == site.layer:
            alone = np.where(at_columns[None, :], summands_RMN[rank].double().numpy(), 0.0)
            changes.setdefault(layer, []).append((factor - 1.0) * alone)
            times = summands_RMN.new_ones(RANKS, 1, summands_RMN.shape[-1])
            times[rank, 0, np.flatnonzero(at_columns).tolist()] = factor
            summands_RMN = summands_RMN * times
        return plain(layer, summands_RMN)

    what = f"rank {rank}'s summand {way} in {pick.words(at_columns, 'columns')}"
    return Fault(KIND, what, (site.layer,), patch=two_ranks(wrong), at="all-reduce", changes=changes)


def plain(layer: str, summands_RMN: Any) -> Any:  # noqa: ARG001
    """The sum as it should be."""
    return summands_RMN[0] + summands_RMN[1]


def two_ranks(total: Sum) -> Patch:
    """o_proj and down_proj of the whole model computed in two shares of their rows, each tapped, then summed."""

    @contextlib.contextmanager
    def patch(model: Any) -> Iterator[None]:
        changed = []
        for name, module in model.named_modules():
            if name.endswith(("o_proj", "down_proj")):
                module.forward = shared_out(module, name, total)
                changed.append(module)
        try:
            yield
        finally:
            for module in changed:
                del module.forward

    return patch


def shared_out(module: Any, name: str, total: Sum) -> Callable[[Any], Any]:
    """The forward of one such linear."""

    def forward(x: Any) -> Any:
        board = module._board
        x_MK = board.rows_of(x)
        width = x_MK.shape[1] // RANKS
        parts = []
        for rank in range(RANKS):
            mine = slice(rank * width, (rank + 1) * width)
            alone = x_MK.new_zeros(x_MK.shape)
            alone[:, mine] = x_MK[:, mine]
            product = board.kernel.multiply(alone, module._linear)
            y_MN = product.y_MN.to(x.dtype)
            if board.tap is not None:
                board.tap.record(name, x_MK[:, mine], y_MN, product.path, part=str(rank), first=rank * width)
            parts.append(y_MN)
        stacked = parts[0].new_empty((RANKS, *parts[0].shape))
        for rank, y_MN in enumerate(parts):
            stacked[rank] = y_MN
        y_MN = total(name, stacked)
        if board.tap is not None:
            board.tap.record(name, stacked.reshape(-1, y_MN.shape[1]), y_MN, "all-reduce", part="all-reduce")
        return y_MN.reshape(*x.shape[:-1], y_MN.shape[1])

    return forward
