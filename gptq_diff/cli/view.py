"""`gptq-diff view RUN`: the report of a finished run in a browser, or on localhost."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer


def view(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The --out of a finished run.")],
    serve: Annotated[
        bool, typer.Option("--serve", help="Serve the page on this machine (127.0.0.1) until Ctrl-C, and say where.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="For --serve; 0 takes a free one.")] = 8000,
) -> None:
    """Open the report of a finished run in the browser."""
    from gptq_diff.errors import UsageError

    page = page_of(run)
    if serve:
        serve_page(page, port)
        return
    if not has_display(os.environ, sys.platform):
        raise UsageError(
            f"there is no display to open a browser on; the report is {page}",
            "Copy it to where a browser is (it is one file), or give --serve and forward the port.",
        )
    import webbrowser

    if not webbrowser.open(page.absolute().as_uri()):
        raise UsageError(f"no browser was found; the report is {page}", "Open that file, or give --serve.")
    typer.echo(f"report: {page}", err=True)


def page_of(run: Path) -> Path:
    """RUN/report.html, written anew where it is missing or older than report.json."""
    from gptq_diff.errors import UsageError
    from gptq_diff.report.json_report import read_report
    from gptq_diff.report.renderings import RENDERINGS
    from gptq_diff.whole_file import write_whole

    if not (run / "run.json").exists():
        raise UsageError(f"{run} is not a run of gptq-diff: it has no run.json", "Give the --out of a finished run.")
    report = read_report(run / "report.json")
    page = run / "report.html"
    if not page.exists() or page.stat().st_mtime < (run / "report.json").stat().st_mtime:
        text = RENDERINGS["report.html"](report, run)
        try:
            write_whole(page, text)
        except OSError as e:
            raise UsageError(
                f"{page} cannot be written: {e.strerror or e}", "Give `gptq-diff report RUN --format html -o FILE`."
            ) from e
    return page


def has_display(environment: Mapping[str, str], platform: str) -> bool:
    """Whether a browser's window could be seen; on Linux a browser for terminals may be there and is not meant."""
    if not platform.startswith("linux"):
        return True
    return any(environment.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"))


def serve_page(page: Path, port: int) -> None:
    """Answer requests for the page until interrupted."""
    from gptq_diff.cli.serve import server_of
    from gptq_diff.errors import UsageError

    try:
        server = server_of(page, port)
    except OSError as e:
        raise UsageError(f"port {port} cannot be used: {e.strerror or e}", "Give another --port, or 0.") from e
    with server:
        typer.echo(f"http://127.0.0.1:{server.server_port}/ shows {page}; Ctrl-C ends it", err=True)
        server.serve_forever()
