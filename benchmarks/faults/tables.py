"""The figures of a benchmark, and the tables that show them; from records alone."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.faults.score import SURE, Json, Score, alarms, score, usable

EDGES = (0.0, 0.25, 0.5, 1.0, SURE, 2.0, 4.0, 16.0, 256.0, math.inf)
"""Shares of the judge's threshold between which the curve is drawn; overflows and NaN, without size, come last."""


def summary(records: Sequence[Json]) -> dict[str, Any]:
    """Everything that is counted."""
    faults, healthy = usable(records, healthy=False), usable(records, healthy=True)
    scored = [(r, score(r)) for r in faults]
    above = [(r, s) for r, s in scored if s.above]
    single = [s for _, s in above if s.single]
    false, of_references = ([r["id"] for r in some if alarms(r)] for some in (healthy, faults))
    return {
        "faults": len(faults), "healthy": len(healthy), "errors": [r["id"] for r in records if r.get("error")],
        "above": len(above), "above_share": ratio(len(above), len(faults)),
        "near": found_of(s for _, s in scored if 1.0 <= s.share < SURE),
        "below": found_of(s for _, s in scored if s.share < 1.0),
        "exact": counted(s.exact for _, s in above), "exact_single": counted(s.exact for s in single),
        "cause": counted(s.cause for _, s in above), "cause_single": counted(s.cause for s in single),
        "false_alarms": false, "reference_alarms": of_references, "kinds": by_kind(above),
        "below_kinds": dict(Counter(plain(s) for _, s in scored if not s.above)),
        "confusion": confusion(above), "places": by_place(above), "curve": curve([s for _, s in scored]),
        "misses": [r["id"] for r, s in above if not (s.exact and s.cause)],
    }  # fmt: skip


def found_of(scores: Iterable[Score]) -> dict[str, Any]:
    """How many of these were found at all."""
    return counted(s.found for s in scores)


def plain(s: Score) -> str:
    """The planted kinds as one word."""
    return " + ".join(s.kinds)


def ratio(part: int, whole: int) -> float | None:
    """A share, None of nothing."""
    return round(part / whole, 4) if whole else None


def counted(hits: Iterable[bool]) -> dict[str, Any]:
    """How many of how many."""
    found = list(hits)
    return {"right": sum(found), "of": len(found), "rate": ratio(sum(found), len(found))}


def by_kind(above: Sequence[tuple[Json, Score]]) -> dict[str, Any]:
    """Layer and cause by what was planted; pairs under their own names."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for record, s in above:
        groups[s.kinds[0] if s.single else record["drawn_as"]].append(s)
    return {
        kind: {"exact": counted(s.exact for s in found), "cause": counted(s.cause for s in found)}
        for kind, found in sorted(groups.items())
    }


def by_place(above: Sequence[tuple[Json, Score]]) -> dict[str, Any]:
    """The same by the engine that ran, and by how it was planted."""
    groups: dict[str, list[Score]] = defaultdict(list)
    for record, s in above:
        where = {"process": "transformers"}.get(record["place"], record["place"])
        how = {"bytes": "the checkpoint", "engine": "the engine"}.get(record["way"], "both")
        groups[f"{where}, in {how}"].append(s)
    return {
        place: {"exact": counted(s.exact for s in found), "cause": counted(s.cause for s in found)}
        for place, found in sorted(groups.items())
    }


def confusion(above: Sequence[tuple[Json, Score]]) -> dict[str, dict[str, int]]:
    """Planted cause -> best finding -> how often; single faults."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for _, s in above:
        if s.single:
            found[s.kinds[0]][s.best] += 1
    return {kind: dict(found[kind].most_common()) for kind in sorted(found)}


def curve(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Share of the threshold -> how many were found, exactly, with their cause."""
    rows = []
    finite = [s for s in scores if math.isfinite(s.share)]
    for low, high in zip(EDGES, EDGES[1:]):
        rows.append(_point(low, high, [s for s in finite if low <= s.share < high]))
    rows.append(_point(math.inf, math.inf, [s for s in scores if math.isinf(s.share)]))
    return [row for row in rows if row["faults"]]


def edge(row: Json, without_size: str) -> str:
    """A row of the curve by its name."""
    return without_size if row["from"] == "inf" else f"{row['from']:.3g} to {float(row['to']):.3g}"


def _point(low: float, high: float, inside: Sequence[Score]) -> dict[str, Any]:
    return {
        "from": low if math.isfinite(low) else "inf", "to": high if math.isfinite(high) else "inf",
        "faults": len(inside), "found": sum(s.found for s in inside), "exact": sum(s.exact for s in inside),
        "cause": sum(s.cause for s in inside),
    }  # fmt: skip


def shown(value: dict[str, Any]) -> str:
    """For example "97.5 % (39 of 40)"."""
    if not value["of"]:
        return "none"
    return f"{100 * value['right'] / value['of']:.1f} % ({value['right']} of {value['of']})"


def text(found: dict[str, Any]) -> str:
    """For a terminal."""
    above = f"{found['above']} of {found['faults']}"
    false = f"{len(found['false_alarms'])} of {found['healthy']} healthy {found['false_alarms'] or ''}"
    sound = f"{len(found['reference_alarms'])} of {found['faults']} references {found['reference_alarms'] or ''}"
    lines = [
        f"above the threshold   {above}" + (f" ({100 * found['above_share']:.0f} %)" if found["faults"] else ""),
        f"  found just below it {shown(found['near'])}; further below {shown(found['below'])}",
        f"first layer exact     {shown(found['exact'])}; single faults {shown(found['exact_single'])}",
        f"cause right           {shown(found['cause'])}; single faults {shown(found['cause_single'])}",
        f"false alarms          {false}",
        f"  in runs with faults {sound}",
        f"errors                {len(found['errors'])} {found['errors'] or ''}",
        "", f"{'planted':<24}{'layer':>10}{'cause':>10}   best finding (single faults)",
    ]  # fmt: skip
    for kind, rates in found["kinds"].items():
        best = ", ".join(f"{name} {n}" for name, n in found["confusion"].get(kind, {}).items())
        exact, cause = (f"{rates[k]['right']}/{rates[k]['of']}" for k in ("exact", "cause"))
        lines.append(f"{kind:<24}{exact:>10}{cause:>10}   {best}")
    lines += ["", f"{'share of the threshold':<24}{'faults':>8}{'found':>8}{'layer':>8}{'cause':>8}"]
    for row in found["curve"]:
        name = edge(row, "NaN or infinite")
        lines.append(f"{name:<24}{row['faults']:>8}{row['found']:>8}{row['exact']:>8}{row['cause']:>8}")
    return "\n".join(lines)


def miss(record: Json) -> str:
    """One line that says what was planted and what was said instead."""
    s = score(record)
    what = "; ".join(f"{f['what']} in {', '.join(f['layers']) or f['between']['place']}" for f in record["planted"])
    bad = record["first_bad"]
    said = f"{bad['layer']} {bad['kind']}" if bad else record["status"]
    causes = ", ".join(f["cause"] for f in record["findings"]) or "no finding"
    return (
        f"{record['id']}: {record['model']} {record['kernel']} ({record['way']}), {record['tokens']} tokens, "
        f"{s.share:.3g} thresholds\n    planted {plain(s)}: {what}\n    said    {said}: {causes}"
    )
