"""The effect of what was planted on what was captured, worked out without asking the judge (threshold.py)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.faults.draw import Overlay
from benchmarks.faults.threshold import Wide, share_of_input, share_of_product, share_of_sum
from gptq_diff.capture.store import CaptureReader
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.faults import accumulator_overflow, result_overflow
from gptq_diff.faults.fault import Fault, Model
from gptq_diff.faults.linear import Linear

WIDER = 2.0**13
"""By how much float32's rounding is finer than float16's."""


@dataclass(frozen=True)
class Effect:
    """One fault in one linear, in units of the threshold.

    share: of what was planted. felt: of all that the captured product departs from the exact one by, rounding
    included, in the columns that the fault changes; None where a product is not what it changes. An engine may not read
    what was damaged: see `unread`.
    """

    share: float
    felt: float | None = None

    @property
    def unread(self) -> bool:
        """Whether the product is as if nothing had been planted."""
        return self.felt is not None and self.share >= 1.0 and self.felt < 1.0 and self.felt < self.share / 2


Effects = list[dict[str, Effect]]
"""For every fault: linear -> its effect ("" for what no linear has)."""


@dataclass(frozen=True)
class Seen:
    """What was captured of one run: the broken one, the reference's, the same without the fault (or None)."""

    broken: CaptureReader
    reference: CaptureReader
    healthy: CaptureReader | None


def effects_of(faults: Sequence[Fault], sound: Model, judge: Checkpoint, seen: Seen) -> Effects:
    """Shares by fault and linear; sound: what the judge reads, too."""
    found, model = [], sound
    for fault in faults:
        after: Model = Overlay(
            model, Fault(fault.kind, "", (), changed=fault.changed, misread=fault.misread, settings=fault.settings)
        )
        if fault.at == "bias":
            found.append({"": Effect(_bias(fault, model, after, seen.broken))})
        elif fault.between is not None:
            found.append({"": Effect(_between(fault, seen))})
        else:
            found.append({name: _of_linear(fault, name, model, after, sound, judge, seen) for name in fault.layers})
        model = after
    return found


def _of_linear(
    fault: Fault, name: str, before: Model, after: Model, sound: Model, judge: Checkpoint, seen: Seen
) -> Effect:
    shares, felt = [0.0], [0.0]
    linear = sound.linear(name)
    changes = fault.changes.get(name, [])
    for number, (path, x_MK, y_MN) in enumerate(_calls(seen.broken, name, fault.at)):
        if fault.kind in (accumulator_overflow.KIND, result_overflow.KIND):
            shares.append(_overflow(fault.kind, linear, x_MK))
        elif fault.at == "all-reduce":
            summands_RMN = x_MK.reshape(-1, *y_MN.shape)
            shares.append(share_of_sum(summands_RMN, changes[number]))
        else:
            if name in fault.spoil:
                change_MN = changes[number]
            else:
                with np.errstate(invalid="ignore"):
                    change_MN = x_MK @ (after.linear(name).weight() - before.linear(name).weight())
            packed, weight_KN = judge.packed(name), linear.weight()
            shares.append(share_of_product(path, packed, weight_KN, x_MK, change_MN))
            with np.errstate(invalid="ignore"):
                there_MN = np.where((change_MN != 0).any(axis=0), y_MN - x_MK @ weight_KN, 0.0)  # not what others did
                felt.append(share_of_product(path, packed, weight_KN, x_MK, there_MN))
    return Effect(max(shares), max(felt) if len(felt) > 1 else None)


def _calls(reader: CaptureReader, name: str, at: str) -> Iterator[tuple[str, Wide, Wide]]:
    """(path, x, y) of every call of that linear, oldest first; of an all-reduce the summands and the sum."""
    part = "all-reduce" if at == "all-reduce" else ""
    for line in reader.stats():
        if line["layer"] == name and line.get("part", "") == part:
            stored = f"{name}@{part}" if part else name
            x, y = (reader.tensor(line["step"], stored, side).double().numpy() for side in ("in", "out"))
            yield line["path"], x, y


def _overflow(kind: str, linear: Linear, x_MK: Wide) -> float:
    x_MK = x_MK[np.isfinite(x_MK).all(axis=1)]
    if not len(x_MK):
        return 0.0
    if kind == accumulator_overflow.KIND:
        return float("inf") if accumulator_overflow.overflowed(x_MK.astype(np.float32), linear) else 0.0
    return float("inf") if np.abs(x_MK @ linear.weight()).max() >= result_overflow.LARGEST else 0.0


def _bias(fault: Fault, before: Model, after: Model, reader: CaptureReader) -> float:
    """What a bias that is missing or added twice changes, over what the rounding of y + bias explains."""
    assert fault.between is not None
    name = fault.between.before
    known, given = before.linear(name).bias, after.linear(name).bias
    assert known is not None and given is not None
    change_N = given.astype(np.float64) - known
    if fault.patch is not None:
        change_N = known.astype(np.float64) * (1 if "twice" in fault.what else -1)
    shares = []
    for _, _, y_MN in _calls(reader, name, "kernel"):
        terms = np.stack([y_MN, np.broadcast_to(known.astype(np.float64), y_MN.shape)])
        shares.append(share_of_sum(terms, np.broadcast_to(change_N, y_MN.shape)))
    wide = str(reader.tensor(0, name, "out").dtype) == "torch.float32"
    return max(shares) * (WIDER if wide else 1.0)


def _between(fault: Fault, seen: Seen) -> float:
    assert fault.between is not None and seen.healthy is not None
    readers = (seen.healthy, seen.reference, seen.broken)
    if not fault.between.after:
        return share_of_input(*(reader.first_logits().double().numpy() for reader in readers))
    steps = min(reader.manifest.steps for reader in readers)
    found = []
    for step in range(steps):
        inputs = [reader.tensor(step, fault.between.after, "in").double().numpy() for reader in readers]
        found.append(share_of_input(*inputs))
    return max(found)


def as_json(effects: Effects) -> list[dict[str, Any]]:
    """Shares, infinity as the word, since JSON has none; 0 where the engine did not read what was damaged."""
    return [{k: _said(0.0 if e.unread else e.share) for k, e in one.items()} for one in effects]


def _said(share: float) -> float | str:
    return share if np.isfinite(share) else "inf"


def unread(effects: Effects) -> list[str]:
    """The linears that an engine did not read what was damaged of."""
    return [name for one in effects for name, e in one.items() if e.unread]
