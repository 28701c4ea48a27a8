"""Row sweep: one row, M times over, M = 1 to 64: at which M the kernel takes another path, and the error with it.

All rows of a call are the same, so whatever changes with M is the kernel's doing. Three things are looked at, since not
every engine says which path it takes: the path that is reported, the bits of the answer, and its error.
"""

from __future__ import annotations

import torch

from gptq_diff.capture.bits import same_bits
from gptq_diff.compare.results import BAD_KINDS
from gptq_diff.diagnose.experiments.base import Answer, Answers, Probe, Subject, counted
from gptq_diff.diagnose.experiments.boundary import PART, error_border, runs, single_border
from gptq_diff.jobs import LinearCall
from gptq_diff.records import Experiment, Finding, RowRange

MOST_ROWS = 64
SHOWN = 4
"""Ranges of rows that are put into words."""


class RowSweep(Probe):
    """The number of rows at which path, bits, error or verdict change."""

    name = "row-sweep"
    sound_too = True

    def plan(self, subject: Subject, answers: Answers) -> tuple[LinearCall, ...]:
        """The worst row 1 to 64 times; the first and the last of them are kept."""
        if answers:
            return ()
        return tuple(
            LinearCall(self.call_name(m), (subject.worst,) * m, keep=(0,) if m == 1 else (0, m - 1))
            for m in range(1, MOST_ROWS + 1)
        )

    def judge(self, subject: Subject, answers: Answers) -> Experiment:
        """A verdict that changes with M, along one border or with the path, is the cause `row-path`."""
        swept = sorted(answers.values(), key=lambda answer: len(answer.call.rows))
        ranges = _ranges(swept)
        borders = {
            "path_border": _rows(swept, single_border([a.path for a in swept])),
            "bits_border": _rows(swept, single_border(_same_bits(swept))),
            "error_border": _rows(swept, error_border([a.judgement.local_l2_rel or 0.0 for a in swept])),
            "verdict_border": _rows(swept, single_border([a.bad for a in swept])),
        }
        evidence = [_in_words(ranges)]
        kinds = {r.kind in BAD_KINDS for r in ranges}
        finding = None
        if len(kinds) == 2 and not subject.sound and _clear(swept):
            by_path = len({(r.path, r.kind in BAD_KINDS) for r in ranges}) == len({r.path for r in ranges})
            if by_path or borders["verdict_border"] is not None:
                bad = [r for r in ranges if r.kind in BAD_KINDS]
                evidence.append(f"it fails with {_spans(bad)} rows and with no other number from 1 to {MOST_ROWS}")
                summary = f"it fails with {_spans(bad)} rows only"
                finding = Finding("row-path", 0.6 if by_path else 0.5, tuple(evidence), subject.layer, summary)
        if borders["path_border"] is None and len({a.path for a in swept}) == 1:
            evidence += _silent(borders)
        figures: dict[str, float | None] = {**borders}
        did = f"one captured row, 1 to {MOST_ROWS} times in one call"
        return Experiment(
            self.name, subject.layer, subject.step, did, figures, tuple(evidence), finding, tuple(ranges)
        )  # fmt: skip


def _clear(swept: list[Answer]) -> bool:
    """Whether wrong and right calls differ by more than noise does, which may carry an error over the threshold."""
    good = max((a.judgement.excess or 0.0 for a in swept if not a.bad), default=0.0)
    return all(a.judgement.nonfinite or (a.judgement.excess or 0.0) > PART * good for a in swept if a.bad)


def _rows(swept: list[Answer], place: int | None) -> int | None:
    """The number of rows at that place."""
    return None if place is None else len(swept[place].call.rows)


def _same_bits(swept: list[Answer]) -> list[int]:
    """A number for every M, equal where the first row has the same bits as with one row less."""
    labels: list[int] = []
    seen: list[torch.Tensor] = []
    for answer in swept:
        y_N = answer.y_RMN[0, 0]
        label = next((i for i, known in enumerate(seen) if same_bits(known, y_N)), len(seen))
        if label == len(seen):
            seen.append(y_N)
        labels.append(label)
    return labels


def _ranges(swept: list[Answer]) -> list[RowRange]:
    found = []
    for first, last in runs([(a.path, a.judgement.kind) for a in swept]):
        part = swept[first : last + 1]
        errors = [a.judgement.local_l2_rel for a in part if a.judgement.local_l2_rel is not None]
        nonfinite = max(-(-a.judgement.nonfinite // a.y_RMN.shape[1]) for a in part)
        m, n = len(part[0].call.rows), len(part[-1].call.rows)
        worst = max(errors, default=None)
        found.append(RowRange(m, n, part[0].path, part[0].judgement.kind, nonfinite, worst))
    return found


def _in_words(ranges: list[RowRange]) -> str:
    said = [f"{_span(r)}: {r.path}, {_verdict(r)}" for r in ranges[:SHOWN]]
    more = f"; and {len(ranges) - SHOWN} ranges more" if len(ranges) > SHOWN else ""
    return "; ".join(said) + more


def _span(r: RowRange) -> str:
    if r.first == r.last:
        return counted(r.first, "row")
    return f"{r.first} to {r.last} rows"


def _spans(ranges: list[RowRange]) -> str:
    shown = [str(r.first) if r.first == r.last else f"{r.first} to {r.last}" for r in ranges[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(ranges) > SHOWN else "")


def _verdict(r: RowRange) -> str:
    if r.nonfinite:
        return f"{counted(r.nonfinite, 'output')} not finite"
    return "no error" if r.local_l2_rel is None else f"error {r.local_l2_rel:.1e}"


def _silent(borders: dict[str, int | None]) -> list[str]:
    """What bits and errors say of an engine that names one path for all."""
    if borders["error_border"] is not None:
        m = borders["error_border"]
        return [f"the error changes between {m} and {m + 1} rows, although one path is named"]
    if borders["bits_border"] is not None:
        m = borders["bits_border"]
        return [f"from {m + 1} rows on the same row gives other bits, with an error of the same size"]
    return []
