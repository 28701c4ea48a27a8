"""The figures of a finished measurement as a table: python -m benchmarks.gpu.thirty_two.table DIR [--page]

With `sizes` measured, --page also draws what a prefill costs over the number of blocks.

DIR holds what `benchmarks.gpu.thirty_two` wrote; parts that are missing have no rows. Every figure stands beside what
the machine allows, measured in the same run, and is told as a multiple of it. --page puts the table into
docs/performance.md, between its marks.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.document import PAGE, filled
from benchmarks.thirty_two.table import panel

PICTURE = "pictures/gpu-cost.svg"
COMMAND = "python -m benchmarks.gpu.thirty_two --part"
Raw = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """One figure. most: what is required, at most; None for nothing. floor: in the figure's unit, with its reason."""

    what: str
    value: float
    unit: str
    part: str
    most: float | None = None
    floor: float | None = None
    why: str = ""

    @property
    def verdict(self) -> str:
        """Whether it is as required; a miss says by how much."""
        if self.most is None:
            return ""
        return "ok" if self.value <= self.most else f"MISSED ({self.value / self.most:.2f} of it)"

    def line(self) -> str:
        """Of the table."""
        required = "" if self.most is None else f"<= {self.most:g}"
        floor = "" if self.floor is None else f"{self.floor:.3g} {self.unit} ({self.why})"
        times = "" if not self.floor else f"{self.value / self.floor:.2f}"
        cells = (self.what, f"{self.value:.3g} {self.unit}", required, self.verdict, floor, times, f"`{self.part}`")
        return "| " + " | ".join(cells) + " |"


def rows(parts: dict[str, Raw]) -> list[Row]:
    """Of all parts that are there."""
    found = of_building(parts)
    found += of_calls(parts)
    for name in ("tap", "tap-gptq"):
        found += of_tap(parts, name)
    found += of_lengths(parts)
    return found + of_run(parts, "run-plain") + of_run(parts, "run") + of_judging(parts)


def of_building(parts: dict[str, Raw]) -> list[Row]:
    build = parts.get("build", {})
    return [] if "seconds" not in build else [Row("model build, all blocks", build["seconds"], "s", "build", 90)]


def of_calls(parts: dict[str, Raw]) -> list[Row]:
    """What this process adds to one kernel call."""
    calls = parts.get("calls", {})
    if not isinstance(calls.get("added"), dict):  # older results are of a tap that is gone
        return []
    copies, added = min(calls["copies"].values()), calls["added"]
    why = "torch launching one copy of both"
    kinds = {
        "looked at": "the tap, a kernel call", "tapped by torch": "  where torch's operations copy",
        "cloned": "  hooks that clone",
    }  # fmt: skip
    return [Row(what, added[kind], "µs", "calls", floor=copies, why=why) for kind, what in kinds.items()]


def by_rounds(times: dict[str, list[float]], kind: str) -> float:
    """Of bare: the median of the rounds' own ratios, since a machine's speed drifts from round to round."""
    return statistics.median(one / bare for one, bare in zip(times[kind], times["bare"]))


def of_tap(parts: dict[str, Raw], name: str) -> list[Row]:
    """Ratios to the bare prefill, and what the bare one is made of."""
    tap, ceilings = parts.get(name, {}), parts.get("ceilings", {})
    if "seconds" not in tap:
        return []
    seconds, work, route = tap["seconds"], tap.get("work", {}), tap["route"]
    bare, found = seconds["bare"], []
    launch = 1 / ceilings["launches_per_s"] if "launches_per_s" in ceilings else None
    if launch and "bare" in work:
        why = f"{work['bare']['launches']:.0f} launches of {launch * 1e6:.1f} µs"
        found.append(Row(f"prefill of {tap['rows']} tokens, {route}, bare", bare, "s", name,
                         floor=work["bare"]["launches"] * launch, why=why))  # fmt: skip
        found.append(Row("  the GPU busy with it", work["bare"]["gpu_busy_seconds"], "s", name))
    for kind, most in (("statistics", 1.15), ("tensors", 1.3)):
        floor = why = None
        if launch and kind in work:
            more = work[kind]["launches"] - work["bare"]["launches"]
            floor, why = (bare + more * launch) / bare, f"{more:.0f} launches more"
        times = tap["times"]
        found.append(Row(f"  with the tap, {kind}", by_rounds(times, kind), "of bare", name, most, floor, why or ""))
        found.append(Row("    by medians", seconds[kind] / bare, "of bare", name))
        found.append(Row("    the quickest round of each", min(times[kind]) / min(times["bare"]), "of bare", name))
        other = f"{kind}, another length"
        if other in times:
            found.append(Row("    of a length that comes for the first time", by_rounds(times, other), "of bare", name))
    for kind, value in seconds.items():
        if kind.startswith(("hooks", "tensors to", "followed")) and "afterwards" not in kind:
            found.append(Row(f"  {kind}", value / bare, "of bare", name))
    for kind, value in seconds.items():
        if "afterwards" in kind:
            floor, why = None, ""
            if "written" in kind and "device_to_host_bytes_per_s" in ceilings:
                floor = tap["written_bytes"] / ceilings["device_to_host_bytes_per_s"]
                why = f"{tap['written_bytes'] / 1e6:.0f} MB over PCIe"
            found.append(Row(f"  {kind}", value, "s", name, floor=floor, why=why))
    return found


