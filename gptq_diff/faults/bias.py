"""Bias missing or added twice: by the kernel, in the step after it, or in the checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from gptq_diff.faults.fault import Between, Fault, Floats, Site, Unplantable

KIND = "bias"


def plant(site: Site) -> Fault:
    """The whole bias, or that of a few columns."""
    linear = site.linear
    if linear.bias is None or not np.any(linear.bias):
        raise Unplantable("it has no bias")
    bias_N = linear.bias.astype(np.float32)
    doubled = bool(site.rng.integers(2))
    said = "added twice" if doubled else "missing"
    between = Between(site.layer, f"{site.layer.rpartition('.')[0]}.o_proj", "bias")
    if site.way == "bytes":
        wrong = (2 * bias_N if doubled else 0 * bias_N).astype(np.float16)
        return Fault(KIND, f"bias {said} in the checkpoint", (), changed={f"{linear.name}.bias": wrong},
                     between=between, at="bias")  # fmt: skip
    if doubled and site.rng.integers(2):

        def spoil(x_MK: Floats, y_MN: Floats) -> Floats:  # noqa: ARG001
            return y_MN + bias_N[None, :]

        return Fault(KIND, "bias added by the kernel, and again after it", (site.layer,), spoil={site.layer: spoil})

    @contextlib.contextmanager
    def patch(model: Any) -> Iterator[None]:
        module = model.get_submodule(site.layer)
        before = module._linear
        module._linear = dataclasses.replace(before, bias=2 * before.bias if doubled else None)
        try:
            yield
        finally:
            module._linear = before

    return Fault(KIND, f"bias {said} after the kernel", (), patch=patch, between=between, at="bias")
