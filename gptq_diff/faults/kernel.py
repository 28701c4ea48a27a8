"""A kernel with faults in it: at the planted linears it reads other weights, or its product comes out changed."""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from gptq_diff.faults.fault import Fault, Spoil
from gptq_diff.faults.linear import Linear


class PlantedKernel:
    """Like the inner kernel in everything but what is planted.

    inner: the sound kernel. fresh: makes another one like it, for linears that are misread: kernels keep what they
    unpacked under the linear's name. What each fault changed in each call is added to its own record.
    """

    def __init__(self, inner: Any, fresh: Callable[[], Any], faults: Sequence[Fault]) -> None:
        self._inner = inner
        self._other: Any = fresh() if any(f.misread for f in faults) else None
        self._misread: dict[str, Linear] = {k: v for f in faults for k, v in f.misread.items()}
        self._spoil: dict[str, list[tuple[Fault, Spoil]]] = defaultdict(list)
        for fault in faults:
            for name, spoil in fault.spoil.items():
                self._spoil[name].append((fault, spoil))
        self.name, self.on_host, self.takes_half = inner.name, inner.on_host, inner.takes_half

    def supports(self, spec: Any) -> Any:
        """What the sound kernel takes."""
        return self._inner.supports(spec)

    def multiply(self, x_MK: torch.Tensor, linear: Any) -> Any:
        """[M, N]: the sound kernel's product, with whatever is planted at this linear."""
        name = linear.spec.name
        product = self._inner.multiply(x_MK, linear)
        if name not in self._misread and name not in self._spoil:
            return product
        if name in self._misread:
            product = self._other.multiply(x_MK, as_read(linear, self._misread[name]))
        x, y = x_MK.detach().float().cpu().numpy(), product.y_MN.float().cpu().numpy()
        for fault, spoil in self._spoil.get(name, []):
            with np.errstate(over="ignore", invalid="ignore"):
                before, y = y.astype(np.float64), spoil(x, y)
                fault.changes.setdefault(name, []).append(y - before)
        given = torch.from_numpy(np.ascontiguousarray(y, dtype=np.float32)).to(product.y_MN)
        return dataclasses.replace(product, y_MN=given)


def as_read(linear: Any, damaged: Linear) -> Any:
    """The engine's own record of the linear with the damaged arrays in it."""
    plain = np.arange(damaged.rows) // damaged.group_size
    device = linear.qweight.device
    g_idx = None if np.array_equal(damaged.g_idx, plain) else torch.from_numpy(damaged.g_idx.copy()).to(device)
    spec = dataclasses.replace(linear.spec, format="gptq" if damaged.offset else "gptq_v2")
    arrays = {
        k: torch.from_numpy(np.ascontiguousarray(getattr(damaged, k))).to(device)
        for k in ("qweight", "qzeros", "scales")
    }
    return dataclasses.replace(linear, spec=spec, g_idx=g_idx, **arrays)
