"""The proof that a written checkpoint is the same function: exact comparison in float64, tensor by tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gptq_diff.checkpoint.dequant import dequantise, group_of_row
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import GptqDiffError
from gptq_diff.fix.joints import Joint, tied_channels
from gptq_diff.fix.plan import Move

STRIP = 512
"""Rows of W that are compared at a time."""


def check_same(old: Checkpoint, new: Checkpoint, joints: Sequence[Joint], moves: Sequence[Move]) -> int:
    """Compare every tensor of `new` with `old` under the moves; the number of linears whose weights were decoded.

    From the moves alone it follows by what every row and column of every weight has to be multiplied, and by what every
    norm and bias; the product of a channel's two factors is 1. Scales, decoded weights, norms and biases must be just
    that in float64, everything else must be equal byte for byte. GptqDiffError names the tensor that is not.
    """
    rows, columns = _factors(old, joints, moves)
    decoded = 0
    for spec in old.layers:
        if spec.name not in rows and spec.name not in columns:
            continue
        before, after = old.packed(spec.name), new.packed(spec.name)
        row_K = rows.get(spec.name, torch.ones(spec.in_features, dtype=torch.float64))
        column_N = columns.get(spec.name, torch.ones(spec.out_features, dtype=torch.float64))
        group_G = torch.ones(spec.groups, dtype=torch.float64).index_copy_(0, group_of_row(before), row_K)
        wanted_GN = before.scales.double() * group_G[:, None] * column_N
        _expect(_equal(wanted_GN, after.scales.double()), f"{spec.name}.scales")
        _expect(_decoded_equal(before, after, row_K, column_N), spec.name)
        if before.bias is not None and after.bias is not None:
            _expect(torch.equal(after.bias.double(), before.bias.double() * column_N), f"{spec.name}.bias")
        decoded += 1
    shifted = {f"{name}.{part}" for name in (*rows, *columns) for part in ("scales", "bias")}
    _expect(old.tensor_names() == new.tensor_names(), "the list of tensors")
    for name in old.tensor_names():
        before_, after_ = old.tensor(name), new.tensor(name)
        if name in columns:  # a norm
            _expect(torch.equal(after_.double(), before_.double() * columns[name]), name)
        elif name not in shifted:
            _expect(before_.dtype == after_.dtype and _bytes_equal(before_, after_), name)
    return decoded


def _factors(
    checkpoint: Checkpoint, joints: Sequence[Joint], moves: Sequence[Move]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """(consumer -> factor of every row, producer -> factor of every channel), float64."""
    rows: dict[str, torch.Tensor] = {}
    columns: dict[str, torch.Tensor] = {}
    by_producer = {joint.producer: joint for joint in joints}
    for move in moves:
        joint = by_producer[move.producer]
        linears = tuple(checkpoint.packed(name) for name in joint.consumers)
        tied = next(tied for tied in tied_channels(joint, linears) if tied.groups == move.groups)
        width = len(tied.columns)
        columns.setdefault(joint.producer, torch.ones(width, dtype=torch.float64))[tied.columns] *= move.gain
        for linear in linears:
            row_K = rows.setdefault(linear.spec.name, torch.ones(linear.spec.in_features, dtype=torch.float64))
            row_K[tied.columns[joint.column_K]] /= move.gain
    for joint in joints:
        for name in joint.consumers:
            if name in rows:
                product = rows[name] * columns[joint.producer][joint.column_K]
                _expect(bool((product == 1).all()), f"{joint}")
    return rows, columns


def _decoded_equal(before: PackedLinear, after: PackedLinear, row_K: torch.Tensor, column_N: torch.Tensor) -> bool:
    """Whether W after is W before times the factors, in float64, strip by strip; NaN equals NaN."""
    before_KN, after_KN = dequantise(before), dequantise(after)  # exact in float32
    for k in range(0, len(row_K), STRIP):
        rows = slice(k, k + STRIP)
        wanted, there = before_KN[rows].double() * row_K[rows, None] * column_N, after_KN[rows].double()
        if not _equal(wanted, there):
            return False
    return True


def _equal(wanted: torch.Tensor, there: torch.Tensor) -> bool:
    return bool(((wanted == there) | (wanted.isnan() & there.isnan())).all())


def _bytes_equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def _expect(same: bool, what: str) -> None:
    if not same:
        raise GptqDiffError(
            f"the written checkpoint is not the same function at {what}", "do not use it, and report this"
        )