def of_lengths(parts: dict[str, Raw]) -> list[Row]:
    """Longer prompts; tensors against the bus that they have to cross."""
    found, ceilings = [], parts.get("ceilings", {})
    written = parts.get("tap", {}).get("written_bytes")
    for rows_, seconds in parts.get("lengths", {}).get("by_length", {}).items():
        bare, floor, why = seconds["bare"], None, ""
        if written and "device_to_host_bytes_per_s" in ceilings:
            nbytes = written / parts["tap"]["rows"] * int(rows_)
            floor = max(1.0, nbytes / ceilings["device_to_host_bytes_per_s"] / bare)
            why = f"{nbytes / 1e9:.1f} GB over PCIe"
        found.append(Row(f"prefill of {rows_} tokens, bare", bare, "s", "lengths"))
        found.append(Row("  with the tap, statistics", seconds["statistics"] / bare, "of bare", "lengths", 1.15))
        found.append(Row("  with the tap, tensors", seconds["tensors"] / bare, "of bare", "lengths", None, floor, why))
    return found


RUNS = {
    "run": "gptq-diff run, four backends",
    "run-plain": "gptq-diff run, four backends, no experiments, no workarounds",
}


def of_run(parts: dict[str, Raw], name: str) -> list[Row]:
    """A whole run against the same engines by themselves, and its stages."""
    run = parts.get(name, {})
    bare = parts.get("bare", {}) if name == "run-plain" or "run-plain" not in parts else {}  # told once
    if "wall_seconds" not in run:
        return []
    floor = parts.get("bare", {}).get("wall_sum")
    most = None if floor is None else round(1.2 * floor, 1)
    found = [Row(RUNS[name], run["wall_seconds"], "s", name, most, floor, "the bare engines")]
    long = (stage for stage in run.get("stages", []) if stage["seconds"] >= 0.05)
    found += [Row(f"  {of_stage(stage)}", stage["seconds"], "s", name) for stage in long]
    engines = bare.get("engines", {}).items()
    return found + [Row(f"bare: {engine}", one["wall_seconds"], "s", "bare") for engine, one in engines]


def of_stage(stage: Raw) -> str:
    """Its name, and whether it ran in the thread behind the loads."""
    return f"{stage['stage']}, behind" if stage.get("behind") else str(stage["stage"])


def of_judging(parts: dict[str, Raw]) -> list[Row]:
    """Every backend's local errors, against what has to be brought to the GPU."""
    judge, ceilings, found = parts.get("judge", {}), parts.get("ceilings", {}), []
    for name, one in judge.get("by_backend", {}).items():
        floor, why = None, ""
        if "host_to_device_bytes_per_s" in ceilings:
            nbytes = judge["packed_bytes"] + one["captured_bytes"]
            floor, why = nbytes / ceilings["host_to_device_bytes_per_s"], f"{nbytes / 1e9:.1f} GB over PCIe"
        found.append(Row(f"local errors, {name}", one["seconds"], "s", "judge", 5, floor, why))
    for name, seconds in judge.get("stages", {}).items():
        found.append(Row(f"{name}, all captures", seconds, "s", "judge"))
    return found


