"""Shards in the wrong place: q, k and v or gate and up exchanged or interleaved, ranks' shares exchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gptq_diff.faults.fault import Fault, Site, Unplantable, of_weights
from gptq_diff.faults.linear import Linear

KIND = "shard-order"
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def plant(site: Site) -> Fault:
    """Siblings exchanged, fused shares of two ranks laid side by side in the wrong order, or two shares exchanged."""
    ways: list[Callable[[Site, list[Linear]], Fault]] = [exchanged_columns, exchanged_rows]
    parent, _, leaf = site.layer.rpartition(".")
    together = next((part for part in FUSED if leaf in part), ())
    if together and site.size > 0.3:
        ways += [exchanged_siblings, interleaved]
    way = ways[int(site.rng.integers(len(ways)))]
    siblings = [site.model.linear(f"{parent}.{name}") for name in together]
    return way(site, siblings)


def taken(linear: Linear, other: Linear, name: str) -> Linear:
    """The other linear's tensors under this name; the bias with them where both have one."""
    return replace(other, name=name, bias=other.bias if linear.bias is not None else None)


def exchanged_siblings(site: Site, siblings: list[Linear]) -> Fault:
    """Two linears of one shape stand in each other's place."""
    mine = site.linear
    others = [s for s in siblings if s.name != mine.name and s.columns == mine.columns]
    if not others:
        raise Unplantable("no sibling has its shape")
    other = others[int(site.rng.integers(len(others)))]
    damaged = (taken(mine, other, mine.name), taken(other, mine, other.name))
    return of_weights(site, KIND, f"{leaf(mine)} and {leaf(other)} exchanged", *damaged)


def interleaved(site: Site, siblings: list[Linear]) -> Fault:
    """The fused matrix of two ranks, q0 k0 v0 q1 k1 v1, split as if it were q k v."""
    halves = [(linear, half) for half in (0, 1) for linear in siblings]
    order = [(i, c) for linear, half in halves for i, c in part(siblings, linear, half)]
    damaged, start = [], 0
    for linear in siblings:
        mine = order[start : start + linear.columns]
        start += linear.columns
        damaged.append(gathered(linear, siblings, mine))
    return of_weights(
        site, KIND, f"{', '.join(leaf(s) for s in siblings)} interleaved as two ranks hold them", *damaged
    )


def part(siblings: list[Linear], linear: Linear, half: int) -> list[tuple[int, int]]:
    """(index of the sibling, column) of one rank's share of it."""
    middle = linear.columns // 2
    return [(siblings.index(linear), c) for c in (range(middle) if half == 0 else range(middle, linear.columns))]


def gathered(linear: Linear, siblings: list[Linear], columns: list[tuple[int, int]]) -> Linear:
    """A linear put together from columns of several."""
    qweight = np.stack([siblings[i].qweight[:, c] for i, c in columns], axis=1)
    scales = np.stack([siblings[i].scales[:, c] for i, c in columns], axis=1)
    zeros = [s.zeros() for s in siblings]
    bias = None
    if all(s.bias is not None for s in siblings):
        bias = np.array([siblings[i].bias[c] for i, c in columns], dtype=linear.bias.dtype)  # type: ignore[index,union-attr]
    made = replace(linear, qweight=qweight, scales=scales, bias=bias)
    return made.with_zeros(np.stack([zeros[i][:, c] for i, c in columns], axis=1))


def shares(site: Site, total: int) -> tuple[np.ndarray, str]:
    """The order of [total] with two neighbouring ranks' shares exchanged: two ranks (gross) to eight (mild)."""
    ranks = 2 if site.size > 0.6 else 4 if site.size > 0.3 else 8
    width = total // ranks
    first = int(site.rng.integers(ranks - 1)) * width
    order = np.arange(total)
    order[first : first + 2 * width] = np.roll(order[first : first + 2 * width], width)
    return order, f"of ranks {first // width} and {first // width + 1} of {ranks}"


def exchanged_columns(site: Site, _: list[Linear]) -> Fault:
    """Two ranks' output channels exchanged."""
    linear = site.linear
    order, which = shares(site, linear.columns)
    bias = None if linear.bias is None else linear.bias[order]
    made = replace(linear, qweight=linear.qweight[:, order], scales=linear.scales[:, order], bias=bias)
    return of_weights(site, KIND, f"columns {which} exchanged", made.with_zeros(linear.zeros()[:, order]))


def exchanged_rows(site: Site, _: list[Linear]) -> Fault:
    """Two ranks' input channels exchanged, their groups with them."""
    linear = site.linear
    order, which = shares(site, linear.rows)
    made = replace(linear, g_idx=linear.g_idx[order].astype(np.int32)).with_codes(linear.codes()[order])
    if not linear.desc_act:  # groups go by position: scales and zero points move instead of g_idx
        groups = linear.g_idx[order].reshape(linear.groups, -1)
        if (groups != groups[:, :1]).any():
            raise Unplantable("a share ends inside a group")
        moved = replace(made, g_idx=linear.g_idx, scales=linear.scales[groups[:, 0]])
        made = moved.with_zeros(linear.zeros()[groups[:, 0]])
    return of_weights(site, KIND, f"rows {which} exchanged", made)


def leaf(linear: Linear) -> str:
    """The last part of its name."""
    return linear.name.rpartition(".")[2]
