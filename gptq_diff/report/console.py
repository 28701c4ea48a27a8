"""The report on a terminal: the verdict, a table of backends, and the layers around the first bad one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from gptq_diff.records import Finding, Judgement, Report, Result
from gptq_diff.report.cleaned import cleaned
from gptq_diff.report.costs import cost_table
from gptq_diff.report.experiments import experiment_lines
from gptq_diff.report.headroom import headroom_lines
from gptq_diff.report.quantisation import quantisation_line, quantisation_table
from gptq_diff.report.sweeps import at_the_changes, sweep_lines
from gptq_diff.report.workarounds import workaround_lines
from gptq_diff.text import one_line

LARGEST = 65504.0
COLOURS = {
    "agree": "green",
    "incomplete": "yellow",
    "nondeterministic": "yellow",
    "diverged": "red",
    "collapsed": "red",
    "overflow": "bold red",
    "nan": "bold red",
}
STYLE: dict[str, Any] = {
    "box": box.SIMPLE_HEAD,
    "show_edge": False,
    "header_style": "bold",
    "pad_edge": False,
    "padding": (0, 1, 0, 0),
    "title_justify": "left",
    "caption_justify": "left",
}
NEIGHBOURS = 4
"""Linears shown before and after the first bad one."""
LOG_LINES = 4
"""Lines shown of a skipped backend's log; report.json has more."""


def show(
    console: Console,
    report: Report,
    judged: Mapping[tuple[str, str], Sequence[Judgement]],
    *,
    every_layer: bool = False,
) -> None:
    """Print the whole report. judged: judgements by (backend, prompt), as far as they are stored.

    every_layer: the whole step's linears in place of the neighbours of the first bad one.
    """
    worst = worst_result(report)
    rows = judged.get((worst.backend, worst.prompt), ()) if worst is not None else ()
    report = cleaned(report, one_line)
    if not every_layer:
        report = at_the_changes(report)
    console.print(backend_table(report, console.width))
    for line in sweep_lines(report):
        console.print(Text(line, style="bold"))
    worst = worst_result(report)
    if worst is not None and worst.first_bad is not None:
        table = layer_table(worst, rows, len(rows) if every_layer else NEIGHBOURS)
        if table is not None:
            console.print(table)
    for block in finding_blocks(report.results):
        console.print(block)
    for line in experiment_lines(report):
        console.print(Text(line))
    for result in report.results:
        quantised = quantisation_line(result)
        if quantised is not None:
            console.print(Text(quantised))
            if every_layer:
                console.print(quantisation_table(result, STYLE))
    for skipped in report.skipped_backends:
        log = f" (log: {skipped.log})" if skipped.log else ""
        console.print(Text(f"skipped {skipped.backend}: {skipped.reason}{log}", style="yellow"))
        for line in skipped.log_end[-LOG_LINES:]:
            console.print(Text(f"  {line}", style="dim"))
    for line in (*_skipped_layers(report.results), *_skipped_intervals(report.results)):
        console.print(Text(line, style="yellow"))
    for line in workaround_lines(report):
        console.print(Text(line))
    for line in headroom_lines(report):
        console.print(Text(line))
    for line in report.left_out:
        console.print(Text(line, style="dim"))
    costs = cost_table(report, STYLE)
    if costs is not None:
        console.print(costs)
    console.print(verdict_panel(report))


def colour(status: str) -> str:
    """The style of a status."""
    return COLOURS.get(status, "red")


def finding_blocks(results: Sequence[Result]) -> list[RenderableType]:
    """A cause on a line of its own, its evidence below it; once for all results that have the very same."""
    of: dict[Finding, list[str]] = {}
    for result in results:
        for finding in result.findings:
            of.setdefault(finding, []).append(f"{result.backend}, {result.prompt}")
    blocks: list[RenderableType] = []
    for finding, who in of.items():
        where = f" at {finding.layer}" if finding.layer else ""
        blocks.append(Text(f"{'; '.join(who)}: {finding.cause}{where}", style="yellow"))
        blocks += [Padding(Text(f"- {evidence}"), (0, 0, 0, 2)) for evidence in finding.evidence]
    return blocks


def verdict_panel(report: Report) -> RenderableType:
    """One sentence, and who agrees."""
    verdict = report.verdict
    lines: list[RenderableType] = [Text(verdict.summary, style=colour(verdict.status))]
    if verdict.prompt is not None:
        same = [r for r in report.results if r.prompt == verdict.prompt and r.status == "agree"]
        fine = [r.backend for r in same if r.quantization_error is None]
        if fine:
            lines.append(
                Text(
                    f"On the same prompt {', '.join(fine)} agree{'' if len(fine) > 1 else 's'} with the exact answer "
                    "on every linear judged.",
                    "green",
                )
            )
    worst = worst_result(report)
    helped = [w.name for w in worst.workarounds if w.works] if worst is not None else []
    if helped:
        lines.append(Text(f"These workarounds were tried and work here: {', '.join(helped)}.", "green"))
    return Panel(
        Group(*lines),
        title=Text(f"verdict: {verdict.status}"),
        title_align="left",
        border_style=colour(verdict.status),
    )


def worst_result(report: Report) -> Result | None:
    """The result the verdict speaks of."""
    for result in report.results:
        if (result.backend, result.prompt) == (report.verdict.backend, report.verdict.prompt):
            return result
    return None


