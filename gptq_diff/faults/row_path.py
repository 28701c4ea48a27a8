"""A path that goes wrong, taken for few rows or for many: calls on one side of a number of rows are right."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable, Wide

KIND = "row-path"


def plant(site: Site) -> Fault:
    """The last slice of K lost, or a factor, in calls of at most (or more than) some number of rows."""
    if site.way != "engine" or len(set(site.calls)) < 2:
        raise Unplantable("all calls have the same number of rows")
    linear, rng = site.linear, site.rng
    few, many = min(site.calls), max(site.calls)
    border = int(rng.integers(few, many))
    below = bool(rng.integers(2))
    factor = 1 + 10.0 ** (-2.5 + 2 * site.size)
    lost = bool(rng.integers(2))
    weight_KN = linear.weight()
    from_row = linear.rows - max(8, round(linear.rows / 2 * site.size))

    def spoil(x_MK: Floats, y_MN: Floats) -> Wide:
        if (len(x_MK) <= border) != below:
            return y_MN
        if lost:
            kept_MN: Wide = y_MN - x_MK[:, from_row:].astype(np.float64) @ weight_KN[from_row:]
            return kept_MN
        scaled_MN: Wide = y_MN * np.float32(factor)
        return scaled_MN

    error = f"rows of K from {from_row} on lost" if lost else f"outputs times {factor:.4g}"
    side = f"at most {border} rows" if below else f"more than {border} rows"
    return Fault(KIND, f"{error} in calls of {side}", (site.layer,), spoil={site.layer: spoil})
