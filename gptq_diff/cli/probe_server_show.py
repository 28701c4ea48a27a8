"""How a probe of a server is shown: one screen, one line a round while watching, JSON, a file of metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from gptq_diff.cli.output import console, print_json
from gptq_diff.server_probe.collapse import State
from gptq_diff.server_probe.metrics import metrics_text, write_metrics
from gptq_diff.server_probe.report import ProbeReport
from gptq_diff.server_probe.summary import Status
from gptq_diff.server_probe.witness import Kind, Witness
from gptq_diff.text import one_line

_ROWS = {
    Kind.LENGTH: "new", Kind.BOUNDARY: "new", Kind.DEFAULT_SYSTEM: "new, default system prompt",
    Kind.PRIMER: "fills the cache", Kind.CACHED: "after a long one", Kind.SPOILT: "after a short one",
}  # fmt: skip
"""What the table calls each kind; the last two begin as an earlier prompt did."""

_COLOURS = {Status.HEALTHY: "green", Status.COLLAPSED: "bold red", Status.UNKNOWN: "yellow"}


class Teller(AbstractContextManager["Teller"]):
    """Shows reports as they come, and on a terminal what is being done meanwhile."""

    def __init__(self, metrics_file: Path | None, *, as_json: bool, quiet: bool, watching: bool) -> None:
        self._metrics_file, self._json, self._watching = metrics_file, as_json, watching
        self._screen = console(quiet=quiet or as_json)
        self._status = self._screen.status("")

    def __enter__(self) -> Teller:
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def doing(self, what: str) -> None:
        """Show it until the next."""
        self._status.update(Text(one_line(what)))

    def tell(self, report: ProbeReport) -> None:
        """One probe, wherever it was asked to be told."""
        if self._metrics_file is not None:
            write_metrics(self._metrics_file, metrics_text(report, datetime.now(timezone.utc)))
        if self._json and self._watching:
            typer.echo(json.dumps(report.to_json(), allow_nan=False))  # one line a probe
        elif self._json:
            print_json(report.to_json())
        elif self._watching:
            now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
            self._screen.print(Text(f"{now} {report.summary}", style=_COLOURS[report.status]))
        else:
            self._show(report)

    def _show(self, report: ProbeReport) -> None:
        print_ = self._screen.print
        server = report.server
        if server is not None:
            vllm = f" (vLLM {server.version})" if server.version else ""
            how = f", {report.endpoint}" if report.endpoint else ""
            print_(Text(one_line(f"{server.api}{vllm}, model {server.model}{how}")))
        if report.witnesses:
            print_(_table(report.witnesses))
        print_(Text(report.summary, style=_COLOURS[report.status]))
        for note in report.notes:
            print_(Text(f"- {note}"))
        waited = f", {report.waited:.0f} s of them waiting before another try" if report.waited else ""
        print_(Text(f"{len(report.witnesses)} questions in {report.seconds:.0f} s{waited}", style="dim"))


def _table(witnesses: Sequence[Witness]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, side in (("prompt", "left"), ("tokens", "right"), ("collapsed", "right"), ("evidence", "left")):
        table.add_column(name, justify="right" if side == "right" else "left")
    groups: dict[tuple[str, int], list[Witness]] = {}
    for each in witnesses:
        groups.setdefault((_ROWS[each.kind], each.words), []).append(each)
    rows = list(_ROWS.values())
    for (kind, _), group in sorted(groups.items(), key=lambda item: (rows.index(item[0][0]), item[0][1])):
        table.add_row(*_cells(kind, group), style="red" if any(e.state is State.COLLAPSED for e in group) else None)
    return table


def _cells(kind: str, group: list[Witness]) -> tuple[Text, ...]:
    tokens = sorted({each.tokens for each in group if each.tokens is not None})
    size = "?" if not tokens else str(tokens[0]) if len(tokens) == 1 else f"{tokens[0]}-{tokens[-1]}"
    failed = [each for each in group if each.state is State.COLLAPSED]
    judged = [each for each in group if each.state is not State.UNJUDGED]
    shown = (failed or [each for each in group if each.state is State.UNJUDGED] or group)[0]
    text = "" if shown.answer is None or failed else f': "{one_line(shown.answer.text, 24)}"'
    count = f"{len(failed)} of {len(judged)}" if judged else "not judged"
    return tuple(Text(one_line(cell)) for cell in (kind, size, count, f"{shown.verdict.evidence}{text}"))
