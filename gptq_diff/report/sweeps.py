"""What --sweep-tokens found: one line a backend, and of the many results those at which the verdict changes."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.records import Report, Sweep, SweepRange, swept_prompt


def sweep_lines(report: Report) -> list[str]:
    """`vllm-gptq: 1 to 50 tokens overflow at model.layers.11.mlp.down_proj, 51 to 64 agree`, one line a backend.

    The prompt is named where several were swept.
    """
    several = len({s.prompt for s in report.sweeps}) > 1
    return [f"{s.backend}{f', {s.prompt}' if several else ''}: {_ranges(s)}" for s in report.sweeps]


def _ranges(sweep: Sweep) -> str:
    told = [_range(r, tokens=i == 0) for i, r in enumerate(sweep.ranges)]
    every = f" (every {sweep.step} tokens)" if sweep.step > 1 else ""
    return ", ".join(told) + every


def _range(r: SweepRange, *, tokens: bool) -> str:
    lengths = f"{r.first}" if r.first == r.last else f"{r.first} to {r.last}"
    unit = "" if not tokens else " token" if r.last == 1 else " tokens"
    at = "" if r.layer is None else f" at {r.layer}"
    return f"{lengths}{unit} {r.status}{at}"


def at_the_changes(report: Report) -> Report:
    """The report with the lengths at either end of any range alone, for all backends.

    Unchanged where nothing was swept.
    """
    if not report.sweeps:
        return report
    tokens = {p.id: p.tokens for p in report.prompts}
    swept = {s.prompt for s in report.sweeps}
    ends = {(s.prompt, length) for s in report.sweeps for r in s.ranges for length in (r.first, r.last)}

    def shown(prompt: str) -> bool:
        base = swept_prompt(prompt)
        return base not in swept or (base, tokens.get(prompt)) in ends

    return replace(report, results=tuple(r for r in report.results if shown(r.prompt)))
