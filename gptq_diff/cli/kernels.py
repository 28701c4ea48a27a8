"""`gptq-diff kernels ...`: GPTQ kernels of any release, compiled from its sources without installing it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli.options import AsJson, Quiet

app = typer.Typer(
    no_args_is_help=True,
    help="Fetch, compile, list and remove GPTQ kernels of any release, without installing it.",
    rich_markup_mode=None,
)

Names = Annotated[
    list[str], typer.Argument(metavar="RELEASE...", help="vllm==VERSION or gptqmodel==VERSION, one or several.")
]
Sdist = Annotated[
    Path | None,
    typer.Option("--sdist", metavar="FILE", help="Its source distribution, instead of the package index's."),
]


@app.command()
def build(
    names: Names,
    sdist: Sdist = None,
    sources: Annotated[
        Path | None,
        typer.Option("--sources", metavar="DIR", help="Source packs of `kernels fetch`: no network is needed."),
    ] = None,
    arch: Annotated[
        str | None,
        typer.Option("--arch", metavar="A.B", help="Compute capability.", show_default="that of the GPU here"),
    ] = None,
    python: Annotated[
        str | None,
        typer.Option(
            "--python", metavar="PY", help="Interpreter or environment that will run them.", show_default="our own"
        ),
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", min=1, max=64, help="Releases compiled at a time.")] = 4,
    timeout: Annotated[
        float | None, typer.Option("--timeout", min=1, metavar="SECONDS", help="For one.", show_default="no limit")
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Compile the GPTQ kernels of each RELEASE for the GPU here; they are backends then."""
    from gptq_diff.cli.kernels_build import Asked, build_and_show

    build_and_show(Asked(tuple(names), sdist, sources, arch, python, jobs, timeout), as_json=as_json, quiet=quiet)


@app.command()
def fetch(
    names: Names,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Put the packs there too, to be carried to another machine."),
    ] = None,
    sdist: Sdist = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Fetch the kernel sources of each RELEASE: a source pack of a few hundred KB."""
    from gptq_diff.cli.kernels_build import fetch_and_show

    fetch_and_show(tuple(names), out, sdist, as_json=as_json, quiet=quiet)


@app.command("list")
def show(as_json: AsJson = False) -> None:
    """Show the kernels that were compiled, and the sources that were fetched."""
    from gptq_diff.cli.kernels_list import list_kernels

    list_kernels(as_json=as_json)


@app.command()
def remove(names: Names) -> None:
    """Remove the kernels and the sources of each RELEASE."""
    from gptq_diff.cli.output import console
    from gptq_diff.errors import UsageError
    from gptq_diff.releases import release_named
    from gptq_diff.upstream.store import user_store

    store, screen = user_store(), console()
    for release in [release_named(name) for name in names]:
        if not store.remove(release):
            raise UsageError(f"there is nothing of {release} to remove", "gptq-diff kernels list shows what there is")
        screen.print(f"removed what there was of {release}", soft_wrap=True)
