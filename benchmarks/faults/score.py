"""What a record says of the tool: the layer found, the cause named, or an alarm where nothing was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gptq_diff.compare.figures import FACTOR
from gptq_diff.records import INTERVALS

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SURE = (FACTOR + 1.0) / FACTOR
"""Share of the judge's threshold from which a fault must be found.

The judge sees an effect with the call's own rounding in it, and that may point the other way. What it can promise to
find is an effect that passes FACTOR floors even after a whole floor has been taken from it.
"""
NOTHING = "nothing"
"""Best finding where there is none."""
HARMLESS = frozenset({"split-k-noise"})
"""Findings that are told of healthy runs: no alarm."""
END = "lm_head"
"""The place after the last linear, as reports call it."""

Json = Mapping[str, Any]
Rank = tuple[int, int]


@dataclass(frozen=True)
class Score:
    """One fault.

    share: of the judge's threshold, the largest of what should be found first. above: it is SURE or more.
    kinds: planted above the threshold in the place that should be found first; of a fault below it, all kinds.
    found: something was found at all. exact: the first bad place is the first that was planted above the threshold.
    cause: the first findings there name the planted kinds, as many as there are of them; one that lies below the
    threshold may be among them. best: the best finding there.
    """

    share: float
    above: bool
    single: bool
    kinds: tuple[str, ...]
    found: bool
    exact: bool
    cause: bool
    best: str


@dataclass(frozen=True)
class Planted:
    """One kind in one place, as a record has it: a linear, or what makes the input of one (`before`).

    own: the linear whose bias it is, for a fault of the step that adds it.
    """

    kind: str
    layer: str
    before: bool
    share: float
    own: str = ""

    @property
    def rank(self) -> Rank:
        """In order of execution."""
        return rank(self.own or self.layer, before=self.before and not self.own)

    def is_at(self, bad: Json) -> bool:
        """Whether a report's first bad place is this one."""
        if self.own and bad["layer"] == self.own and bad["path"] == "bias":
            return True
        return bool(bad["layer"] == self.layer and (bad["path"] in INTERVALS) == self.before)


def planted_of(record: Json) -> list[Planted]:
    """Every kind in every place that it changes, in order of execution."""
    found = []
    for fault in record["planted"]:
        for layer, share in fault["shares"].items():
            between = fault["between"]
            if between is None:
                found.append(Planted(fault["kind"], layer, before=False, share=float(share)))
            else:
                own = between["before"] if fault["at"] == "bias" else ""
                found.append(Planted(fault["kind"], between["after"] or END, before=True, share=float(share), own=own))
    return sorted(found, key=lambda p: p.rank)


def rank(layer: str, *, before: bool) -> Rank:
    """Place in the order of execution; what follows the last linear comes last."""
    parts = layer.split(".")
    if parts[-1] not in ORDER:
        return (10**6, 0)
    return (int(parts[2]), 2 * ORDER.index(parts[-1]) + (0 if before else 1))


def score(record: Json) -> Score:
    """How well the report of a run with faults tells them."""
    planted, bad = planted_of(record), record["first_bad"]
    first = next((p for p in planted if p.share >= SURE), None)
    hit = None if bad is None else next((p for p in planted if p.is_at(bad)), None)
    exact = hit is not None and (first is None or hit.rank <= first.rank)
    findings = [f for f in record["findings"] if f["cause"] not in HARMLESS]
    here = [] if bad is None else [f for f in findings if f["layer"] == bad["layer"]]
    at = hit if exact else first
    there = planted if at is None else [p for p in planted if p.rank == at.rank]
    planted_there = {p.kind for p in there}
    wanted = {p.kind for p in there if p.share >= SURE} or planted_there
    named = [f["cause"] for f in here[: len(planted_there)]]
    right = wanted <= set(named) and set(named[: len(wanted)]) <= planted_there
    return Score(
        share=max((p.share for p in planted if first is None or p.rank == first.rank), default=0.0),
        above=first is not None, single=len(record["planted"]) == 1, kinds=tuple(sorted(wanted)),
        found=bad is not None or bool(findings), exact=exact, cause=exact and right,
        best=here[0]["cause"] if here else NOTHING,
    )  # fmt: skip


def alarms(record: Json) -> list[str]:
    """What was wrongly said of a healthy run, or of the reference of any run whose reference is sound."""
    found = []
    if record["healthy"]:
        if record["status"] != "agree":
            found.append(f"status {record['status']}{_at(record['first_bad'])}")
        found += [f"finding {f['cause']}" for f in record["findings"] if f["cause"] not in HARMLESS]
    own = {"nan-weights", "result-overflow"}  # may be the model's own, and then the reference's too
    if record["healthy"] or not own & {f["kind"] for f in record["planted"]}:
        if record["reference_status"] != "agree":
            found.append(f"reference {record['reference_status']}{_at(record.get('reference_first_bad'))}")
        found += [f"reference's finding {cause}" for cause in record["reference_findings"] if cause not in HARMLESS]
    return found


def _at(bad: Json | None) -> str:
    if bad is None:
        return ""
    excess = "" if bad["excess"] is None else f", {bad['excess']:.3g} thresholds"
    return f" at {bad['layer']} step {bad['step']} ({bad['path']}{excess})"


def usable(records: Sequence[Json], *, healthy: bool) -> list[Json]:
    """Those that came to a report."""
    return [r for r in records if r["healthy"] == healthy and not r.get("error")]
