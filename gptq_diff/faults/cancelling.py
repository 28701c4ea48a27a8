"""Two products beyond float16 that cancel: the reconstruct path, which keeps its sum in float16, overflows on the way.

Two activations of down_proj's input are made equal and large (the second channel's columns of gate_proj and up_proj
become copies of the first's), and in some columns their weights are opposite. The exact answer stays small.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gptq_diff.faults import pick
from gptq_diff.faults.fault import Fault, Site, Unplantable
from gptq_diff.faults.linear import Array, Linear

KIND = "accumulator-overflow"
LARGEST = 65504.0
APART = 16
"""Rows of K between the two, so that they do not meet in one step of a sum."""
SCALE = 0.5


def plant(site: Site) -> Fault:
    """In one (mild) to all (gross) columns of a 4-bit down_proj."""
    parent, _, leaf = site.layer.rpartition(".")
    down = site.linear
    if leaf != "down_proj" or site.way != "bytes" or down.bits != 4 or down.desc_act:
        raise Unplantable("it takes two channels of a 4-bit down_proj in the order of their groups")
    channel_K = np.abs(site.inputs(site.layer).astype(np.float64)).max(axis=0)
    first = int(channel_K.argmax())
    group = down.g_idx == down.g_idx[first]
    far = np.flatnonzero(group & (np.abs(np.arange(down.rows) - first) >= APART))
    if not len(far) or channel_K[first] == 0.0:
        raise Unplantable("no second channel of its group is far enough away")
    second = int(far[np.argmax(np.abs(far - first))])
    gain = 2.0 ** np.floor(np.log2(30000.0 / channel_K[first]))
    if channel_K[first] * gain * 7 * SCALE <= LARGEST:
        raise Unplantable("a power of two does not make the products large enough")
    up, gate = (site.model.linear(f"{parent}.{name}") for name in ("up_proj", "gate_proj"))
    chosen = pick.columns(site)
    prepared = {
        **changed(up, twin(up, first, second, gain)), **changed(gate, twin(gate, first, second, 1.0)),
        **changed(down, opposed(down, first, second, chosen)),
    }  # fmt: skip
    what = f"products of +-{channel_K[first] * gain * 7 * SCALE:.3g} of channels {first} and {second} cancel in " \
           f"{pick.words(chosen, 'columns')}"  # fmt: skip
    return Fault(KIND, what, (site.layer,), prepared=prepared)


def twin(linear: Linear, first: int, second: int, gain: float) -> Linear:
    """Output `second` computes what output `first` does, both times the gain."""
    order = np.arange(linear.columns)
    order[second] = first
    scales = linear.scales[:, order].astype(np.float64)
    scales[:, [first, second]] *= gain
    bias = None
    if linear.bias is not None:
        wide = linear.bias[order].astype(np.float64)
        wide[[first, second]] *= gain
        bias = wide.astype(np.float16)
    made = replace(linear, qweight=linear.qweight[:, order], scales=scales.astype(np.float16), bias=bias)
    return made.with_zeros(linear.zeros()[:, order])


def opposed(linear: Linear, first: int, second: int, chosen: pick.Mask) -> Linear:
    """Both channels count for nothing, but in the chosen columns: 3.5 times the one minus 3.5 times the other."""
    codes = linear.codes()
    middle = linear.zeros()[linear.g_idx[first]]
    codes[[first, second]] = middle
    codes[first, chosen], codes[second, chosen] = middle[chosen] + 7, middle[chosen] - 7
    if codes.max() > 15 or codes.min() < 0:
        raise Unplantable("its zero points leave no room for opposite weights")
    scales = linear.scales.copy()
    scales[linear.g_idx[first], chosen] = SCALE
    return replace(linear.with_codes(codes), scales=scales)


def changed(before: Linear, after: Linear) -> dict[str, Array]:
    """The tensors that differ."""
    sound = before.tensors()
    return {name: array for name, array in after.tensors().items() if not np.array_equal(array, sound[name])}
