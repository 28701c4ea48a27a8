"""The reported defect: gain moved from down_proj's scales into up_proj's until half accumulators overflow.

In exact arithmetic the model stays what it was. exllama's fast path adds products of x and code - zero in half before
it applies the scale: chains of 4 (4 bit), 8 (2 bit), 16 (3 bit) over every other row of a word.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable
from gptq_diff.faults.linear import Linear

KIND = "accumulator-overflow"
LANE = {4: 4, 2: 8, 3: 16}
LARGEST = 65520.0


def plant(site: Site) -> Fault:
    """The smallest gain that overflows (mild), or two or four times that."""
    parent, _, leaf = site.layer.rpartition(".")
    if leaf != "down_proj" or site.path != "exllama-fast" or site.way != "bytes":
        raise Unplantable("only up_proj's gain can move into down_proj's input, and only the fast path overflows")
    up, down = site.model.linear(f"{parent}.up_proj"), site.linear
    if down.bits not in LANE:
        raise Unplantable("8 bit adds in float32")
    x_MK = site.inputs(site.layer).astype(np.float64)
    feasible = [g for g in range(down.groups) if gain_of(x_MK, up, down, g, site.size) is not None]
    if not feasible:
        raise Unplantable("no power of two overflows it and keeps the scales exact")
    group = int(site.rng.choice(feasible))
    gain = gain_of(x_MK, up, down, group, site.size)
    assert gain is not None
    channels = np.flatnonzero(down.g_idx == group)
    prepared = with_gain(up, down, channels, group, gain)
    return Fault(KIND, f"gain {gain:g} moved into the input of group {group}", (site.layer,), prepared=prepared)


def with_gain(
    up: Linear, down: Linear, channels: npt.NDArray[np.int64], group: int, gain: float
) -> dict[str, npt.NDArray[np.float16]]:
    """The tensors that moving this gain from that group of down_proj into up_proj changes, by name."""
    scales_up, scales_down = up.scales.astype(np.float64), down.scales.astype(np.float64)
    scales_up[:, channels] *= gain
    scales_down[group] /= gain
    changed = {
        f"{up.name}.scales": scales_up.astype(np.float16),
        f"{down.name}.scales": scales_down.astype(np.float16),
    }
    if up.bias is not None:
        bias = up.bias.astype(np.float64)
        bias[channels] *= gain
        changed[f"{up.name}.bias"] = bias.astype(np.float16)
    return changed


def gain_of(x_MK: npt.NDArray[np.float64], up: Linear, down: Linear, group: int, size: float) -> float | None:
    """The power of two to move; None where scales or activations would not take it exactly."""
    channels = np.flatnonzero(down.g_idx == group)
    alone_MK = np.zeros_like(x_MK)
    alone_MK[:, channels] = x_MK[:, channels]
    peak = float(np.abs(alone_MK).max()) * 2 ** (down.bits - 1)
    if peak == 0.0:
        return None
    least = 2.0 ** np.floor(np.log2(LARGEST / peak))
    for gain in least * 2.0 ** np.arange(-3, 5):
        if gain >= 1.0 and not np.isfinite(lanes(alone_MK * gain, down)).all():
            grown = gain * (1 if size < 0.4 else 2 if size < 0.8 else 4)
            return float(grown) if exact(up, down, channels, group, grown) and fits(alone_MK * grown) else None
    return None


def fits(x_MK: npt.NDArray[np.float64]) -> bool:
    """Whether the grown activations stay within half."""
    return float(np.abs(x_MK).max()) < 60000.0


def exact(up: Linear, down: Linear, channels: npt.NDArray[np.int64], group: int, gain: float) -> bool:
    """Whether both scales are halves afterwards, too."""
    grown, shrunk = up.scales[:, channels].astype(np.float64) * gain, down.scales[group].astype(np.float64) / gain
    with np.errstate(over="ignore"):
        return all(np.array_equal(s.astype(np.float16).astype(np.float64), s) for s in (grown, shrunk))


def lanes(x_MK: npt.NDArray[np.float64], linear: Linear) -> npt.NDArray[np.float64]:
    """[2, M, words, N]: the half sum of each lane of each word; infinite where it overflows on the way.

    Rows are taken sorted by group, as the kernel does with activation order.
    """
    order = np.argsort(linear.g_idx, kind="stable")
    length = LANE[linear.bits]
    x = x_MK[:, order].reshape(len(x_MK), -1, length, 2)
    levels = linear.levels()[order].reshape(-1, length, 2, linear.columns).astype(np.float64)
    live = np.flatnonzero(np.abs(x).max(axis=(0, 2, 3)) * length * 2**linear.bits >= 30000.0)  # the others cannot
    total = np.zeros((2, len(x_MK), len(live), linear.columns))
    with np.errstate(over="ignore", invalid="ignore"):
        for step in range(length):
            for lane in (0, 1):
                product = x[:, live, step, lane][:, :, None] * levels[live, step, lane][None]
                total[lane] = (total[lane] + product).astype(np.float16)
    return total


def overflowed(x_MK: Floats, linear: Linear) -> int:
    """How many outputs a half lane sum makes infinite."""
    sums = lanes(x_MK.astype(np.float64), linear)
    return int((~np.isfinite(sums)).any(axis=(0, 2)).sum())
