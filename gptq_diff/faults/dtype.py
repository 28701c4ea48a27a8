"""bfloat16 where float16 is meant: scales, weights, the input or the output rounded to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable, Wide, of_weights
from gptq_diff.faults.narrow import bfloat16

KIND = "dtype"


def plant(site: Site) -> Fault:
    """In all columns (gross), or some; in the checkpoint only scales can be."""
    linear = site.linear
    all_columns = np.ones(linear.columns, dtype=bool)
    at_columns = all_columns if site.size > 0.3 else pick.columns(site)
    what = "scales" if site.way == "bytes" else str(site.rng.choice(["scales", "weights", "input", "output"]))
    said = f"{what} rounded to bfloat16, {pick.words(at_columns, 'columns')}"
    if what == "scales":
        rounded = bfloat16(linear.scales).astype(np.float16)
        scales = np.where(at_columns[None, :], rounded, linear.scales)
        if np.array_equal(scales, linear.scales):
            raise Unplantable("its scales are bfloat16 values")
        return of_weights(site, KIND, said, replace(linear, scales=scales))
    weight_KN = linear.weight()
    lost_KN = (bfloat16(weight_KN) - weight_KN) * at_columns

    def spoil(x_MK: Floats, y_MN: Floats) -> Wide:
        if what == "output":
            return np.where(at_columns[None, :], bfloat16(y_MN), y_MN)
        if what == "input":
            return y_MN + (bfloat16(x_MK).astype(np.float64) - x_MK) @ (weight_KN * at_columns)
        return y_MN + x_MK.astype(np.float64) @ lost_KN

    return Fault(KIND, said, (site.layer,), spoil={site.layer: spoil})
