"""`gptq-diff model ...`: look into a checkpoint, build one, or write one with more headroom."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli.model_fix import fix
from gptq_diff.cli.options import AsJson

app = typer.Typer(
    no_args_is_help=True, help="Look into a GPTQ checkpoint, build one, or give one headroom.", rich_markup_mode=None
)
app.command()(fix)

_Whole = int | None


@app.command()
def inspect(
    path: Annotated[str, typer.Argument(metavar="DIR", help="The checkpoint.")],
    as_json: AsJson = False,
) -> None:
    """Show every quantised linear of a checkpoint, and what is suspicious about it."""
    from gptq_diff.cli.model_inspect import inspect as show
    from gptq_diff.cli.output import console

    show(path, as_json=as_json, console=console())


@app.command()
def build(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Which model.")],
    bits: Annotated[_Whole, typer.Option("--bits", help="2, 3, 4 or 8.")] = None,
    group_size: Annotated[_Whole, typer.Option("--group-size", help="Rows that share a scale; -1 for all.")] = None,
    sym: Annotated[bool | None, typer.Option("--sym/--no-sym", help="Symmetric zero points.")] = None,
    desc_act: Annotated[
        bool | None,
        typer.Option("--desc-act/--no-desc-act", help="Reorder rows into groups, as activation order does."),
    ] = None,
    checkpoint_format: Annotated[
        str | None,
        typer.Option("--checkpoint-format", metavar="NAME", help="gptq or gptq_v2."),
    ] = None,
    ambiguous_zeros: Annotated[
        bool | None,
        typer.Option("--ambiguous-zeros/--no-ambiguous-zeros", help="Zero points that engines read differently."),
    ] = None,
    hidden: Annotated[_Whole, typer.Option("--hidden", help="Channels.")] = None,
    intermediate: Annotated[_Whole, typer.Option("--intermediate", help="Channels of the MLP.")] = None,
    blocks: Annotated[_Whole, typer.Option("--blocks", help="Decoder blocks.")] = None,
    heads: Annotated[_Whole, typer.Option("--heads", help="Query heads.")] = None,
    kv_heads: Annotated[_Whole, typer.Option("--kv-heads", help="Key and value heads.")] = None,
    seed: Annotated[_Whole, typer.Option("--seed", help="Of every random number.")] = None,
    gain_shift: Annotated[
        str | None,
        typer.Option(
            "--gain-shift", metavar="BLOCK:GROUP:GAIN", help="Make a group's activations grow, and nothing else."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to.", show_default="the cache directory"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a demo, tiny or synthetic GPTQ checkpoint. What is not given is the model's own default."""
    from gptq_diff.cli.model_build import build as carry_out
    from gptq_diff.cli.output import console
    from gptq_diff.models.options import BuildOptions, GainShift

    options = BuildOptions(
        bits=bits,
        group_size=group_size,
        sym=sym,
        desc_act=desc_act,
        checkpoint_format=checkpoint_format,
        ambiguous_zeros=ambiguous_zeros,
        hidden=hidden,
        intermediate=intermediate,
        blocks=blocks,
        heads=heads,
        kv_heads=kv_heads,
        seed=seed,
        gain_shift=None if gain_shift is None else GainShift.parse(gain_shift),
    )
    _say_where(carry_out(name, options, out, console(quiet=as_json)), as_json=as_json)


def _say_where(directory: Path, *, as_json: bool) -> None:
    """To stdout for programs, to the terminal for people."""
    from rich.text import Text

    from gptq_diff.cli.output import console, print_json

    if as_json:
        print_json({"schema_version": 1, "path": str(directory)})
    else:
        console().print(Text(str(directory)), soft_wrap=True)
