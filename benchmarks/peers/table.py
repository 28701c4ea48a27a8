"""The results of `benchmarks.peers` as a table."""

from __future__ import annotations

from typing import Any


def table(results: dict[str, Any]) -> str:
    """One line a tool."""
    lines = [
        "| tool | versions | forward, with / without | memory added, MB | written, MB | compares at | what it names |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in results["tools"]:
        if "failed" in row:
            lines.append(f"| {row['tool']} | {row.get('versions', '')} | not run: {row['failed']} | | | | |")
            continue
        memory = "" if row["added_bytes"] is None else f"{row['added_bytes'] / 1e6:.0f}"
        written = "" if row["written_bytes"] is None else f"{row['written_bytes'] / 1e6:.1f}"
        rate = "" if row["compare_seconds"] is None else _rate(row)
        cells = [row["tool"], row["versions"], f"{row['ratio']:.2f}", memory, written, rate, row["names"]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _rate(row: dict[str, Any]) -> str:
    return f"{row['compared_bytes'] / row['compare_seconds'] / 1e6:.0f} MB/s ({row['compare_seconds']:.2f} s)"
