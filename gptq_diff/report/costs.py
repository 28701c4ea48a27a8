"""What each backend took: seconds by phase and memory, one row a backend."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from gptq_diff.records import Report, Result

PHASES = ("load", "generate", "judge")


def cost_table(report: Report, style: dict[str, Any]) -> Table | None:
    """Seconds to load, to generate all prompts, to judge them; peak memory. None where no result knows any."""
    by_backend: dict[str, list[Result]] = {}
    for result in report.results:
        by_backend.setdefault(result.backend, []).append(result)
    rows = {backend: _row(results) for backend, results in by_backend.items()}
    if not any(cell != "-" for row in rows.values() for cell in row):
        return None
    table = Table(**style, style="dim")
    for name in ("backend", *(f"{phase} (s)" for phase in PHASES), "memory", "GPU memory"):
        table.add_column(name, no_wrap=True, justify="left" if name == "backend" else "right")
    for backend, row in rows.items():
        table.add_row(Text(backend), *map(Text, row))
    return table


def _row(results: list[Result]) -> tuple[str, ...]:
    """Load and judge are the backend's own; generate is told prompt by prompt, here their sum."""
    first = results[0]
    generated = [r.seconds["generate"] for r in results if "generate" in r.seconds]
    seconds = {**first.seconds, **({"generate": sum(generated)} if generated else {})}
    times = tuple(f"{seconds[phase]:.1f}" if phase in seconds else "-" for phase in PHASES)
    return (*times, size(first.peak_private_bytes), size(first.peak_gpu_bytes))


def size(count: int | None) -> str:
    """Bytes for people: `812 MB`, `4.1 GB`; `-` where they are not known."""
    if count is None:
        return "-"
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
