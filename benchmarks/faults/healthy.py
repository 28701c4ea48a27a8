"""Healthy runs that a careless judge would take for broken ones."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from benchmarks.faults.draw import Drawn, Place, draw_run
from benchmarks.faults.models import draw_model
from gptq_diff.faults import accumulator_overflow
from gptq_diff.faults.all_reduce import plain, two_ranks
from gptq_diff.faults.fault import Fault, Floats, Model, Unplantable

SPLIT_K, RANKS, COPY, GAIN, LARGE = "split-k order", "two ranks", "linked copy", "gain within reach", "large result"
EXTRAS = ("", "", "", SPLIT_K, RANKS, COPY, GAIN, LARGE)
"""Every third one or so is plain."""
BLOCK = 128


def draw_healthy(place: Place, seed: int, number: int) -> Drawn:
    """Healthy run `number` of that seed; the same every time."""
    rng = np.random.default_rng([seed, number, 3])
    extras = [e for e in EXTRAS if place.name == "process" or e not in (SPLIT_K, RANKS)]
    extra = extras[int(rng.integers(len(extras)))]
    for _ in range(200):
        choice = draw_model(rng, place.usable, place.small)
        kernel = str(rng.choice(place.kernels(choice)))
        run = draw_run(place, rng, choice, kernel)
        try:
            made = made_unusual(place, rng, extra, place.stored(choice), run)
        except Unplantable:
            continue
        again = 2 if extra == SPLIT_K or rng.random() < 0.15 else 1
        return Drawn(dataclasses.replace(run, extra=extra, repeats=again), "bytes", "healthy", made)
    raise Unplantable(f"no model takes a healthy run with {extra}")


def made_unusual(place: Place, rng: np.random.Generator, extra: str, model: Model, run: Any) -> tuple[Fault, ...]:
    """What is done to the sound model, or in the engine, that must not matter."""
    if extra == SPLIT_K and run.kernel != "sim-exllama":
        raise Unplantable("only the fast path adds in no fixed order")
    if extra == RANKS:
        if model.settings.get("desc_act"):
            raise Unplantable("its rows are not shared out")
        return (Fault("", "two ranks", (), patch=two_ranks(plain)),)
    block = int(rng.integers(len(model.linears) // 7))
    if extra == GAIN:
        up, down = (model.linear(f"model.layers.{block}.mlp.{part}_proj") for part in ("up", "down"))
        x_MK = place.inputs(run.model, run.prompt, down.name)
        return (gain_within_reach(rng, x_MK, up, down),)
    if extra == LARGE:
        linear = model.linear(f"model.layers.{block}.self_attn.{rng.choice(['q', 'k'])}_proj")
        x_MK = place.inputs(run.model, run.prompt, linear.name)
        largest = float(np.abs(x_MK.astype(np.float64) @ linear.weight()).max())
        grown = linear.scales.astype(np.float64) * min(300.0, 3000.0 / max(largest, 1e-3))
        return (Fault("", "outputs up to 3000", (), prepared={f"{linear.name}.scales": grown.astype(np.float16)}),)
    return ()


def gain_within_reach(rng: np.random.Generator, x_MK: Floats, up: Any, down: Any) -> Fault:
    """Gain moved from down_proj into up_proj, at least a factor of four short of overflowing anything."""
    group = int(rng.integers(down.groups))
    channels = np.flatnonzero(down.g_idx == group)
    peak = float(np.abs(x_MK[:, channels]).max(initial=0.0)) * 2 ** (down.bits + 1)
    room = 65504.0 / 4 / max(peak, 1e-6)
    gain = 2.0 ** min(5.0, np.floor(np.log2(max(room, 1e-6))))
    if gain < 2 or not accumulator_overflow.exact(up, down, channels, group, gain):
        raise Unplantable("no gain is exact and within reach")
    prepared = accumulator_overflow.with_gain(up, down, channels, group, gain)
    return Fault("", f"gain {gain:g} moved into group {group}", (), prepared=prepared)


class SplitK:
    """The inner kernel on slices of 128 rows of K, added in half in another order at every call, as atomics do."""

    def __init__(self, inner: Any, rng: np.random.Generator) -> None:
        self._inner, self._rng = inner, rng
        self.name, self.on_host, self.takes_half = inner.name, inner.on_host, inner.takes_half

    def supports(self, spec: Any) -> Any:
        return self._inner.supports(spec)

    def multiply(self, x_MK: torch.Tensor, linear: Any) -> Any:
        order_K = torch.arange(x_MK.shape[1])
        if linear.g_idx is not None and linear.spec.desc_act:
            order_K = torch.argsort(linear.g_idx, stable=True)  # blocks hold rows in the order of their groups
        total, product = None, None
        for start in self._rng.permutation(range(0, x_MK.shape[1], BLOCK)):
            alone = torch.zeros_like(x_MK)
            rows = order_K[int(start) : int(start) + BLOCK]
            alone[:, rows] = x_MK[:, rows]
            product = self._inner.multiply(alone, linear)
            total = product.y_MN if total is None else total + product.y_MN
        return dataclasses.replace(product, y_MN=total)
