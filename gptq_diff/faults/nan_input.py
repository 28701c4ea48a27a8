"""NaN or infinity that a linear is given: a norm's weight, or an activation, that is not finite."""

from __future__ import annotations

from typing import Any

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Between, Fault, Site
from gptq_diff.faults.outside import called_after, norm_place

KIND = "nan-input"


def plant(site: Site) -> Fault:
    """Some channels of a norm's weight in the checkpoint; one value of the activation in an engine."""
    value, rng = float(site.rng.choice([np.nan, np.inf])), site.rng
    block = int(site.layer.split(".")[2])
    if site.way == "bytes":
        name, between = norm_place(site, block)
        weight = site.model.tensor(name).copy()
        chosen = pick.mask(rng, len(weight), pick.count(len(weight), site.size))
        weight[chosen] = value
        what = f"{name} {value} in {pick.words(chosen, 'channels')}"
        return Fault(KIND, what, (), changed={name: weight}, between=between, at="between")
    root = f"model.layers.{block}"
    place = int(rng.integers(site.linear.columns))

    def spoil(y: Any) -> Any:
        y = y.clone()
        y[..., -1, place % y.shape[-1]] = value
        return y

    between = Between(f"{root}.mlp.up_proj", f"{root}.mlp.down_proj", "activation")
    patch = called_after(f"{root}.mlp.act_fn", spoil)
    return Fault(
        KIND, f"one value of block {block}'s activation {value}", (), patch=patch, between=between, at="between"
    )
