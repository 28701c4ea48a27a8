"""Groups whose codes are all the same number, as after a lost shard, a zeroed buffer or a pruned channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packing import codes_per_period, unpack_rows, unpack_zeros

if TYPE_CHECKING:
    from gptq_diff.checkpoint.packed import PackedLinear


def stuck_groups(linear: PackedLinear) -> torch.Tensor:
    """Whether all codes of a group are one value, bool [G, N]; False for a group that no row belongs to."""
    spec = linear.spec
    period = codes_per_period(spec.bits)
    if linear.g_idx is None and spec.group_size % period == 0 and spec.in_features % spec.group_size == 0:
        return _stuck_by_word(linear, period)
    return _stuck_by_code(linear)


def pruned_groups(linear: PackedLinear, stuck_GN: torch.Tensor) -> torch.Tensor:
    """Which of the stuck groups have weights of exactly zero, bool [G, N]: all codes are the zero point.

    Pruned channels and columns that pad a shape have them. Codes and zero points that are both 0 do not count: a buffer
    that was never filled looks like that.
    """
    spec = linear.spec
    first_GN = _first_codes(linear, _first_rows(linear).clamp_max(spec.in_features - 1))
    zeros_GN = unpack_zeros(linear.qzeros, spec.bits, spec.out_features, spec.format)
    return stuck_GN & (first_GN == zeros_GN) & (first_GN > 0)


def _first_rows(linear: PackedLinear) -> torch.Tensor:
    """int64 [G]: the first row of each group; K for one without rows."""
    spec = linear.spec
    rows_K = torch.arange(spec.in_features)
    return torch.full((spec.groups,), spec.in_features).scatter_reduce(0, group_of_row(linear), rows_K, reduce="amin")


def _first_codes(linear: PackedLinear, rows_G: torch.Tensor) -> torch.Tensor:
    """int64 [G, N]: the codes in those rows; only their words are unpacked."""
    spec = linear.spec
    period = codes_per_period(spec.bits)
    words = period * spec.bits // 32
    words_PWN = linear.qweight.view(-1, words, spec.out_features)[rows_G // period]
    codes = unpack_rows(words_PWN.flatten(0, 1), spec.bits, len(rows_G) * period).view(-1, period, spec.out_features)
    return codes[torch.arange(len(rows_G)), rows_G % period].long()


def _stuck_by_word(linear: PackedLinear, period: int) -> torch.Tensor:
    """Compare whole words, and look at single codes in the first words of each group only: 8 times less work."""
    spec = linear.spec
    words = period * spec.bits // 32
    words_GRWN = linear.qweight.view(spec.groups, spec.group_size // period, words, spec.out_features)
    first_GWN = words_GRWN[:, 0]
    repeated_GN = (words_GRWN == first_GWN.unsqueeze(1)).flatten(1, 2).all(dim=1)
    codes = unpack_rows(first_GWN.reshape(-1, spec.out_features), spec.bits, spec.groups * period)
    codes_GPN = codes.view(spec.groups, period, spec.out_features)
    return repeated_GN & (codes_GPN == codes_GPN[:, :1]).all(dim=1)


def _stuck_by_code(linear: PackedLinear) -> torch.Tensor:
    """Compare every code with the one in the first row of its group; for g_idx and groups that end inside a word."""
    spec = linear.spec
    codes_KN = unpack_rows(linear.qweight, spec.bits, spec.in_features)
    group_K = group_of_row(linear)
    first_G = _first_rows(linear)
    differs_KN = (codes_KN != codes_KN[first_G[group_K]]).to(torch.int32)
    changes_GN = torch.zeros(spec.groups, spec.out_features, dtype=torch.int32).index_add_(0, group_K, differs_KN)
    return (changes_GN == 0) & (first_G < spec.in_features).unsqueeze(1)
