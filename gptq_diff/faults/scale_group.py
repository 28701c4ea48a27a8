"""Scales of the wrong group: the neighbour's, two neighbours exchanged, or a group size misread."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable, of_weights

KIND = "scale-group"


def plant(site: Site) -> Fault:
    """Gross: all columns, all groups one on, or groups twice as long. Mild: a few groups and columns."""
    linear, rng = site.linear, site.rng
    groups = np.arange(linear.groups)
    if len(groups) < 2:
        raise Unplantable("it has a single group")
    read = groups.copy()
    at_columns = pick.columns(site)
    ways = ["next", "previous", "exchanged"]
    way = rng.choice(ways if linear.desc_act else [*ways, "twice as long"])  # g_idx tells groups, not their size
    if way == "exchanged":
        first = int(rng.integers(len(groups) - 1))
        read[[first, first + 1]] = [first + 1, first]
        what = f"scales of groups {first} and {first + 1} exchanged"
    elif way == "twice as long":
        read, at_columns = groups // 2, np.ones(linear.columns, dtype=bool)
        linear = linear.with_zeros(linear.zeros()[read])
        what = f"group size read as {2 * linear.group_size}"
    else:
        step, chosen = (1 if way == "next" else -1), pick.groups(site)
        read = np.where(chosen, np.clip(groups + step, 0, len(groups) - 1), groups)
        what = f"scales of the {way} group in {pick.words(chosen, 'groups')}"
    scales = np.where(at_columns[None, :], linear.scales[read], linear.scales)
    if np.array_equal(scales, linear.scales):
        raise Unplantable("the neighbours have the same scales")
    return of_weights(site, KIND, f"{what}, {pick.words(at_columns, 'columns')}", replace(linear, scales=scales))
