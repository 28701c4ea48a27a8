"""A probe as a Prometheus text file, for node_exporter's textfile collector or any other reader of that format.

Format: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from gptq_diff.errors import UsageError
from gptq_diff.server_probe.report import ProbeReport
from gptq_diff.server_probe.summary import Status
from gptq_diff.whole_file import write_whole

_BEGINS = "# HELP gptq_diff_probe_"


def metrics_text(report: ProbeReport, ended: datetime) -> str:
    """All metrics of one probe. Values that are not known are left out, as Prometheus has it."""
    lengths, status = report.lengths, report.status
    states = [each.state.value for each in report.witnesses]
    rows: list[tuple[str, str, float | None, str]] = [
        ("collapsed", "1 if an answer was a collapse.", float(status is Status.COLLAPSED), ""),
        ("judged", "1 if the server could be judged.", float(status is not Status.UNKNOWN), ""),
        *(
            ("answers", "Answers of the last probe by what they are.", float(states.count(state)), f'state="{state}"')
            for state in ("collapsed", "healthy", "unjudged")
        ),
        ("collapsed_prompt_tokens_max", "Tokens of the longest new prompt that collapsed.", lengths.collapsed_max, ""),
        ("healthy_prompt_tokens_min", "Tokens of the shortest new prompt that did not.", lengths.healthy_min, ""),
        ("duration_seconds", "Time that the probe took.", report.seconds, ""),
        ("timestamp_seconds", "When it ended, in seconds since 1970.", ended.timestamp(), ""),
    ]  # fmt: skip
    model = "" if report.server is None else report.server.model
    common = f'server="{_escaped(report.base_url)}",model="{_escaped(model)}"'
    lines, told = [], set()
    for name, what, value, labels in rows:
        if value is None:
            continue
        if name not in told:
            told.add(name)
            lines += [f"{_BEGINS}{name} {what}", f"# TYPE gptq_diff_probe_{name} gauge"]
        lines.append(f"gptq_diff_probe_{name}{{{common}{labels and ',' + labels}}} {value!r}")
    return "\n".join(lines) + "\n"


def check_place(path: Path) -> None:
    """UsageError where the file could not be written, or is somebody else's: better before a probe than after it."""
    if not path.parent.is_dir():
        raise UsageError(f"--metrics-file {path}: there is no folder {path.parent}", "Make it, or give another.")
    if path.exists() and not (path.is_file() and _ours(path)):
        raise UsageError(
            f"--metrics-file {path} is there and holds something else",
            "Remove it, or give another name, mostly *.prom.",
        )


def write_metrics(path: Path, text: str) -> None:
    """Write it whole or not at all: a reader that comes in between finds the old file or the new one.

    What is not whole yet is called PATH.part, which a collector, who reads *.prom, passes over.
    """
    write_whole(path, text, flush=True)


def _ours(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(len(_BEGINS))
    return not begin or begin == _BEGINS.encode()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
