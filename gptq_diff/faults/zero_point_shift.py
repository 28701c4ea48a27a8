"""Zero points off by one: v1 read as v2 or the other way round, or wrong in some groups and columns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable, of_weights

KIND = "zero-point-shift"


def plant(site: Site) -> Fault:
    """All by the same step (a version misread), or some groups and columns by a step either way."""
    linear, rng = site.linear, site.rng
    zeros = linear.zeros()
    low, high = linear.offset, 2**linear.bits - 1  # v1 stores 2^bits too, which kernels read differently: another fault
    step = int(rng.choice([-1, 1]))
    if site.size > 0.75 and site.way == "engine":
        step = -1 if linear.offset else 1
        read = replace(linear, offset=1 - linear.offset).with_zeros(zeros + step)
        return of_weights(site, KIND, f"every zero point {step:+d}: one version read as the other", read)
    if site.size > 0.75:
        shifted, what = zeros + step, f"every zero point {step:+d} that the format can store"
    else:
        at_groups, at_columns = pick.groups(site), pick.columns(site)
        where = at_groups[:, None] & at_columns[None, :]
        shifted = np.where(where, zeros + step, zeros)
        what = f"zero points {step:+d} in {pick.words(at_groups, 'groups')}, {pick.words(at_columns, 'columns')}"
    bad = (shifted < low) | (shifted > high)
    shifted = np.where(bad, zeros, shifted)  # what not every kernel reads as that stays as it was
    if np.array_equal(shifted, zeros):
        raise Unplantable("no zero point can move that way")
    return of_weights(site, KIND, what, linear.with_zeros(shifted))
