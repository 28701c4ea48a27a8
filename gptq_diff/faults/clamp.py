"""Outputs clamped."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable

KIND = "clamp"


def plant(site: Site) -> Fault:
    """At 98 per cent of the largest healthy output (mild) down to a tenth of it (gross)."""
    if site.way != "engine":
        raise Unplantable("no checkpoint says so")
    y_MN = np.abs(site.inputs(site.layer).astype(np.float64) @ site.linear.weight())
    limit = np.float32(y_MN.max() * 0.98 * 0.1**site.size)
    if limit <= 0:
        raise Unplantable("its outputs are zero")

    def spoil(x_MK: Floats, y_MN: Floats) -> Floats:  # noqa: ARG001
        return np.clip(y_MN, -limit, limit)

    share = float((y_MN > limit).mean())
    return Fault(KIND, f"outputs clamped at {limit:.4g}, which {100 * share:.2g} % pass", (site.layer,),
                 spoil={site.layer: spoil})  # fmt: skip
