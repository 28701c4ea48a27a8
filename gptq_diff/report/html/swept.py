"""The numbers behind the pictures of sweeps and experiments, and which of them are pictured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gptq_diff.records import Experiment, Report, Result

MOST_ASKED = 12
"""Results whose experiments are pictured; sentences tell of all."""


@dataclass(frozen=True)
class Asked:
    """What was asked of one backend's live kernel, as far as it makes a picture; rows or repeats may be None."""

    who: str
    layer: str
    rows: Experiment | None
    repeats: Experiment | None


def asked(report: Report) -> tuple[Asked, ...]:
    """Of every backend the first result with experiments, as in words (gptq_diff.report.experiments)."""
    first: dict[str, Result] = {}
    for result in report.results:
        if result.experiments:
            first.setdefault(result.backend, result)
    found = []
    for result in first.values():
        by_name = {e.name: e for e in result.experiments}
        rows, repeats = by_name.get("row-sweep"), by_name.get("repeats")
        rows = rows if rows is not None and rows.ranges else None
        repeats = repeats if repeats is not None and repeats.figures.get("repeats") else None
        if rows is not None or repeats is not None:
            found.append(Asked(f"{result.backend}, prompt {result.prompt}", result.experiments[0].layer, rows, repeats))
    return tuple(found[:MOST_ASKED])


def asked_data(one: Asked) -> dict[str, Any]:
    """As the page's script draws it."""
    rows = None
    if one.rows is not None:
        rows = [
            {
                "first": r.first, "last": r.last, "path": r.path, "kind": r.kind, "nonfinite": r.nonfinite,
                "error": r.local_l2_rel,
            }
            for r in one.rows.ranges
        ]  # fmt: skip
    repeats = None
    if one.repeats is not None:
        f = one.repeats.figures
        repeats = {
            "repeats": f["repeats"], "bad": f.get("bad") or 0, "other": f.get("other_bits") or 0,
            "spread": f.get("share_of_two_roundings"),
        }  # fmt: skip
    return {"rows": rows, "repeats": repeats}


def swept_prompts(report: Report) -> tuple[str, ...]:
    """Prompts that --sweep-tokens brought to many lengths; a picture each."""
    return tuple(dict.fromkeys(s.prompt for s in report.sweeps))


def lengths_data(report: Report) -> list[dict[str, Any]]:
    """Of every swept prompt, a strip for each backend: ranges of lengths with their status and first bad layer."""
    shown = []
    for prompt in swept_prompts(report):
        sweeps = [s for s in report.sweeps if s.prompt == prompt]
        backends = [{"backend": s.backend, "ranges": [asdict(r) for r in s.ranges]} for s in sweeps]
        first, last = min(s.first for s in sweeps), max(s.last for s in sweeps)
        shown.append({"first": first, "last": last, "step": max(s.step for s in sweeps), "backends": backends})
    return shown
