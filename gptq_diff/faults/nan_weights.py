"""Scales that are NaN or infinite, in the checkpoint: only in the damaged copy, or in the sound one as well."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable

KIND = "nan-weights"


def plant(site: Site) -> Fault:
    """In some groups and columns."""
    if site.way != "bytes":
        raise Unplantable("a kernel that sees NaN where the checkpoint has none is a fault of the kernel")
    linear = site.linear
    at_groups, at_columns = pick.groups(site), pick.columns(site)
    value = np.float16(site.rng.choice([np.nan, np.inf, -np.inf]))
    scales = np.where(at_groups[:, None] & at_columns[None, :], value, linear.scales).astype(np.float16)
    changed = {f"{linear.name}.scales": scales}
    what = f"scales {value} in {pick.words(at_groups, 'groups')}, {pick.words(at_columns, 'columns')}"
    if site.rng.random() < 0.3:
        return Fault(KIND, f"{what}, in the model itself", (site.layer,), prepared=changed)
    return Fault(KIND, what, (site.layer,), changed=changed)
