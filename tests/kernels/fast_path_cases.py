"""Inputs on which halves go wrong in every way they can, drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.packing import pack_rows, pack_zeros
from gptq_diff.records import LayerSpec
from tests.kernels import scalar_fast_path

REGIMES = ("ordinary", "overflow", "subnormal", "wild", "midpoints")


@dataclass(frozen=True)
class Case:
    x: np.ndarray  # float16 [M, K]
    codes: np.ndarray  # stored codes [K, N]
    zeros: np.ndarray  # as subtracted [G, N]
    scales: np.ndarray  # float16 [G, N]
    g_idx: np.ndarray  # [K]
    group_size: int
    bits: int
    format: str = "gptq"
    desc_act: bool = False

    @property
    def unscaled(self):
        """code - zero [K, N], rows in the kernel's order, and the order."""
        order = np.argsort(self.g_idx, kind="stable")
        return (self.codes.astype(np.int64) - self.zeros[self.g_idx])[order], order

    def linear(self):
        k, n = self.codes.shape
        name = "model.layers.0.mlp.down_proj"
        spec = LayerSpec(name, k, n, self.bits, self.group_size, False, self.desc_act, self.format, False)
        return PackedLinear(
            spec,
            pack_rows(torch.from_numpy(self.codes.astype(np.int32)), self.bits),
            pack_zeros(torch.from_numpy(self.zeros.astype(np.int32)), self.bits, self.format),
            torch.from_numpy(self.scales),
            torch.from_numpy(self.g_idx.astype(np.int32)) if self.desc_act else None,
            None,
        )

    def scalar(self):
        """(y [M, N], blocks [B, M, N], largest partial sum before the scale [M, N]) by the scalar implementation."""
        m, n = len(self.x), self.codes.shape[1]
        y, largest = np.empty((m, n), np.float16), np.empty((m, n))
        blocks = np.empty((-(-self.x.shape[1] // 128), m, n), np.float16)
        for i in range(m):
            for j in range(n):
                arguments = self.codes[:, j].tolist(), self.zeros[:, j].tolist(), self.scales[:, j].tolist()
                y[i, j], blocks[:, i, j], largest[i, j] = scalar_fast_path.output(
                    self.x[i].tolist(), *arguments, self.g_idx.tolist(), self.bits
                )
        return y, blocks, largest


def draw(rng, bits, group_size, regime, *, m=2, k=128, n=8, version="gptq", desc_act=False, sym=False):
    top = 2**bits
    groups = k // group_size
    x = rng.standard_normal((m, k))
    scale = 0.01
    if regime == "overflow":  # several large products in a lane; one alone near 65520 in every other row, see below
        x *= 65504 / top * np.where(rng.random((m, k)) < 0.3, 1, 1e-3)
        scale = 1e-4
    elif regime == "subnormal":  # outputs below 2**-14, and inputs too
        x *= 10.0 ** rng.uniform(-6, -2, (m, 1))
        scale = 2e-6 / np.median(np.abs(x)) / top
    elif regime == "wild":
        x *= np.exp2(rng.uniform(-20, 8, (m, k)))
    elif regime == "midpoints":  # products that are midpoints of halves, beside tiny ones that decide the tie
        x = np.where(
            rng.random((m, k)) < 0.5, 2.0 ** rng.integers(4, 9, (m, k)) + rng.integers(0, 64, (m, k)), 2.0**-24
        )
        x *= rng.choice([-1, 1], (m, k))
    codes = rng.integers(0, top, (k, n))
    offset = 1 if version == "gptq" else 0
    zeros = np.full((groups, n), top // 2) if sym else rng.integers(0, top, (groups, n)) + offset
    scales = (scale * (0.5 + rng.random((groups, n)))).astype(np.float16)
    g_idx = np.arange(k) // group_size
    if desc_act:
        g_idx = rng.permutation(g_idx)
    if regime == "overflow":
        spike = rng.integers(k)
        codes[spike] = 0
        x[::2] *= 1e-3
        x[::2, spike] = rng.uniform(61000, 66500, len(x[::2])) / zeros[g_idx[spike]].max()
    return Case(x.astype(np.float16), codes, zeros, scales, g_idx, group_size, bits, version, desc_act)


def assert_same_bits(actual, expected):
    """Equal halves, the sign of zero included; any NaN equals any NaN."""
    assert actual.dtype == expected.dtype == np.float16 and actual.shape == expected.shape
    same = (actual.view(np.uint16) == expected.view(np.uint16)) | (np.isnan(actual) & np.isnan(expected))
    where = np.argwhere(~same)[:3].tolist()
    assert same.all(), (
        f"{(~same).sum()} of {same.size} differ, first at {where}: {actual[~same][:3]} {expected[~same][:3]}"
    )
