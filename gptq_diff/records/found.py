"""What is found out about a cause: findings, experiments, workarounds, headroom."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PartialSums:
    """One sum of a lost output while it grows, as the kernel holds it and as it would be without rounding.

    says: what is summed. row, column: of the output. channels: of x, after whose product the sums stand; of a long sum
    a few hundred, those of its largest and smallest value among them. exact: float64. half: in float16, None where it
    is infinite or NaN; empty where the kernel sums in float32 and narrows the end alone. limit: what float16 holds.
    """

    says: str
    row: int
    column: int
    channels: tuple[int, ...]
    exact: tuple[float, ...]
    half: tuple[float | None, ...]
    limit: float = 65504.0

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> PartialSums:
        """From what `asdict` gave; TypeError or KeyError for anything else."""
        return cls(**{**raw, **{name: tuple(raw[name]) for name in ("channels", "exact", "half")}})


@dataclass(frozen=True)
class Finding:
    """A cause with its evidence; confidence from 0 to 1.

    summary: the cause in a few words that fit into a sentence; "" where the cause's name says it. sums: of an
    overflow, the sum that left float16; None where no picture of it can be drawn.
    """

    cause: str
    confidence: float
    evidence: tuple[str, ...]
    layer: str | None
    summary: str = ""
    sums: PartialSums | None = None

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Finding:
        """From what `asdict` gave; TypeError or KeyError for anything else."""
        raw = {**raw}  # a TypeError for what is no mapping, before anything is asked of it
        sums = PartialSums.from_json(raw["sums"]) if raw.get("sums") else None
        return cls(**{**raw, "evidence": tuple(raw["evidence"]), "sums": sums})


@dataclass(frozen=True)
class RowRange:
    """Neighbouring numbers of rows that gave one picture, in the experiment that runs one row M times.

    first, last: M, both included. path: that ran. kind: as Judgement.kind. nonfinite: most in one row.
    local_l2_rel: the largest there; None where it has no size.
    """

    first: int
    last: int
    path: str
    kind: str
    nonfinite: int
    local_l2_rel: float | None


@dataclass(frozen=True)
class Experiment:
    """What one experiment on the live kernel gave (gptq_diff.diagnose.experiments).

    name: "scaled-input", "single-rows", "row-sweep", "repeats", "dirty-memory", "zero-input", "k-slices", or "not-run".
    layer, step: the captured call that it was made on. did: what was done, in a phrase.
    figures: numbers by name, None where there is nothing to count. evidence: what they say, in sentences.
    finding: what follows from this experiment alone. ranges: of the row sweep.
    """

    name: str
    layer: str
    step: int
    did: str
    figures: dict[str, float | None]
    evidence: tuple[str, ...]
    finding: Finding | None = None
    ranges: tuple[RowRange, ...] = ()


@dataclass(frozen=True)
class Workaround:
    """Something that may help; works is None where it was not tried."""

    name: str
    tried: bool
    works: bool | None
    detail: str

    @staticmethod
    def run(name: str, detail: str, *, works: bool) -> Workaround:
        """One that was tried."""
        return Workaround(name=name, tried=True, works=works, detail=detail)


@dataclass(frozen=True)
class Headroom:
    """The sum of one linear's kernel, over a prompt and its decode steps, that comes nearest to float16's end.

    ran: this sum belongs to the kernel that the backend ran; else it is what another kernel would meet on this input.
    arithmetic: "lane", "block", "accumulator", "unscaled-sum" or "result" (gptq_diff.diagnose.headroom.arithmetics).
    bits: log2(65504 / |value|), doublings left; negative where it overflows.
    layer: LAYER@RANK for a tensor-parallel rank's share. row: of that step's x. column: of y.
    channel: of x, whose product carries the sum; activation: x there; weight: what it is multiplied by, code - zero in
    an unscaled sum. value: the sum, without rounding. terms: products in it.
    """

    backend: str
    ran: bool
    arithmetic: str
    bits: float
    layer: str
    prompt: str
    step: int
    row: int
    column: int
    channel: int
    activation: float
    weight: float
    value: float
    terms: int
