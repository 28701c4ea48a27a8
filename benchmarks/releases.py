"""Put what benchmarks/gpu/releases.py measured into docs/releases.md: `python -m benchmarks.releases`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from benchmarks.document import filled
from benchmarks.run import RESULTS

PAGE = Path(__file__).parents[1] / "docs" / "releases.md"
MEASURED = "*-releases.json"
ROWS = ("1", "37", "50", "51")
FAST, RECONSTRUCT = "exllama-fast", "exllama-reconstruct"


def main() -> None:
    """Fill in what has results; leave the rest as it is."""
    files = sorted((RESULTS / "gpu").glob(MEASURED))
    if files:
        text = "\n".join(section(json.loads(file.read_text(encoding="utf-8"))) for file in files)
        PAGE.write_text(filled(PAGE.read_text(encoding="utf-8"), "releases", text), encoding="utf-8")


def section(report: dict[str, Any]) -> str:
    """The tables of one GPU."""
    ordered = sorted(report["releases"].items(), key=lambda entry: key(entry[0]))
    cases = report["cases"]
    lines = [
        f"{report['gpu']}, torch {report['torch']}, CUDA {report['cuda']}, {report['date']}; all releases compiled at "
        f"the same time in {report['build_seconds']:.0f} s.",
        "",
        "| release | compiled in | kernel sources | fused up to | arithmetic of the fused path | of reconstruct |",
        "|---|---|---|---|---|---|",
        *sources(ordered),
        "",
    ]
    for name, title in (
        ("captured", "SmolLM2, gain shift 4, `model.layers.11.mlp.down_proj`, its captured rows"),
        ("synthetic", "Random codes, one activation of 8192 in every row"),
    ):
        told = cases.get(name)
        if told is None:
            continue
        lines += [
            f"{title}: K {told['k']}, N {told['n']}, groups of {told['group_size']}, largest activation "
            f"{told['x_absmax']:,.0f}, largest exact output {told['exact_absmax']:,.0f}. torch's float16 product is "
            f"{told['torch_fp16_l2_rel']:.1e} off on the healthy rows.",
            "",
            "| release | lost with 1, 37, 50, 51 rows | of | error of the fused path, healthy | 20 repeats of it "
            "| error of reconstruct, healthy | 20 repeats of it |",
            "|---|---|---|---|---|---|---|",
            *(row(release, found, name) for release, found in ordered),
            "",
        ]
    return "\n".join(lines)


def key(release: str) -> tuple[str, list[int]]:
    """By package, vLLM first, then by version."""
    package, _, version = release.partition("==")
    return ("" if package == "vllm" else package, [int(number) for number in re.findall(r"\d+", version)])


def sources(ordered: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """One line a release: whether its sources, and its bits on one block of K, are those of one before."""
    digests: dict[str, dict[str, str]] = {"sources": {}, "fused_sha256": {}, "reconstruct_sha256": {}}
    lines = []
    for release, found in ordered:
        build, block = found["build"], found.get("measured", {}).get("one_block", {})
        same = {
            name: _same(known, build["sources"] if name == "sources" else block.get(name), release)
            for name, known in digests.items()
        }
        seconds = f"{build['seconds']:.0f} s" if build["failure"] is None else f"not: {build['failure']}"
        rows = f"{block['fused_rows']} rows" if block else "not measured"
        lines.append(f"| {release} | {seconds} | {same['sources']} | {rows} | " + " | ".join(
            same[name] if block else "not measured" for name in ("fused_sha256", "reconstruct_sha256")
        ) + " |")  # fmt: skip
    return lines


def _same(known: dict[str, str], digest: str | None, release: str) -> str:
    if digest is None:
        return "not measured"
    first = known.setdefault(digest, release)
    return "its own" if first == release else f"as {first}"


def row(release: str, found: dict[str, Any], case: str) -> str:
    """One line of a case's table."""
    measured = found.get("measured", {})
    if case not in measured:
        return f"| {release} | not measured: {measured.get('error', 'not compiled')} | | | | | |"
    lost, healthy = measured[case]["lost"], measured[case]["healthy"]
    counts = ", ".join(str(lost[m]["nonfinite"]) for m in ROWS)
    elements = ", ".join(f"{lost[m]['elements']:,}" for m in ROWS)
    cells = [release, counts, elements]
    for path in (FAST, RECONSTRUCT):
        said = healthy[path]
        lost_here = f", {said['nonfinite']} lost" if said["nonfinite"] else ""
        cells += [f"{said['l2_rel_of_the_finite']:.1e}{lost_here}", told(said["repeats"])]
    return f"| {' | '.join(cells)} |"


def told(repeats: dict[str, Any]) -> str:
    """Of repeated calls."""
    if repeats["distinct"] == 1:
        return "the same bits"
    return f"{repeats['distinct']} different, {repeats['l2_rel_apart']:.1e} apart"


if __name__ == "__main__":
    main()
