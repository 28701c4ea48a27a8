"""`gptq-diff model fix DIR`: a checkpoint with more headroom that is the same function."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from gptq_diff.session.fix_run import Fixed

AUTO = "auto"


def fix(
    path: Annotated[str, typer.Argument(metavar="DIR", help="The checkpoint; it is only read.")],
    gain_shift: Annotated[
        str,
        typer.Option(
            "--gain-shift",
            metavar="auto|BLOCK:GROUP:GAIN,...",
            help="Find the smallest shifts, or shift groups of down_proj by hand.",
        ),
    ] = AUTO,
    headroom_bits: Annotated[
        float, typer.Option("--headroom-bits", metavar="B", help="Doublings that every fp16 chain is to stand.")
    ] = 2.0,
    prompt_file: Annotated[
        str | None,
        typer.Option(
            "--prompt-file", metavar="FILE", help="Prompts that the headroom is for; the reference runs them."
        ),
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="A finished run of this checkpoint that kept its tensors."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="The new checkpoint.", show_default="DIR's name and -fixed, here"),
    ] = None,
    system: o.System = None,
    no_chat_template: o.NoChatTemplate = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Move powers of two between neighbouring tensors, so that fp16 sums of unscaled products have room.

    What comes out is the same function in exact arithmetic, which is checked tensor by tensor before it is kept.
    """
    wait_without_spinning()
    from gptq_diff.checkpoint.reader import open_checkpoint, resolve_model
    from gptq_diff.cli.output import console, print_json
    from gptq_diff.models.options import GainShift
    from gptq_diff.session.captured_inputs import inputs_for
    from gptq_diff.session.fix_run import fix_by_hand, fix_for_headroom
    from gptq_diff.session.prepare import PromptSource

    by_hand = [] if gain_shift == AUTO else [GainShift.parse(text) for text in gain_shift.split(",")]
    if by_hand and (prompt_file is not None or run is not None):
        raise UsageError("--gain-shift BLOCK:GROUP:GAIN needs no prompts", "leave out --prompt-file and --run")
    if not by_hand and (prompt_file is None) == (run is None):
        raise UsageError("the headroom is that of given prompts", "give --prompt-file FILE, or --run RUN")
    screen = console(quiet=quiet or as_json)
    with open_checkpoint(resolve_model(path)) as checkpoint:
        place = (out or Path(f"{checkpoint.path.name}-fixed")).absolute()
        if by_hand:
            fixed = fix_by_hand(checkpoint, by_hand, place)
        else:
            source = None if prompt_file is None else PromptSource(prompt_file, system, not no_chat_template)
            with screen.status("running the reference"), inputs_for(checkpoint, source, run, sys.stdin) as inputs:
                fixed = fix_for_headroom(checkpoint, inputs, headroom_bits, place)
    if as_json:
        print_json(fixed.to_json())
    else:
        _show(fixed, screen)


def _show(fixed: Fixed, screen: Console) -> None:
    from rich.text import Text

    from gptq_diff.text import one_line

    def say(line: str, style: str = "") -> None:
        screen.print(Text(one_line(line), style=style))

    for move in fixed.moves:
        left = "" if move.bits is None else f", which left {move.bits:.1f} bits"
        groups = ", ".join(str(group) for group in move.groups[0])
        done = f"{move.channels} channels times {move.gain:g}" if move.gain != 1 else "nothing shifted"
        say(f"{move.joint} (group {groups}{left}): {done}")
        if move.reason:
            say(f"  not times {move.wanted:g}: {move.reason}", "yellow")
    for one in fixed.short:
        name, bits = min(one.after.items(), key=lambda item: item[1])
        why = "no shift changes it" if name != "lane" else "see above"
        say(f"{one.layer} comes to {bits:.1f} bits only: its {name} holds it there ({why})", "yellow")
    say(f"{fixed.decoded} linears changed; decoded in float64 they are the same function, all else is the same bytes")
    say(fixed.path)
