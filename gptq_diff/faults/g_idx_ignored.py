"""Activation order ignored: rows in groups by their position, or by the permutation taken the wrong way round."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults.fault import Fault, Site, Unplantable, of_weights

KIND = "g-idx-ignored"


def plant(site: Site) -> Fault:
    """Gross: the whole permutation. Mild: the sound checkpoint itself has only a few rows out of order."""
    linear, rng = site.linear, site.rng
    plain = (np.arange(linear.rows) // linear.group_size).astype(np.int32)
    if not linear.desc_act or linear.groups < 2:
        raise Unplantable("its rows are in order")
    prepared = {}
    if site.size < 0.5:
        pairs = max(1, round((linear.rows // 4) ** (2 * site.size)))
        order = plain.copy()
        for _ in range(pairs):
            a, b = rng.choice(linear.groups, 2, replace=False)
            i, j = rng.choice(np.flatnonzero(order == a)), rng.choice(np.flatnonzero(order == b))
            order[[i, j]] = order[[j, i]]
        linear = replace(linear, g_idx=order)
        prepared = {f"{linear.name}.g_idx": order}
    moved = int((linear.g_idx != plain).sum())
    if rng.random() < 0.25 and site.size >= 0.5:
        sorted_rows = np.argsort(linear.g_idx, kind="stable")
        read, what = plain[sorted_rows], "the permutation applied to groups the wrong way round"
    else:
        read, what = plain, "g_idx ignored"
    damaged = replace(linear, g_idx=read.astype(np.int32))
    if np.array_equal(damaged.g_idx, linear.g_idx):
        raise Unplantable("no row would change its group")
    fault = of_weights(site, KIND, f"{what}, {moved} of {linear.rows} rows out of order", damaged)
    changed = {**fault.changed}
    if site.way == "bytes":
        changed[f"{linear.name}.g_idx"] = damaged.g_idx
    return replace(fault, prepared=prepared, changed=changed)
