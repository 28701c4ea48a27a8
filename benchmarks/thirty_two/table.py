"""The results of `benchmarks.thirty_two` as tables, and as a plot of cost against size."""

from __future__ import annotations

import math
from typing import Any

PICTURE = "pictures/laptop-cost.svg"
WHAT = {
    "hf-fp32": "`hf-fp32` alone",
    "hf-fp16": "`hf-fp16` and the reference",
    "targeted": "`sim-exllama --simulate targeted` and the reference",
    "all": "`sim-exllama --simulate all` and the reference",
    "planted": "`sim-exllama`, `sim-gptq` targeted and the reference, a gain shift planted",
}
_BETWEEN = "judging, headroom, report"


def table(results: dict[str, Any]) -> str:
    """Whole runs against their floors, the planted case in a sentence, the slices."""
    floors = results["floors"]
    lines = [
        f"Floors, measured in the same run: {floors['packed_bytes'] / 1e9:.1f} GB of packed weights read at "
        f"{floors['read_rate'] / 1e9:.1f} GB/s from the page cache; float32 products at {floors['peak'] / 1e9:.0f} G "
        f"multiply-adds/s for squares of 2048, {floors['peak_rows'] / 1e9:.0f} for {floors['rows']} rows.\n",
        "| run | wall, s | required | | CPU, s | floor, s | of it | generating, s | "
        + _BETWEEN
        + ", s | worker, GiB | parent, GiB "
        "| `python -m benchmarks.thirty_two --only` |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [_row(name, results[name]) for name in WHAT if name in results]
    planted = results.get("planted")
    if planted:
        found = "found there" if planted["right"] else "NOT found"
        simulated = planted["compared"]["sim-exllama"]
        lines.append(
            f"\nPlanted at `{planted['planted']}`: {found} by both simulators, {simulated} linears simulated. "
            f"{planted['verdict']}"
        )
    if "slices" in results:
        lines += ["\nOne run of the reference and `sim-exllama --simulate targeted`, by blocks:\n", *_slices(results)]
        lines.append(f"\n![Seconds and memory against blocks]({PICTURE})")
    return "\n".join(lines) + "\n"


def _row(name: str, row: dict[str, Any]) -> str:
    most, floor = row.get("most_seconds"), row.get("floor_seconds")
    generating = sum(s["generate"] for s in row["seconds"].values())
    verdict = "" if most is None else "ok" if row["wall_seconds"] <= most else "MISSED"
    cells = [
        WHAT[name], f"{row['wall_seconds']:.0f}", "" if most is None else f"<= {most}", verdict,
        f"{row['cpu_seconds']:.0f}",
        *(("", "") if floor is None else (f"{floor:.0f}", f"{row['of_floor']:.1f}x")), f"{generating:.0f}",
        f"{row['judged_seconds']:.0f}", f"{row['worker_bytes'] / 2**30:.2f}", f"{row['parent_bytes'] / 2**30:.2f}",
        f"`{name}`",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _slices(results: dict[str, Any]) -> list[str]:
    lines = ["| blocks | wall, s | reference, s | targeted, s | " + _BETWEEN + ", s | worker, GiB | parent, GiB |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in results["slices"]:
        seconds = row["seconds"]
        times = (row["wall_seconds"], seconds["hf-fp32"]["generate"], seconds["sim-exllama"]["generate"])
        sizes = (row["worker_bytes"] / 2**30, row["parent_bytes"] / 2**30)
        cells = [f"{t:.1f}" for t in (*times, row["judged_seconds"])] + [f"{s:.2f}" for s in sizes]
        lines.append(f"| {row['blocks']} | {' | '.join(cells)} |")
    return lines


def picture(results: dict[str, Any]) -> str:
    """Two panels over the number of blocks: seconds by phase, and GiB; plain SVG that needs nothing to be drawn."""
    rows = results["slices"]
    blocks = [row["blocks"] for row in rows]
    times = {
        "wall": [r["wall_seconds"] for r in rows],
        "reference": [r["seconds"]["hf-fp32"]["generate"] for r in rows],
        "targeted": [r["seconds"]["sim-exllama"]["generate"] for r in rows],
        _BETWEEN: [r["judged_seconds"] for r in rows],
    }
    sizes = {
        "worker": [r["worker_bytes"] / 2**30 for r in rows],
        "parent": [r["parent_bytes"] / 2**30 for r in rows],
    }
    panels = panel(blocks, times, 60, "seconds") + panel(blocks, sizes, 440, "GiB, anonymous and shared")
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 320" font-family="sans-serif" font-size="12">'
        f'<rect width="780" height="320" fill="white"/>{panels}</svg>\n'
    )


COLOURS = ("#1b6ca8", "#c0504d", "#4f8a3d", "#8064a2")


def even_step(highest: float) -> float:
    """A quarter of an axis that reaches that far: 1, 1.5, 2, 2.5, 3, 4, 5 or 7.5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(highest / 4))
    return next(power * n for n in (1, 1.5, 2, 2.5, 3, 4, 5, 7.5, 10) if power * n * 4 >= highest)


def panel(blocks: list[int], lines: dict[str, list[float]], left: int, title: str) -> str:
    """A chart over the number of blocks, 280 wide, its left edge there; a line and a word for each of `lines`."""
    width, height, top = 280, 200, 40
    step, last = even_step(max(max(values) for values in lines.values()) or 1.0), max(blocks)
    highest = 4 * step

    def x(block: float) -> float:
        return left + width * block / last

    def y(value: float) -> float:
        return top + height * (1 - value / highest)

    parts = [f'<text x="{left}" y="24" font-weight="bold">{title}</text>']
    for value in (n * step for n in range(5)):
        parts.append(f'<line x1="{left}" x2="{left + width}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:.3g}</text>')
    parts += [f'<text x="{x(b):.1f}" y="{top + height + 18}" text-anchor="middle">{b}</text>' for b in blocks if b > 2]
    parts.append(f'<text x="{left + width / 2}" y="{top + height + 36}" text-anchor="middle">blocks</text>')
    for n, (name, values) in enumerate(lines.items()):
        points = " ".join(f"{x(b):.1f},{y(v):.1f}" for b, v in zip(blocks, values))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[n]}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(b):.1f}" cy="{y(v):.1f}" r="3" fill="{COLOURS[n]}"/>' for b, v in zip(blocks, values)
        ]
        at = left + 140 * (n % 2), top + height + 56 + 16 * (n // 2)
        parts.append(f'<text x="{at[0]}" y="{at[1]}" fill="{COLOURS[n]}">{name}</text>')
    return "".join(parts)
