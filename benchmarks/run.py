"""`make bench`: every figure with what is required of it, as a table and in benchmarks/results/cpu.json.

    python -m benchmarks.run [--only NAME,NAME] [--out FILE]

A figure that misses its requirement says so; the exit code is 0 all the same, since a busy machine is no defect.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from dataclasses import asdict
from pathlib import Path

from benchmarks.figure import Figure
from benchmarks.machine import machine
from gptq_diff.cli.threads import wait_without_spinning

BENCHMARKS = ("startup", "simulator", "exact", "capture", "stored", "demo")
RESULTS = Path(__file__).parent / "results"


def main(arguments: list[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description="What gptq-diff costs.")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="of: %(default)s")
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu.json", help="default: %(default)s")
    given = parser.parse_args(arguments)
    wait_without_spinning()  # as gptq-diff does, before torch is loaded
    measured_on = machine()
    print(", ".join(f"{key} {value}" for key, value in measured_on.items()))
    found: dict[str, list[Figure]] = {}
    for name in given.only.split(","):
        print(f"\n{name}: {importlib.import_module(f'benchmarks.{name}').__doc__.splitlines()[0]}")
        found[name] = importlib.import_module(f"benchmarks.{name}").figures()
        print("\n".join(line(figure) for figure in found[name]), flush=True)
    measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
    write(given.out, {"machine": measured_on, "figures": {name: rows(figures) for name, figures in found.items()}})
    missed = [figure for figures in found.values() for figure in figures if figure.verdict.startswith("MISSED")]
    print(f"\n{len(missed)} requirements missed; written to {given.out}")


def line(figure: Figure) -> str:
    """One line of the table."""
    value = f"{figure.value:>9.3g} {figure.unit:<18}{figure.required:>8}"
    return f"{figure.what:<52}{value}  {figure.verdict:<9} {figure.note}".rstrip()


def rows(figures: list[Figure]) -> list[dict[str, object]]:
    """As JSON keeps them: four digits, no more than a timing is worth."""
    return [
        {**asdict(f), "what": f.what.strip(), "value": float(f"{f.value:.4g}"), "verdict": f.verdict} for f in figures
    ]


def write(path: Path, value: object) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
