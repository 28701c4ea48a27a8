"""`gptq-diff bundle RUN`: what maintainers need of a run in one zip; `--verify FILE` checks one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.options import parse_size
from gptq_diff.cli.threads import wait_without_spinning


def bundle(
    run: Annotated[Path | None, typer.Argument(metavar="RUN", help="The --out of a finished run.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="FILE.zip", help="Where to write.", show_default="RUN-bundle.zip here"),
    ] = None,
    include_prompts: Annotated[
        bool, typer.Option("--include-prompts", help="Take prompts and answers along; else lengths and hashes alone.")
    ] = False,
    max_size: Annotated[
        int, typer.Option("--max-size", metavar="SIZE", parser=parse_size, help="Bytes of the zip at most.")
    ] = 10_000_000,
    rows: Annotated[
        bool, typer.Option("--rows/--no-rows", help="Take captured rows of the bad linear along; they can reveal text.")
    ] = True,
    verify: Annotated[
        Path | None, typer.Option("--verify", metavar="FILE", help="Check a bundle, and make none.")
    ] = None,
    model: o.MovedModel = None,
    reference_model: o.ReferenceModel = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Reduce on the simulation, even where the kernel itself is here.")
    ] = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Pack the redacted reports, a filled-in issue, the script that shows the defect and the rows that matter."""
    from gptq_diff.cli.output import console, print_json, saying
    from gptq_diff.errors import UsageError

    say = saying(console(quiet=quiet or as_json))
    if verify is not None:
        from gptq_diff.bundle.verify import verify as check

        sound = check(verify)
        total = sum(sound.files.values())
        say(f"{verify}: sound; {len(sound.files)} files, {total:,} bytes, made by gptq-diff {sound.version}")
        if as_json:
            print_json({"files": sound.files, "gptq_diff": sound.version})
        return
    if run is None:
        raise UsageError("there is no run to bundle", "Give the --out of a finished run, or --verify FILE.")
    wait_without_spinning()
    from gptq_diff.bundle.make import Options, make_bundle
    from gptq_diff.whole_file import write_whole

    made = make_bundle(run, Options(include_prompts, max_size, model, reference_model, simulate, rows), say)
    place = output or Path(f"{run.resolve().name}-bundle.zip")
    write_whole(place, made.data)
    if made.no_repro:
        say(f"without repro.py: {made.no_repro}")
    for name, size in made.files.items():
        say(f"  {size:>9,}  {name}")
    say(f"bundle: {place} ({len(made.data):,} bytes); ISSUE.md in it is a filled-in bug form")
    if as_json:
        print_json({"file": str(place), "size": len(made.data), "files": made.files, "no_repro": made.no_repro})
