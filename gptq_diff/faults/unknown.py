"""Errors of no kind with a name: a factor on the output, noise, or bits flipped in qweight."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Floats, Site, of_weights

KIND = "unknown"


def plant(site: Site) -> Fault:
    """3e-4 (mild) to 0.3 (gross) of the output; a few flipped words to all of some columns."""
    linear, rng = site.linear, site.rng
    if site.way == "bytes":
        count = pick.count(linear.qweight.size, 0.6 * site.size)
        words = linear.qweight.reshape(-1).copy()
        where = rng.choice(len(words), count, replace=False)
        words[where] ^= rng.integers(-(2**31), 2**31, count).astype(np.int32)
        damaged = replace(linear, qweight=words.reshape(linear.qweight.shape))
        return of_weights(site, KIND, f"{count} of {len(words)} words of qweight overwritten", damaged)
    by = float(10.0 ** (-3.5 + 3 * site.size))
    way = str(rng.choice(["factor", "noise"]))
    at_columns = pick.mask(rng, linear.columns, pick.count(linear.columns, float(rng.random())))
    if way == "factor":

        def spoil(x_MK: Floats, y_MN: Floats) -> Floats:  # noqa: ARG001
            return np.where(at_columns[None, :], y_MN * (1 + by), y_MN)

    else:

        def spoil(x_MK: Floats, y_MN: Floats) -> Floats:  # noqa: ARG001
            noise = rng.standard_normal(y_MN.shape) * by * np.sqrt(np.mean(np.square(y_MN, dtype=np.float64)))
            return np.where(at_columns[None, :], y_MN + noise, y_MN)

    return Fault(KIND, f"{way} {by:.2g}, {pick.words(at_columns, 'columns')}", (site.layer,),
                 spoil={site.layer: spoil})  # fmt: skip
