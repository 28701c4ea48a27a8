"""Put the measured figures into docs/performance.md, between its marks: `python -m benchmarks.document`."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.peers import table as peers_table
from benchmarks.run import RESULTS
from benchmarks.thirty_two import table as laptop

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"


def main() -> None:
    """Fill in what has results; leave the rest as it is."""
    text = PAGE.read_text(encoding="utf-8")
    tables = {
        "cpu": cpu,
        "memory": memory,
        "thirty_two": thirty_two,
        "long_and_many": long_and_many,
        "peers": peers,
    }
    for name, table in tables.items():
        results = RESULTS / f"{name}.json"
        if results.exists():
            text = filled(text, name, table(json.loads(results.read_text(encoding="utf-8"))))
    PAGE.write_text(text, encoding="utf-8")


def filled(text: str, name: str, table: str) -> str:
    """The text with what stands between the marks of that name replaced; ValueError where they are missing."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    _, found_end, after = rest.partition(end)
    if not (found and found_end):
        raise ValueError(f"the page has no marks {begin.strip()} and {end}")
    return f"{before}{begin}{table}{end}{after}"


def measured_on(machine: dict[str, object]) -> str:
    """One sentence."""
    return (
        "Measured {date} on {cpu}, {cores} cores, {memory_gib} GiB; Python {python}, torch {torch}, numba {numba}, "
        "OMP_WAIT_POLICY {omp_wait_policy}, GOMP_SPINCOUNT {gomp_spincount}. "
        "Load average {load_average_before} before, {load_average_after} after.\n\n"
    ).format_map({"gomp_spincount": "default", **machine})


def cpu(results: dict) -> str:
    """Every figure with the command that measures it."""
    lines = [
        "| figure | value | required | | beside it | `python -m benchmarks.run --only` |",
        "|---|---|---|---|---|---|",
    ]
    for name, figures in results["figures"].items():
        for f in figures:
            required = f">= {f['least']:g}" if f["least"] is not None else f"<= {f['most']:g}" if f["most"] else ""
            value = f"{f['value']:.3g} {f['unit']}"
            lines.append(f"| {f['what']} | {value} | {required} | {f['verdict']} | {f['note']} | `{name}` |")
    return measured_on(results["machine"]) + "\n".join(lines) + "\n"


def thirty_two(results: dict) -> str:
    """The 32B's shape on a CPU; its plot is drawn too."""
    if "slices" in results:
        (PAGE.parent / laptop.PICTURE).write_text(laptop.picture(results), encoding="utf-8")
    return measured_on(results["machine"]) + laptop.table(results)


def long_and_many(results: dict) -> str:
    """A row a part that was measured, what each was measured on; sizes in GiB, times in seconds."""
    lines = [
        "| prompts | tokens | wall | loads | generating | judging, headroom, report | worker | parent | kept on disk "
        "| left out |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    parts = [results[part] for part in ("many", "long") if part in results]
    for row in parts:
        loads = ", ".join(f"{seconds:.1f}" for seconds in dict.fromkeys(row["load_seconds"].values()))
        generating = ", ".join(f"{seconds:.1f}" for seconds in row["generate_seconds"].values())
        sizes = [f"{row[k] / 2**30:.2f}" for k in ("worker_bytes", "parent_bytes", "kept_bytes")]
        left_out = "; ".join(row["left_out"]) or "nothing"
        times = (row["wall_seconds"], loads, generating, row["judged_seconds"])
        cells = (row["prompts"], row["tokens"], *times, *sizes, left_out)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    machines = dict.fromkeys(f"{row['tokens']} tokens: {measured_on(row['machine'])}" for row in parts)
    return "".join(machines) + "\n".join(lines) + "\n"


def peers(results: dict) -> str:
    """Other tools on the same work."""
    return measured_on(results["machine"]) + peers_table.table(results)


def memory(results: dict) -> str:
    """One line a slice; sizes in GiB, times in seconds."""
    lines = [
        "| blocks | checkpoint | worker | judging | both at one moment | load | generate | judge | wall |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for s in results["slices"]:
        sizes = [f"{s[k] / 2**30:.2f}" for k in ("checkpoint_bytes", "worker_bytes", "judging_bytes", "together_bytes")]
        times = [f"{s[k]:.1f}" for k in ("load_seconds", "generate_seconds", "judge_seconds", "wall_seconds")]
        lines.append(f"| {s['blocks']} | {' | '.join(sizes + times)} |")
    return measured_on(results["machine"]) + "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
