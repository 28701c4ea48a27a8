"""A model whose exact answer is beyond float16: scales of some columns grown until it passes 65504."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable

KIND = "result-overflow"
LARGEST = 65520.0


def plant(site: Site) -> Fault:
    """The largest exact output of each chosen column becomes 1.1 (mild) to 16 (gross) times what float16 holds."""
    if site.way != "bytes":
        raise Unplantable("it is the model's own")
    linear = site.linear
    largest_N = np.abs(site.inputs(site.layer).astype(np.float64) @ linear.weight()).max(axis=0)
    usable = np.flatnonzero(largest_N > 1e-3)
    if not len(usable):
        raise Unplantable("its outputs are zero")
    wanted = LARGEST * 1.1 * 16.0**site.size
    chosen = site.rng.choice(usable, min(len(usable), pick.count(linear.columns, 0.7 * site.size)), replace=False)
    scales = linear.scales.astype(np.float64)
    scales[:, chosen] *= wanted / largest_N[chosen]
    if np.abs(scales).max() > 65504.0:
        raise Unplantable("a scale itself would overflow")
    what = f"exact outputs of {len(chosen)} of {linear.columns} columns grown to {wanted:.3g}"
    return Fault(KIND, what, (site.layer,), prepared={f"{linear.name}.scales": scales.astype(np.float16)})
