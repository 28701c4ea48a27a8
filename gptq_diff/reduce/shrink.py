"""From a captured call that fails to the smallest one that still does, and the nearest one that does not."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

from gptq_diff.reduce.call import BLOCK, Call
from gptq_diff.reduce.ddmin import ddmin, shortest_prefix
from gptq_diff.reduce.trial import Trial

FIRST_TRIES = 16
"""Single outputs that are tried alone, the most conspicuous first, before rows and columns are halved."""
SCALINGS = 12
"""Halvings of the range in which a common factor of all inputs is looked for: a half has 11 bits."""
DIGITS = (1, 2, 3)
"""Significant digits that inputs are rounded to."""


@dataclass(frozen=True)
class Pair:
    """failing: the smallest call that fails. passing: the same but for one input, one step of float16 smaller (or 0).

    Where no single input decides it, all of them are smaller by one factor.
    """

    failing: Call
    passing: Call


def shrink(call: Call, y_MN: torch.Tensor, trial: Trial, columns: int) -> Pair | None:
    """The pair; None where the kernel by itself does not show the fault.

    y_MN: as captured, which says where to look first. columns: N stays a multiple of this.
    """
    small = _one_output(call, y_MN, trial, columns) or _rows_and_columns(call, trial, columns)
    if small is None:
        return None
    small = _blocks(small, trial)
    small = _inputs(small, trial)
    return tighten(_rounded(_plainer(small, trial), trial), trial)


def _one_output(call: Call, y_MN: torch.Tensor, trial: Trial, columns: int) -> Call | None:
    """One row and one column that fail alone; the worst outputs of the capture are tried first."""
    gap_MN = (y_MN.double() - call.exact()).abs()
    gap_MN = torch.where(torch.isfinite(y_MN), gap_MN, torch.inf)
    order = torch.argsort(gap_MN.flatten(), descending=True, stable=True)[:FIRST_TRIES]
    for place in order.tolist():
        row, column = divmod(place, call.shape[2])
        block = _column_blocks(call.rows([row]), [column // columns], columns)
        start = min(column // columns * columns, call.shape[2] - block.shape[2])
        one = _kept_columns(block, [column - start])
        if trial.fails(one):
            return one
    return None


def _rows_and_columns(call: Call, trial: Trial, columns: int) -> Call | None:
    """Rows and blocks of columns by delta debugging, where no output fails alone."""
    if not trial.fails(call):
        return None
    rows = ddmin(range(call.shape[0]), lambda kept: trial.fails(call.rows(kept)))
    small = call.rows(rows)
    found = ddmin(range(-(-small.shape[2] // columns)), lambda kept: trial.fails(_column_blocks(small, kept, columns)))
    small = _column_blocks(small, found, columns)
    kept = ddmin(range(small.shape[2]), lambda n: trial.fails(_kept_columns(small, n)))
    return _kept_columns(small, kept)


def _column_blocks(call: Call, blocks: list[int], columns: int) -> Call:
    width = min(columns, call.shape[2])
    starts = [min(b * columns, call.shape[2] - width) for b in blocks]  # the last block reaches back where N ends early
    return call.columns([n for start in starts for n in range(start, start + width)])


def _kept_columns(call: Call, kept: list[int]) -> Call:
    """The codes of the other columns set to their zero points, so that they give 0."""
    other = torch.ones(call.shape[2], dtype=torch.bool)
    other[kept] = False
    return call.muted(torch.zeros(call.shape[1], dtype=torch.bool), other)


def _blocks(call: Call, trial: Trial) -> Call:
    """As few blocks of K as will do, whole groups each."""
    call = call.short_groups()
    block = BLOCK if call.scales_GN.shape[0] == 1 else math.lcm(BLOCK, call.group_size)
    blocks = range(-(-call.shape[1] // block))
    if len(blocks) < 2:
        return call
    return call.blocks(ddmin(blocks, lambda kept: trial.fails(call.blocks(kept, block))), block)


def _inputs(call: Call, trial: Trial) -> Call:
    """As few inputs as will do: first those that contribute most, by bisection, then by delta debugging."""

    def fails(kept: list[tuple[int, int]]) -> bool:
        return trial.fails(call.only(kept))

    size_K = call.centred.abs().amax(dim=1)
    order = sorted(call.inputs, key=lambda at: (-abs(float(call.x_MK[at])) * int(size_K[at[1]]), at))
    few = shortest_prefix(order, fails)
    return call.only(ddmin(sorted(few if fails(few) else call.inputs), fails))


def _plainer(call: Call, trial: Trial) -> Call:
    """Each change that makes the call plainer, where it still fails with it."""
    for change in (_unused_codes, _middle_zeros, _one_scale, _one_group):
        changed = change(call)
        if trial.fails(changed):
            call = changed
    return call


def _unused_codes(call: Call) -> Call:
    """Codes that no input meets, set to their zero points."""
    unused_K = (call.x_MK == 0).all(dim=0)
    return call.muted(unused_K, torch.zeros(call.shape[2], dtype=torch.bool))


def _middle_zeros(call: Call) -> Call:
    """Every zero point in the middle, 2^(bits - 1), the codes as far from it as they were, where that is a code."""
    middle = 2 ** (call.bits - 1)
    codes_KN = (call.centred + middle).clamp(0, 2**call.bits - 1)
    return replace(call, codes_KN=codes_KN, zeros_GN=torch.full_like(call.zeros_GN, middle))


def _one_scale(call: Call) -> Call:
    """All scales the power of two below the scale of the largest product."""
    product_KN = call.x_MK.abs().amax(dim=0).double()[:, None] * call.centred.abs()
    k, n = divmod(int(product_KN.argmax()), call.shape[2])
    scale = float(call.scales_GN[k // call.group_size, n].abs())
    power = 2.0 ** math.floor(math.log2(scale)) if 0 < scale < math.inf else 1.0
    return replace(call, scales_GN=torch.full_like(call.scales_GN, power))


def _one_group(call: Call) -> Call:
    """One group, where all have the same zero points and scales."""
    same = bool((call.scales_GN == call.scales_GN[:1]).all() and (call.zeros_GN == call.zeros_GN[:1]).all())
    if not same:
        return call
    return replace(call, zeros_GN=call.zeros_GN[:1], scales_GN=call.scales_GN[:1], group_size=call.shape[1])


def _rounded(call: Call, trial: Trial) -> Call:
    """Every input rounded to as few decimal digits as will do."""
    for at in call.inputs:
        for digits in DIGITS:
            candidate = _with_input(call, at, float(f"{float(call.x_MK[at]):.{digits - 1}e}"))
            if trial.fails(candidate):
                call = candidate
                break
    return call


def tighten(call: Call, trial: Trial) -> Pair:
    """The smallest value of one input that still fails, by bisection over the halves, beside the largest that passes.

    The inputs are tried from the largest on, until one is found without which the call passes. There the passing call
    has that input at 0 where the result is wrong but finite, since such an error goes on into the smallest halves, and
    where something else goes wrong on the way from 0.
    """
    for at in sorted(call.inputs, key=lambda at: (-abs(float(call.x_MK[at])), at)):
        without = _with_input(call, at, 0.0)
        if not trial.passes(without):
            continue
        if trial.fault.kind == "diverged":
            return Pair(call, without)
        value = call.x_MK[at]
        passes, fails = 0, int(value.abs().view(torch.int16))  # the bits of halves of one sign are in their order
        while fails - passes > 1:
            middle = (passes + fails) // 2
            between = _with_input(call, at, _half(middle, value))
            if trial.fails(between):
                fails = middle
            elif trial.passes(between):
                passes = middle
            else:
                return Pair(call, without)
        failing, passing = (_with_input(call, at, _half(bits, value)) for bits in (fails, passes))
        return Pair(failing, passing)
    return _scaled(call, trial)


def _scaled(call: Call, trial: Trial) -> Pair:
    """All inputs made smaller by one factor: the largest that pass beside the smallest that fail; else x = 0."""
    pair = Pair(call, call.with_x(torch.zeros_like(call.x_MK)))
    low, high = 0.0, 1.0
    for _ in range(SCALINGS):
        middle = (low + high) / 2
        between = call.with_x((call.x_MK.double() * middle).to(call.x_MK.dtype))
        if trial.fails(between):
            high, pair = middle, Pair(between, pair.passing)
        elif trial.passes(between):
            low, pair = middle, Pair(pair.failing, between)
        else:
            break
    return pair


def _half(bits: int, like: torch.Tensor) -> float:
    """The half with these bits, and the sign of `like`."""
    value = float(torch.tensor(bits, dtype=torch.int16).view(torch.float16))
    return -value if float(like) < 0 else value


def _with_input(call: Call, at: tuple[int, int], value: float) -> Call:
    x_MK = call.x_MK.clone()
    x_MK[at] = value
    return call.with_x(x_MK)
