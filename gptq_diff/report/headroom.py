"""How near the prompts came to overflow: a line for every backend."""

from __future__ import annotations

from gptq_diff.records import Headroom, Report

_WHERE = {
    "lane": "unscaled fp16 chain of the fast path",
    "block": "block of 128 rows of the fast path",
    "accumulator": "fp16 accumulator of the reconstruct path",
    "unscaled-sum": "unscaled sum of Marlin",
    "result": "result",
}
_ELSEWHERE = ("lane", "accumulator", "unscaled-sum")
"""What is told of other kernels on the reference's inputs: the sums that break first."""


def headroom_lines(report: Report) -> list[str]:
    """Of every backend that holds sums in float16 the smallest headroom; of the reference that of other kernels."""
    lines = []
    for backend in dict.fromkeys(row.backend for row in report.headroom):
        rows = [row for row in report.headroom if row.backend == backend]
        ran = [row for row in rows if row.ran]
        if ran:
            lines.append(f"{backend}: smallest headroom {_told(min(ran, key=lambda row: row.bits))}")
        others = [row for row in rows if not row.ran and row.arithmetic in _ELSEWHERE]
        lines += [f"on another kernel {backend}'s inputs would leave {_told(row)}" for row in others]
    return lines


def _told(row: Headroom) -> str:
    step = f", step {row.step}" if row.step else ""
    beyond = ": it overflows" if row.bits < 0 else ""
    return (
        f"{row.bits:.1f} bits{beyond} at {row.layer} ({_WHERE.get(row.arithmetic, row.arithmetic)}, prompt {row.prompt}"
        f"{step}, row {row.row}, channel {row.channel}: {row.activation:,.6g} x {row.weight:.4g})"
    )