def shared(parts: dict[str, Raw]) -> str:
    """A table of its own: a prefill shared among GPUs, in Markdown."""
    about = parts.get("parts", {})
    text = f"Measured {about.get('date', '')} on {about.get('gpus', 'GPUs')}; {about.get('blocks', '')} blocks, "
    text += f"{about.get('rows', '')} tokens, Marlin. Seconds, medians; the ratio is the median of the rounds' own.\n\n"
    text += "| GPUs | load | bare | with the tap, tensors | of bare | required | written by the ranks afterwards | "
    text += "put together afterwards | GPU memory, all |\n|---|---|---|---|---|---|---|---|---|\n"
    for name, one in sorted(parts.items()):
        if name.startswith("ranks") and name.endswith("-tap") and "seconds" in one:
            seconds, ratio = one["seconds"], by_rounds(one["times"], "tensors")
            after = [v for k, v in seconds.items() if "afterwards" in k]
            cells = (
                str(one["ranks"]), f"{one['load_seconds']:.3g}", f"{seconds['bare']:.3g}", f"{seconds['tensors']:.3g}",
                f"{ratio:.2f}", "<= 1.3" + ("" if ratio <= 1.3 else f", MISSED ({ratio / 1.3:.2f} of it)"),
                *(f"{v:.3g}" for v in after), f"{one['peak_gpu_bytes'] / 2**30:.1f} GiB",
            )  # fmt: skip
            text += "| " + " | ".join(cells) + " |\n"
    for name, one in sorted(parts.items()):
        if name.startswith("ranks") and name.endswith("-run") and "wall_seconds" in one:
            text += f"\n`gptq-diff run` on {name[5:-4]} GPUs: {one['wall_seconds']:.3g} s.\n"
    return text


def table(parts: dict[str, Raw]) -> str:
    """In Markdown, with what it was measured on and whether what was planted was named."""
    about, gpu = parts.get("parts", {}), parts.get("ceilings", {}).get("gpu", "a GPU")
    versions = parts.get("tap", {}).get("versions", {})
    named = ", ".join(f"{k} {versions[k]}" for k in ("vllm", "torch", "transformers", "python") if k in versions)
    text = f"Measured {about.get('date', '')} on one {gpu}; {named}. {about.get('blocks', '')} blocks.\n\n"
    text += f"| figure | value | required | | floor | times | `{COMMAND}` |\n|---|---|---|---|---|---|---|\n"
    text += "".join(row.line() + "\n" for row in rows(parts))
    run = parts.get("run", {})
    if "planted_linear_named" in run:
        said = "was named first by" if run["planted_linear_named"] else "was NOT what was named, failing were"
        text += f"\nPlanted at `model.layers.{run['planted']}.mlp.down_proj`; it {said} {', '.join(run['failing'])}: "
        text += f"{run['verdict']}\n"
    return text


def picture(taps: dict[int, Raw]) -> str:
    """What a prefill costs over the number of blocks; taps: results of the part `tap` by that number."""
    blocks = sorted(taps)
    kinds = {"bare": "bare", "statistics": "statistics", "tensors": "tensors", "hooks, clones on the GPU": "clones"}
    lines = {word: [1000 * taps[b]["seconds"][kind] for b in blocks] for kind, word in kinds.items()}
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 340" font-family="sans-serif" font-size="12">'
        f'<rect width="400" height="340" fill="white"/>{panel(blocks, lines, 60, "milliseconds a prefill")}</svg>\n'
    )


def by_size(place: Path, parts: dict[str, Raw]) -> dict[int, Raw]:
    """The part `tap` of every size that was measured."""
    smaller = {int(folder.name.rpartition("-")[2]): read(folder) for folder in sorted(place.glob("blocks-*"))}
    all_sizes = {**smaller, int(parts.get("parts", {}).get("blocks", 0)): parts}
    return {blocks: found["tap"] for blocks, found in all_sizes.items() if "seconds" in found.get("tap", {})}


def read(place: Path) -> dict[str, Raw]:
    """Every part's results by its name."""
    files = (file for file in sorted(place.glob("*.json")) if not file.stem.endswith(("-report", "-stages")))
    return {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("place", type=Path)
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--ranks", action="store_true", help="what was measured on several GPUs alone")
    asked = parser.parse_args()
    parts = read(asked.place)
    if asked.ranks:
        print(shared(parts))
        if asked.page:
            PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "gpu_ranks", shared(parts)), encoding="utf-8")
        return
    made, sizes = table(parts), by_size(asked.place, parts)
    if len(sizes) > 1:
        made += f"\n![What a prefill costs with the tap, over the number of blocks.]({PICTURE})\n"
    print(made)
    if asked.page:
        if len(sizes) > 1:
            (PAGE.parent / PICTURE).write_text(picture(sizes), encoding="utf-8")
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "gpu", made), encoding="utf-8")


if __name__ == "__main__":
    main()
