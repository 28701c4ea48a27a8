"""Earlier figures: what local errors were, and when one has grown by more than noise (docs/cases.md, "Baseline").

Every error is held against the baseline's own floor, what rounding explained then, so that neither another formula nor
a kernel that allows itself more noise hides a growth.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import gptq_diff
from gptq_diff.errors import UsageError
from gptq_diff.records import ALL_LINEARS, FAILED, HELD, CaseOutcome, Figures, Regression
from gptq_diff.whole_file import write_whole

GROWTH = 1.5
"""How much a linear's error may grow: other orders of summation redraw its rounding errors."""
SPREAD = 2.0
"""How far beyond the floor rounding takes an error that one element makes up alone, in floors."""
TYPICAL = 1.25
"""How much the geometric mean over all linears may grow: noise averages out there."""
ENOUGH = 8
"""Linears that a mean needs."""


@dataclass(frozen=True)
class Known:
    """One linear in a baseline: smallest and largest error over the runs it was measured in, and the floor."""

    low: float
    high: float
    floor: float

    def allowed(self, share: float) -> float:
        """The largest error that noise explains: by repeats where they spread more, else by GROWTH and the floor.

        share: of the squared error the share of its largest element. n rounding errors of one size have a norm that
        spreads by 1 / sqrt(2 n) of itself: hardly at all for thousands, and like a single normal number for one.
        """
        spread = self.high / self.low if self.low > 0 else 1.0
        return max(self.high * max(GROWTH, spread), self.floor * (1.0 + SPREAD * math.sqrt(share)))


@dataclass(frozen=True)
class Entry:
    """One backend and prompt of a case. runs: it was measured in."""

    backend: str
    prompt: str
    status: str
    kernel: Mapping[str, str]
    versions: Mapping[str, str]
    runs: int
    linears: Mapping[str, Known]


@dataclass(frozen=True)
class Baseline:
    """A baseline file. cases: name -> (fingerprint of its checkpoint, entries)."""

    cases: Mapping[str, tuple[str, tuple[Entry, ...]]]

    def compare(self, outcome: CaseOutcome) -> CaseOutcome:
        """The outcome with what has grown; FAILED where anything has, though all expectations held."""
        if not outcome.figures:
            return outcome
        if outcome.name not in self.cases:
            return replace(outcome, baseline="not in the baseline")
        fingerprint, entries = self.cases[outcome.name]
        if fingerprint != outcome.fingerprint:
            return replace(outcome, baseline="the baseline is of another checkpoint")
        known = {(e.backend, e.prompt): e for e in entries}
        grown = [r for f in outcome.figures for r in grown_in(f, known.get((f.backend, f.prompt)))]
        new = [f"{f.backend}, {f.prompt}" for f in outcome.figures if (f.backend, f.prompt) not in known]
        note = f"not in the baseline: {'; '.join(new)}" if new else ""
        state = FAILED if grown and outcome.state == HELD else outcome.state
        return replace(outcome, regressions=tuple(grown), baseline=note, state=state)

    def updated(self, outcomes: Sequence[CaseOutcome]) -> Baseline:
        """With the figures of cases that are as expected; measured again with the same versions, ranges widen."""
        cases = dict(self.cases)
        for outcome in outcomes:
            if outcome.figures and all(check.held for check in outcome.checks):
                before = cases.get(outcome.name)
                same = before is not None and before[0] == outcome.fingerprint
                known = {(e.backend, e.prompt): e for e in before[1]} if before is not None and same else {}
                made = {(f.backend, f.prompt): _entry(f, known.get((f.backend, f.prompt))) for f in outcome.figures}
                cases[outcome.name] = (outcome.fingerprint, tuple({**known, **made}.values()))
        return Baseline(cases)

    def write(self, path: Path) -> None:
        """Whole or not at all; sorted, so that a commit shows what changed."""
        raw = {
            "gptq_diff_baseline": 1, "gptq_diff": gptq_diff.__version__,
            "cases": {
                name: {"fingerprint": fingerprint, "entries": [asdict(entry) for entry in entries]}
                for name, (fingerprint, entries) in sorted(self.cases.items())
            },
        }  # fmt: skip
        write_whole(path, json.dumps(raw, indent=1) + "\n", parents=True)


def grown_in(now: Figures, before: Entry | None) -> list[Regression]:
    """Linears whose error has grown beyond the noise, the worst first, and all of them together."""
    if before is None:
        return []
    grown, logs = [], []
    for name, one in now.linears.items():
        known = before.linears.get(name)
        if known is None:
            continue
        if known.high > 0 and one.error > 0:
            logs.append(math.log(one.error / known.high))
        allowed = known.allowed(one.share)
        if one.error > allowed:
            grown.append(Regression(now.backend, now.prompt, name, known.high, one.error, allowed))
    grown.sort(key=lambda r: r.allowed / r.now)
    mean = math.exp(sum(logs) / len(logs)) if len(logs) >= ENOUGH else 1.0
    if mean > TYPICAL:
        grown.insert(0, Regression(now.backend, now.prompt, ALL_LINEARS, 1.0, mean, TYPICAL))
    return grown


def _entry(now: Figures, before: Entry | None) -> Entry:
    again = before is not None and before.versions == now.versions and before.kernel == now.kernel
    linears = {}
    for name, one in now.linears.items():
        old = before.linears.get(name) if before is not None and again else None
        low, high = (min(old.low, one.error), max(old.high, one.error)) if old else (one.error, one.error)
        linears[name] = Known(_rounded(low), _rounded(high), _rounded(one.floor))
    runs = before.runs + 1 if before is not None and again else 1
    return Entry(now.backend, now.prompt, now.status, dict(now.kernel), dict(now.versions), runs, linears)


def _rounded(value: float) -> float:
    """Four digits: more would be noise in a file that is committed."""
    return float(f"{value:.4g}")


def read_baseline(path: Path) -> Baseline:
    """The baseline in that file; UsageError where there is none, or another file."""
    hint = "make it with --update-baseline"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"the baseline {path} does not exist", hint) from None
    except (OSError, ValueError) as e:
        raise UsageError(f"the baseline {path} cannot be read: {e}", hint) from e
    if not isinstance(raw, dict) or raw.get("gptq_diff_baseline") != 1:
        raise UsageError(f"{path} is no baseline of gptq-diff", hint)
    try:
        return Baseline({name: (one["fingerprint"], tuple(map(_read, one["entries"]))) for name, one in
                         raw["cases"].items()})  # fmt: skip
    except (KeyError, TypeError, AttributeError, ValueError) as e:
        raise UsageError(f"the baseline {path} is damaged: {type(e).__name__}: {e}", hint) from e


def _read(raw: dict[str, Any]) -> Entry:
    linears = {name: Known(float(k["low"]), float(k["high"]), float(k["floor"])) for name, k in raw["linears"].items()}
    return Entry(**{**raw, "runs": int(raw["runs"]), "linears": linears})
