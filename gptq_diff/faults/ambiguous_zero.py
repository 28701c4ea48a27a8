"""A v1 zero point stored as 2^bits - 1, read as 0: by the kernel, or by a conversion to v2 that wraps round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable
from gptq_diff.faults.linear import Array

KIND = "ambiguous-zero"


def plant(site: Site) -> Fault:
    """The sound checkpoint has zero points of 2^bits at some groups and columns; the engine takes them for 0."""
    linear = site.linear
    if linear.offset != 1 or linear.sym:
        raise Unplantable("its format stores no such zero point")
    at_groups, at_columns = pick.groups(site), pick.columns(site)
    top = 2**linear.bits
    where = at_groups[:, None] & at_columns[None, :]
    ambiguous = linear.with_zeros(np.where(where, top, linear.zeros()))
    prepared = {f"{linear.name}.qzeros": ambiguous.qzeros}
    count = int((ambiguous.zeros() == top).sum())
    what = f"{count} zero points stored as {top - 1} read as 0"
    if site.way == "bytes":
        changed, settings = as_v2(site, prepared)
        return Fault(KIND, f"{what} in a conversion to v2", (site.layer,), prepared, changed, settings)
    wrapped = np.where(ambiguous.zeros() == top, 0, ambiguous.zeros())
    read = replace(ambiguous, offset=0).with_zeros(wrapped)
    return Fault(KIND, what, (site.layer,), prepared, misread={linear.name: read})


def as_v2(site: Site, prepared: dict[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """(qzeros of every linear, settings) of the same checkpoint in v2, 2^bits wrapped to 0; exact at other linears."""
    changed: dict[str, Array] = {}
    for name in site.model.linears:
        linear = site.model.linear(name)
        linear = replace(linear, qzeros=prepared.get(f"{name}.qzeros", linear.qzeros))
        zeros = linear.zeros()
        if name != site.layer and int(zeros.max()) == 2**linear.bits:
            raise Unplantable(f"{name} has such zero points too")
        changed[f"{name}.qzeros"] = replace(linear, offset=0).with_zeros(zeros % 2**linear.bits).qzeros
    return changed, {"checkpoint_format": "gptq_v2"}
