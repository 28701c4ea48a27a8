"""What a record says of the tool: the layer found, the cause named, or an alarm where nothing was planted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
NOTHING = "nothing"
"""Best finding where there is none."""
HARMLESS = frozenset({"split-k-noise"})
"""Findings that are told of healthy runs: no alarm."""
ELSEWHERE = frozenset({"outside-linears", "nan-input"})
"""Kinds that no linear has."""

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Score:
    """One fault.

    share: of the threshold, the largest of what should be found first. above: it is 1 or more.
    kinds: planted above the threshold in the place that should be found first; of a fault below it, all kinds.
    found: something was found at all. exact: the first bad layer is the first that was planted above the threshold.
    cause: the findings there name the planted kinds, as many as there are of them. best: the best finding there.
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
    """One kind in one place, as a record has it."""

    kind: str
    place: str
    share: float


def planted_of(record: Json) -> list[Planted]:
    """Every kind in every linear that it changes, in order of execution; a place between linears by what follows it."""
    found = []
    for fault in record["planted"]:
        for layer, share in fault["shares"].items():
            place = layer or fault["between"]["after"] or "end"
            found.append(Planted(fault["kind"], place, float(share)))
    return sorted(found, key=lambda p: rank(p.place))


def rank(layer: str) -> tuple[int, int]:
    """Place in the order of execution; what follows the last linear comes last."""
    if layer == "end":
        return (10**6, 0)
    parts = layer.split(".")
    return (int(parts[2]), ORDER.index(parts[-1]))


def score(record: Json) -> Score:
    """How well the report of a run with faults tells them."""
    planted = planted_of(record)
    above = [p for p in planted if p.share >= 1.0]
    first = above[0].place if above else None
    bad = record["first_bad"]
    findings = [f for f in record["findings"] if f["cause"] not in HARMLESS]
    where = None if bad is None else bad["layer"]
    outside = bool(record["planted"]) and all(f["between"] is not None for f in record["planted"])
    if outside:
        names = names_of(record["planted"][0]["between"])
        exact = any(f["layer"] in names for f in findings[:1]) or where in names
        here = findings[:1]
    else:
        before = [p.place for p in planted if p.share < 1.0]
        missed_earlier = first is not None and where is not None and rank_or_end(where) > rank(first)
        exact = where is not None and not missed_earlier and (where == first or where in before)
        here = [f for f in findings if f["layer"] == where]
    at = where if exact and not outside else first
    there = [p for p in planted if outside or p.place == at] or planted
    wanted = {p.kind for p in there if p.share >= 1.0} or {p.kind for p in there}
    named = {f["cause"] for f in here[: len(wanted)]}
    return Score(
        share=max((p.share for p in planted if first is None or p.place == first), default=0.0), above=bool(above),
        single=len(record["planted"]) == 1, kinds=tuple(sorted(wanted)), found=bad is not None or bool(findings),
        exact=exact, cause=exact and named == wanted, best=here[0]["cause"] if here else NOTHING,
    )  # fmt: skip


def rank_or_end(layer: str) -> tuple[int, int]:
    """As `rank`; a name that is no linear's comes last."""
    leaf = layer.rpartition(".")[2]
    return rank(layer) if leaf in ORDER else rank("end")


def names_of(between: Json) -> set[str]:
    """The names that say where a fault between linears is: of the linears on either side."""
    return {name for name in (between["before"], between["after"]) if name}


def alarms(record: Json) -> list[str]:
    """What was wrongly said of a healthy run, or of the reference of any run whose reference is sound."""
    found = []
    if record["healthy"]:
        if record["status"] != "agree":
            found.append(f"status {record['status']}")
        found += [f"finding {f['cause']}" for f in record["findings"] if f["cause"] not in HARMLESS]
    own = {"nan-weights", "result-overflow"}  # may be the model's own, and then the reference's too
    if record["healthy"] or not own & {f["kind"] for f in record["planted"]}:
        if record["reference_status"] != "agree":
            found.append(f"reference {record['reference_status']}")
        found += [f"reference's finding {cause}" for cause in record["reference_findings"] if cause not in HARMLESS]
    return found


def usable(records: Sequence[Json], *, healthy: bool) -> list[Json]:
    """Those that came to a report."""
    return [r for r in records if r["healthy"] == healthy and not r.get("error")]
