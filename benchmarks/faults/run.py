"""`make bench-faults`: plants faults, runs the main job on each, and counts what it says.

    python -m benchmarks.faults --seed N [--faults 300] [--healthy 300] [--quick] [--only ID] [--keep DIR]

Every run is drawn from the seed and its number alone; seeds below 9000 are for development, a published one is above.
Records go to a file as they come, so that an interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults import document, tables
from benchmarks.faults.lab import Lab, scratch
from benchmarks.faults.real import RealLab, found_engines
from benchmarks.faults.score import alarms
from benchmarks.faults.trial import trial
from benchmarks.machine import machine
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.models.place import cache_root

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
DEFAULT_OUT = RESULTS / "faults.json"


def main(arguments: list[str] | None = None) -> None:
    """Draw, run, count, print, write."""
    given = parsed(arguments)
    wait_without_spinning()
    wanted = [given.only] if given.only else list(ids(given.faults, given.healthy))
    records = {} if given.only else done(given.records, given.seed)
    started, measured_on = time.perf_counter(), machine()
    with places(given.environments, quick=given.quick) as where:
        for number, name in enumerate(wanted):
            if name in records:
                continue
            record = attempt(where, given.seed, name, given.keep)
            records[name] = record
            if not given.only:
                append(given.records, record)
            print(f"{number + 1:>4} of {len(wanted)}  {line(record)}", flush=True)
    measured_on["load_average_after"] = round(os.getloadavg()[0], 2)
    chosen = [records[name] for name in wanted]
    found = tables.summary(chosen)
    print("\n" + tables.text(found))
    for record in chosen:
        if record["id"] in found["misses"]:
            print(tables.miss(record))
    took = f"{time.perf_counter() - started:.0f} s"
    print(f"\n{took}; one run alone: python -m benchmarks.faults --seed {given.seed} --only ID")
    if not given.only and not given.quick:
        result = {"seed": given.seed, "machine": measured_on, "summary": found, "records": [brief(r) for r in chosen]}
        write(given.out, result)
        if given.out == DEFAULT_OUT:
            document.PAGE.write_text(document.page(result), encoding="utf-8")


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description="Planted faults: found, and named?"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help=f"below {document.DEVELOPMENT} for development; default %(default)s"
    )
    parser.add_argument("--faults", type=int, help="default 300; 40 with --quick")
    parser.add_argument("--healthy", type=int, help="default: as many")
    parser.add_argument("--quick", action="store_true", help="in this process alone, without real engines; few SmolLM2")
    parser.add_argument("--only", help="one run, by its id (fault-17, healthy-3), with all that was said of it")
    parser.add_argument("--keep", type=Path, help="leave the run directory and the checkpoints of --only there")
    parser.add_argument("--records", type=Path, help="default: a file of that seed in the user's cache")
    parser.add_argument(
        "--environments", type=Path, default=ROOT / ".envs", help="where real engines are looked for; default .envs"
    )
    parser.add_argument("--fresh", action="store_true", help="forget records of an earlier benchmark")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="default: %(default)s")
    given = parser.parse_args(arguments)
    given.faults = given.faults if given.faults is not None else 40 if given.quick else 300
    given.healthy = given.healthy if given.healthy is not None else given.faults
    name = f"{'quick-' if given.quick else ''}{given.seed}.jsonl"
    given.records = given.records or cache_root() / "faults" / name
    if given.fresh or given.quick:
        given.records.unlink(missing_ok=True)
    return given


@contextlib.contextmanager
def places(environments: Path, *, quick: bool) -> Iterator[Callable[..., dict[str, Any]]]:
    """Makes the run of a seed and a number: even ones in this process, odd ones on the real engines in turn."""
    with scratch() as folder, contextlib.ExitStack() as open_:
        labs: list[Lab] = [Lab(folder / "process", small=0.08 if quick else 0.3)]
        if not quick:
            found = found_engines(environments)
            labs += [RealLab(folder / engine.name, 0.1, engine, python) for engine, python in found]
        for lab in labs:
            open_.callback(lab.close)

        def run(seed: int, number: int, *, healthy: bool, keep: Path | None) -> dict[str, Any]:
            lab, order = whose(number, labs)
            return trial(lab, seed, number, order, healthy=healthy, keep=keep)

        yield run


def whose(number: int, labs: Sequence[Lab]) -> tuple[Lab, int]:
    """Where a number runs, and how many before it ran there."""
    if len(labs) == 1:
        return labs[0], number
    if number % 2 == 0:
        return labs[0], number // 2
    real = labs[1:]
    return real[number // 2 % len(real)], number // 2 // len(real)


def ids(faults: int, healthy: int) -> Iterator[str]:
    """Faults and healthy runs in turn."""
    for n in range(max(faults, healthy)):
        if n < faults:
            yield f"fault-{n}"
        if n < healthy:
            yield f"healthy-{n}"


def attempt(where: Any, seed: int, name: str, keep: Path | None) -> dict[str, Any]:
    """The record of one run; what fails is a record with its error, and is counted as such."""
    kind, _, number = name.rpartition("-")
    about = {"id": name, "seed": seed}
    try:
        return {**about, **where(seed, int(number), healthy=kind == "healthy", keep=keep)}
    except Exception as e:  # one broken run must not end the benchmark, and is told at its end
        traceback.print_exc()
        return {**about, "healthy": kind == "healthy", "error": f"{type(e).__name__}: {e}"}


def line(record: dict[str, Any]) -> str:
    """A run in one line."""
    if record.get("error"):
        return f"{record['id']:<12} ERROR {record['error']}"
    if record["healthy"]:
        said = "; ".join(alarms(record)) or "ok"
        about = f"{record['model']} {record['kernel']} {record['extra']}"
    else:
        s = tables.score(record)
        right = (
            "below the threshold"
            if not s.above
            else "ok"
            if s.exact and s.cause
            else "cause MISSED"
            if s.exact
            else "MISSED"
        )
        said = f"{right} ({s.best})"
        about = f"{record['model']} {record['kernel']} {record['way']} {tables.plain(s)} {s.share:.3g}"
    return f"{record['id']:<12} {about:<80} {said}  {record['seconds']['all']:.1f} s"


def done(path: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Records of an interrupted benchmark with that seed; runs that ended in an error are tried again."""
    if not path.exists():
        return {}
    found = [json.loads(one) for one in path.read_text(encoding="utf-8").splitlines()]
    return {r["id"]: r for r in found if r["seed"] == seed and not r.get("error")}


def append(path: Path, record: dict[str, Any]) -> None:
    """One line more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, ensure_ascii=False) + "\n")


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """Without the findings' evidence, which replaying the run shows again."""
    if record.get("error"):
        return record
    findings = [{key: f[key] for key in ("cause", "layer", "confidence")} for f in record["findings"]]
    return {**record, "findings": findings}


def write(path: Path, value: object) -> None:
    """As JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