def backend_table(report: Report, width: int) -> Table:
    """One row per backend and prompt; what it writes is cut to what `width` columns leave."""
    table = Table(**STYLE)
    for name in ("backend", "prompt (tokens)", "status", "first bad linear", "compared", "of limit", "writes"):
        table.add_column(name, no_wrap=True)
    rows = [_backend_row(report, r) for r in report.results]
    taken = [max((len(row[i]) for row in rows), default=0) for i in range(6)]
    heads = [len(str(column.header)) for column in table.columns]
    room = max(width - sum(max(pair) for pair in zip(taken, heads)) - 13, 12)
    for result, row in zip(report.results, rows):
        cells = [Text(cell) for cell in row[:6]]
        cells[2].stylize(colour(result.status))
        table.add_row(*cells, Text(one_line(row[6], room)))
    table.caption = f"* {report.reference} is the reference; of limit: largest share of the detection threshold reached"
    return table


def approximate(result: Result) -> str:
    """What is said behind tokens that are not the kernel's own throughout."""
    return " (approximate)" if result.tokens_approximate else ""


def _backend_row(report: Report, r: Result) -> tuple[str, ...]:
    tokens = {p.id: p.tokens for p in report.prompts}
    status = r.status + (", collapsed" if r.collapsed and r.status != "collapsed" else "")
    bad = "-" if r.first_bad is None else r.first_bad.layer.removeprefix("model.layers.")
    if r.first_bad is not None and r.first_bad.step:
        bad += f" (step {r.first_bad.step})"
    return (
        r.backend + ("*" if r.backend == report.reference else ""),
        f"{r.prompt} ({tokens.get(r.prompt, 0)}{f', {r.cached_rows} cached' if r.cached_rows else ''})",
        status,
        bad,
        "-" if r.quantization_error else f"{r.layers.compared}/{report.model.quantized_linears}",
        "-" if r.worst_excess is None else f"{r.worst_excess:.2g}",
        (r.text if r.text is not None else " ".join(map(str, r.tokens))) + approximate(r),
    )


def layer_table(result: Result, judgements: Sequence[Judgement], around: int = NEIGHBOURS) -> Table | None:
    """The linears around the first bad one, in order of execution, with magnitudes as bars up to 65504.

    None where their judgements are not stored.
    """
    bad = result.first_bad
    assert bad is not None
    step = [j for j in judgements if j.step == bad.step]
    near = [j for j in step if abs(j.index - bad.index) <= around]
    if not near:
        return None
    span = f"linears {near[0].index} to {near[-1].index} of {len({j.index for j in step})} in step {bad.step}"
    title = Text(f"{result.backend}, prompt {result.prompt}: {span}")
    table = Table(
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        header_style="bold",
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for name in ("linear", "largest input", "exact y", "own error", "explained", "inherited", ""):
        table.add_column(name, no_wrap=True)
    for j in near:
        broken = j.kind in {"overflow", "nan", "diverged"}
        table.add_row(
            Text(one_line(j.stored)), _magnitude(j.input_absmax), _magnitude(j.exact_absmax), _number(j.local_l2_rel),
            _number(j.noise_floor), _number(j.inherited_l2_rel), Text(_note(j), style="bold red" if broken else "dim"),
            style="bold" if j.index == bad.index else None,
        )  # fmt: skip
    return table


def _note(j: Judgement) -> str:
    if j.kind == "ok":
        return f"{j.inherited_rows} of {j.rows} rows lost" if j.inherited_rows else ""
    if j.kind == "inherited":
        return "input lost"
    return f"{j.kind}: {j.nonfinite} inf/NaN" if j.nonfinite else j.kind


def _magnitude(value: float, width: int = 4) -> Text:
    """A number and its place on a log scale from 2^-8 to 65504, as a bar."""
    share = 0.0 if value <= 0 else (math.log2(value) + 8) / (math.log2(LARGEST) + 8)
    share = min(max(share, 0.0), 1.0)
    eighths = round(share * width * 8)
    bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    style = "red" if share > 0.9 else "yellow" if share > 0.75 else "cyan"
    return Text.assemble(f"{_short(value):>9} ", (bar.ljust(width), style))


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def _skipped_layers(results: Sequence[Result]) -> list[str]:
    """Why linears were not compared: one line per backend, prompt and reason; nobody expects it of the original."""
    lines = []
    for r in (r for r in results if r.quantization_error is None):
        reasons: dict[str, int] = {}
        for layer in r.layers.skipped:
            reasons[layer.reason] = reasons.get(layer.reason, 0) + 1
        lines += [f"{r.backend}, {r.prompt}: {n} linears not compared: {why}" for why, n in reasons.items()]
    return lines


def _skipped_intervals(results: Sequence[Result]) -> list[str]:
    """Why what is between the linears was not judged: one line per reason; nobody expects it of the original."""
    found: dict[str, list[str]] = {}
    for r in (r for r in results if r.quantization_error is None and r.intervals is not None):
        for layer in r.intervals.skipped:  # type: ignore[union-attr]
            found.setdefault(layer.reason, []).append(f"{r.backend}, {r.prompt}")
    return [f"{_told(where)}: not judged between linears: {why}" for why, where in found.items()]


def _told(where: Sequence[str]) -> str:
    names = list(dict.fromkeys(where))
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
