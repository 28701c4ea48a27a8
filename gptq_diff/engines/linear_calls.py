"""Running one linear of a loaded engine by itself: the calls of a LinearJob, one after another."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gptq_diff.capture.products import CallProducts, call_input, kept_rows, read_input, write_products
from gptq_diff.jobs import LinearCall, LinearJob

if TYPE_CHECKING:
    from gptq_diff.engines.base import Engine
    from gptq_diff.kernels.base import Product

DIRTY_BLOCKS = 4
"""Blocks of every size that are filled with NaN: as many as an allocator may hold free already, it is hoped."""
DIRTY_TIMES = (1, 2, 3, 4)
"""Sizes of those blocks, in outputs of this linear: it may be fused with others."""


def run_linear_job(engine: Engine, job: LinearJob) -> None:
    """Make all calls and store what they gave; BackendError where the engine cannot."""
    x_MK = read_input(Path(job.x))
    write_products(Path(job.out), {call.name: _call(engine, job.layer, x_MK, call) for call in job.calls})


def _call(engine: Engine, layer: str, x_MK: torch.Tensor, call: LinearCall) -> CallProducts:
    """The kept rows of every repeat; fetched one by one, so that the next call finds the memory of the last one."""
    given_MK, keep = call_input(x_MK, call), list(kept_rows(call))
    kept: list[torch.Tensor] = []
    path, last = "", None
    for _ in range(call.repeats):
        if call.dirty:
            last = engine.multiply(layer, given_MK) if last is None else last
            leave_dirt(last)
        last = engine.multiply(layer, given_MK)
        kept.append(last.y_MN[keep].cpu())
        path = last.path
    return CallProducts(torch.stack(kept), path)


def leave_dirt(like: Product) -> None:
    """Fill memory of that output's size, and of a few times it, with NaN, and free it: the allocator's next answers.

    torch's caching allocator on a GPU hands out the smallest free block that suffices, so most likely one of these;
    on a CPU it is malloc that decides. What a kernel allocates in other sizes may stay clean.
    """
    y_MN = like.y_MN
    blocks = [
        torch.full((times * y_MN.numel(),), float("nan"), dtype=y_MN.dtype, device=y_MN.device)
        for times in DIRTY_TIMES
        for _ in range(DIRTY_BLOCKS)
    ]
    del blocks
