"""Putting a wrong piece in for a right one in some groups, slices or columns only."""

from __future__ import annotations

import torch

from gptq_diff.diagnose.parts import Parts

SLICE, SHORT_SLICE = 128, 32
"""Rows of K that are looked at as one slice: a block of a kernel; less where K is at most LONG."""
LONG = 1024


def blocks_of(parts: Parts, scope: str) -> torch.Tensor:
    """int64 [K]: the block that every row belongs to, for "groups" or "slices"."""
    if scope == "slices":
        rows = len(parts.group_K)
        return torch.arange(rows) // slice_rows(rows)
    return parts.group_K


def slice_rows(in_features: int) -> int:
    """Rows of one slice of a linear with that many rows of W."""
    return SLICE if in_features > LONG else SHORT_SLICE


def in_some_rows(right: Parts, wrong: Parts, mask_KC: torch.Tensor) -> Parts:
    """`wrong` where the mask is set, else `right`; codes stay codes where that can be."""
    same_groups = right.group_K is wrong.group_K or torch.equal(right.group_K, wrong.group_K)
    if same_groups:
        codes = torch.where(mask_KC, wrong.codes_KC, right.codes_KC)
        only_codes = torch.equal(right.scales_GC, wrong.scales_GC) and torch.equal(right.zeros_GC, wrong.zeros_GC)
        if only_codes:
            return right.with_(codes_KC=codes)
        mask_GC = torch.zeros(right.scales_GC.shape, dtype=torch.bool).index_put_((right.group_K,), mask_KC)
        if torch.equal(mask_GC[right.group_K], mask_KC):  # whole groups
            return right.with_(
                codes_KC=codes,
                zeros_GC=torch.where(mask_GC, wrong.zeros_GC, right.zeros_GC),
                scales_GC=torch.where(mask_GC, wrong.scales_GC, right.scales_GC),
            )
    dense_right, dense_wrong = right.as_dense(), wrong.as_dense()
    return dense_right.with_(scales_GC=torch.where(mask_KC, dense_wrong.scales_GC, dense_right.scales_GC))


def in_some_columns(right: Parts, wrong: Parts, mask_C: torch.Tensor) -> Parts:
    """`wrong` in the columns of the mask, else `right`."""
    return in_some_rows(right, wrong, mask_C.expand(right.codes_KC.shape))
