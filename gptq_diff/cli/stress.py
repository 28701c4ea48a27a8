"""`gptq-diff stress`: how many doublings of its sums a kernel stands, beside the headroom that was computed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.errors import CannotJudge, NothingFound, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gptq_diff.session.stress_report import Stressed, StressReport


def stress(
    model: o.Model,
    prompt_file: Annotated[
        str | None,
        typer.Option("--prompt-file", metavar="FILE", help="Prompts whose inputs are grown; the reference runs them."),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="A finished run of this checkpoint that kept its tensors."),
    ] = None,
    backends: Annotated[
        str,
        typer.Option("--backends", metavar="A,B", help="Whose kernels; they run here: vLLM's need vLLM and a GPU."),
    ] = "sim-exllama",
    layers: Annotated[str, typer.Option("--layers", metavar="GLOB", help="Only linears whose name matches.")] = "*",
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=1, help="Linears a kernel, those with the least headroom.")
    ] = 10,
    system: o.System = None,
    no_chat_template: o.NoChatTemplate = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Double a kernel's sums until it breaks, the exact answer unchanged, and compare with the headroom computed.

    Ends with 1 where no kernel could be broken, with 3 where one of them is not here.
    """
    wait_without_spinning()
    from rich.text import Text

    from gptq_diff.checkpoint.reader import open_checkpoint, resolve_model
    from gptq_diff.cli.output import console, print_json
    from gptq_diff.session.captured_inputs import inputs_for
    from gptq_diff.session.prepare import PromptSource
    from gptq_diff.session.stress_run import check_backends, stress_run
    from gptq_diff.text import one_line

    names = check_backends(backends)
    if (prompt_file is None) == (run is None):
        raise UsageError("stress grows the inputs of given prompts", "give --prompt-file FILE, or --run RUN")
    screen = console(quiet=quiet or as_json)
    source = None if prompt_file is None else PromptSource(prompt_file, system, not no_chat_template)
    with (
        open_checkpoint(resolve_model(model)) as checkpoint,
        screen.status("running the reference") as status,
        inputs_for(checkpoint, source, run, sys.stdin) as inputs,
    ):
        report = stress_run(checkpoint, inputs, names, layers, top, lambda line: status.update(Text(one_line(line))))
    if as_json:
        print_json(report.to_json())
    else:
        _show(report, screen)
    if report.rows and not report.broke:
        raise NothingFound("no kernel broke: nothing was found that its sums cannot stand")
    if report.skipped:
        raise CannotJudge(f"{report.skipped[0].backend} cannot run here: {report.skipped[0].reason}")
    if not report.rows:
        raise NothingFound("no kernel takes any of these linears")


def _show(report: StressReport, screen: Console) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from gptq_diff.text import one_line

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, caption_justify="left")
    for name in ("backend", "linear", "sum", "computed", "measured", "then"):
        table.add_column(name, justify="right" if name in ("computed", "measured") else "left")
    for row in report.rows:
        table.add_row(*(Text(one_line(cell)) for cell in _cells(row)))
    table.caption = "doublings that the largest sum leaves, and that the kernel stood; + where no more could be made"
    screen.print(table)
    for backend, layers in report.refused.items():
        screen.print(Text(one_line(f"{backend}: {len(layers)} linears not taken, the first {layers[0].name}: "
                                   f"{layers[0].reason}"), style="yellow"))  # fmt: skip
    for skipped in report.skipped:
        screen.print(Text(one_line(f"skipped {skipped.backend}: {skipped.reason}"), style="yellow"))


def _cells(row: Stressed) -> tuple[str, ...]:
    stood = row.stood
    return (
        row.backend, row.layer.removeprefix("model.layers."), f"{stood.arithmetic}, {stood.how}",
        f"{stood.bits:.1f}", f"{stood.doublings}{'' if stood.broke else '+'}", stood.ended,
    )  # fmt: skip
