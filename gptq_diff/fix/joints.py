"""Joints: where a power of two can move from what makes an activation into the scales of the linears that read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from gptq_diff.checkpoint.dequant import group_of_row
from gptq_diff.checkpoint.packed import PackedLinear


@dataclass(frozen=True)
class Joint:
    """One activation and its neighbours.

    producer: the norm's weight tensor, or the linear, that makes it.
    consumers: the linears that read it, all of them.
    column_K: int64, for every channel that consumers read the channel of the producer that it comes from: more than one
    of them where query heads share a value head.
    """

    producer: str
    consumers: tuple[str, ...]
    column_K: torch.Tensor

    @property
    def is_norm(self) -> bool:
        """Whether the producer is a norm's weight; linears are named without the names of their tensors."""
        return self.producer.endswith(".weight")

    def __str__(self) -> str:
        block = self.producer.rpartition(".mlp.")[0] or self.producer.rpartition(".self_attn.")[0]
        block = block or self.producer.rpartition(".")[0].rpartition(".")[0]
        ends = ", ".join(name.removeprefix(f"{block}.") for name in self.consumers)
        return f"{self.producer.removesuffix('.weight')} -> {ends}"


@dataclass(frozen=True)
class Tied:
    """Channels of the producer that can only be shifted together.

    columns: bool, the producer's channels. groups: of every consumer, in order, the rows of its scales.
    """

    columns: torch.Tensor
    groups: tuple[tuple[int, ...], ...]


def tied_channels(joint: Joint, consumers: tuple[PackedLinear, ...]) -> list[Tied]:
    """The joint's channels in the smallest sets that no group of any consumer crosses, in ascending order.

    A group's scale holds for all its rows, so their channels move together; so do channels that come from one.
    """
    group_of = [group_of_row(linear) for linear in consumers]
    columns = int(joint.column_K.max()) + 1
    label = list(range(columns))

    def root(at: int) -> int:
        while label[at] != at:
            label[at] = label[label[at]]
            at = label[at]
        return at

    for groups in group_of:
        first: dict[int, int] = {}
        for column, group in zip(joint.column_K.tolist(), groups.tolist()):
            a, b = root(column), root(first.setdefault(group, column))
            label[max(a, b)] = min(a, b)
    roots = torch.tensor([root(column) for column in range(columns)])
    tied = []
    for at in sorted(set(roots.tolist())):
        mask = roots == at
        rows = mask[joint.column_K]
        tied.append(Tied(mask, tuple(tuple(sorted(set(groups[rows].tolist()))) for groups in group_of)))
    return tied
