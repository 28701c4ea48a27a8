"""`gptq-diff reduce RUN`: the smallest call that still fails, and a script that shows it without gptq-diff."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptq_diff.reduce.record import Reduced


def reduce(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend", metavar="B@PYTHON", help="Whose failure, and what runs it here.", show_default="the verdict's"
        ),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="P", help="Of which prompt.", show_default="the verdict's")
    ] = None,
    layer: Annotated[
        str | None, typer.Option("--layer", metavar="L", help="Which linear.", show_default="the first bad one")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="DIR", help="Where to write.", show_default="RUN/reduced")
    ] = None,
    model: o.MovedModel = None,
    reference_model: o.ReferenceModel = None,
    simulate: Annotated[
        bool, typer.Option("--simulate", help="Try calls on the simulation, even where the kernel itself is here.")
    ] = False,
    device: o.Device = "",
    timeout: o.Timeout = 3600.0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Shrink the first failing linear call of a run, and write a script that shows it with torch and the engine alone.

    Ends with 1 where there is nothing to reduce.
    """
    wait_without_spinning()
    from dataclasses import asdict

    from gptq_diff.cli.output import console, print_json, saying
    from gptq_diff.reduce.record import FOLDER
    from gptq_diff.session.reduce_run import Wanted, reduce_run

    say = saying(console(quiet=quiet or as_json))
    wanted = Wanted(backend, prompt, layer, out, model, reference_model, simulate, device, timeout)
    found = reduce_run(run, wanted, say)
    if as_json:
        print_json(asdict(found))
    else:
        _show(found, out or run / FOLDER, say)


def _show(found: Reduced, place: Path, say: Callable[[str], None]) -> None:
    before, after = (" x ".join(str(n) for n in shape) for shape in (found.captured, found.shape))
    counts = ((found.inputs, "non-zero input"), (found.codes, "code"))
    inputs, codes = (f"{n} {what}{'' if n == 1 else 's'}" for n, what in counts)
    say(f"{found.layer} on {found.backend}, prompt {found.prompt}: from {before} to {after} with {inputs} and {codes} "
        f"off the zero point ({found.trials} calls of {found.kernel})")  # fmt: skip
    for what, call in (("fails", found.failing), ("passes", found.passing)):
        x = ", ".join(f"x[{m}, {k}] = {value:g}" for m, k, value in call.inputs[:4]) or "x = 0"
        more = ", ..." if len(call.inputs) > 4 else ""
        say(f"{what}: {x}{more} gives {call.output}, exact {call.exact:.6g}")
    say(_seen(found.seen_on) if found.live else "predicted, not yet seen on a GPU")
    say(f"script: {place / found.script}" + (f", with {found.data}" if found.data else ""))


def _seen(versions: dict[str, str]) -> str:
    """The GPU, and what its kernel came with."""
    others = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "gpu")
    return f"seen on {versions.get('gpu', 'a GPU')} with {others}"
