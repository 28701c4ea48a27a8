"""Output that depends on when it is written: slices of K lost or added twice, old values left, elsewhere each call."""

from __future__ import annotations

import numpy as np

from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable

KIND = "race-or-uninitialised"
TILE = 32


def plant(site: Site) -> Fault:
    """1 tile of 32 columns (mild) up to half of them (gross), drawn anew at every call."""
    if site.way != "engine":
        raise Unplantable("a checkpoint does not change from call to call")
    linear, rng = site.linear, site.rng
    weight_KN = linear.weight()
    tiles = linear.columns // TILE
    slices = max(2, linear.rows // 128)
    count = max(1, round((tiles / 2) ** site.size))
    way = str(rng.choice(["lost", "twice", "stale", "nan"]))

    def spoil(x_MK: Floats, y_MN: Floats) -> Floats:
        y = y_MN.astype(np.float64)
        for tile in rng.choice(tiles, count, replace=False):
            at = slice(int(tile) * TILE, (int(tile) + 1) * TILE)
            if way in ("lost", "twice"):
                part = int(rng.integers(slices))
                rows = slice(part * linear.rows // slices, (part + 1) * linear.rows // slices)
                one = x_MK[:, rows].astype(np.float64) @ weight_KN[rows, at]
                y[:, at] += one if way == "twice" else -one
            elif way == "stale":
                y[:, at] += rng.permutation(y_MN[:, at].reshape(-1)).reshape(len(y), TILE)
            else:
                row = int(rng.integers(len(y)))
                y[row, at.start + int(rng.integers(TILE))] = np.nan
        return y.astype(np.float32)

    said = {"lost": "one slice of K lost", "twice": "one slice of K added twice",
            "stale": "added to what was there before", "nan": "one value never written"}[way]  # fmt: skip
    return Fault(
        KIND, f"{said} in {count} of {tiles} tiles, others each call", (site.layer,), spoil={site.layer: spoil}
    )
