"""`gptq-diff probe-server`: does a running server collapse, and at which prompt lengths."""

from __future__ import annotations

import enum
import os
import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gptq_diff.cli import options as o
from gptq_diff.errors import UsageError

if TYPE_CHECKING:
    from gptq_diff.cli.probe_server_show import Teller
    from gptq_diff.server_probe.order import Order


class EndpointName(str, enum.Enum):
    """Which of the API's two ways to ask."""

    AUTO = "auto"
    CHAT = "chat"
    COMPLETIONS = "completions"


def read_lengths(text: str) -> tuple[int, ...]:
    """Prompt lengths such as `1,48,256`, in tokens."""
    parts = str(text).split(",")
    if not all(part.strip().isdecimal() and 0 < int(part) <= 1_000_000 for part in parts):
        raise UsageError(f"--lengths {text} are no prompt lengths", "Write tokens with commas between: 1,48,64,256.")
    return tuple(sorted({int(part) for part in parts}))


def probe_server(
    base_url: Annotated[
        str, typer.Option("--base-url", metavar="URL", help="The server, with or without /v1: http://localhost:8000.")
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="NAME", help="As the server calls it.", show_default="the only one it serves"),
    ] = None,
    endpoint: Annotated[
        EndpointName,
        typer.Option("--endpoint", help="How to ask: auto is chat, or completions where there is no chat."),
    ] = EndpointName.AUTO,
    lengths: Annotated[
        str,
        typer.Option("--lengths", metavar="A,B,...", help="Prompt tokens to ask, about; 1 is the shortest possible."),
    ] = "1,32,48,64,128,256",
    repeats: Annotated[int, typer.Option("--repeats", min=1, max=100, help="Questions of each length.")] = 2,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="A file with the API key and nothing else.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option("--api-key-env", metavar="NAME", help="The environment variable with the API key.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option("--ca-file", metavar="FILE", help="Certificates to trust, in PEM.", show_default="the system's"),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="Limit of one answer.")
    ] = 60.0,
    total_timeout: Annotated[
        float, typer.Option("--total-timeout", metavar="SECONDS", min=0.1, help="Limit of a whole probe.")
    ] = 600.0,
    watch: Annotated[
        float | None,
        typer.Option("--watch", metavar="SECONDS", min=1, help="Probe again so often, until the server collapses."),
    ] = None,
    rounds: Annotated[int | None, typer.Option("--rounds", min=1, help="With --watch: end after so many.")] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", help="With --watch: go on after a collapse, for --metrics-file.")
    ] = False,
    metrics_file: Annotated[
        Path | None,
        typer.Option("--metrics-file", metavar="FILE.prom", help="Write Prometheus metrics of each probe there."),
    ] = None,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
) -> None:
    """Ask a running OpenAI-compatible server short and long prompts, one at a time, and say whether it collapses.

    Ends with 1 where it collapses, with 3 where it cannot be judged. Run it while nobody else asks: the rows of other
    requests are added to those of the prompt, and hide the failure.
    """
    if watch is None and (rounds is not None or keep_going):
        raise UsageError("--rounds and --keep-going are about --watch", "Give --watch SECONDS too.")
    from gptq_diff.cli.probe_server_show import Teller
    from gptq_diff.server_probe.address import read_address
    from gptq_diff.server_probe.answers import Endpoint
    from gptq_diff.server_probe.api_key import read_key
    from gptq_diff.server_probe.exchange import Exchange
    from gptq_diff.server_probe.metrics import check_place
    from gptq_diff.server_probe.order import Order
    from gptq_diff.server_probe.probe import Plan

    address = read_address(base_url)
    if metrics_file is not None:
        check_place(metrics_file)
    exchange = Exchange(read_key(api_key_file, api_key_env, os.environ), ca_file)
    way = None if endpoint is EndpointName.AUTO else Endpoint(endpoint.value)
    order = Order(address, exchange, model, way, Plan(read_lengths(lengths), repeats), timeout, total_timeout)
    with Teller(metrics_file, as_json=as_json, quiet=quiet, watching=watch is not None) as teller:
        raise typer.Exit(_probe(order, teller, watch, rounds, keep_going=keep_going))


def _probe(order: Order, teller: Teller, pause: float | None, rounds: int | None, *, keep_going: bool) -> int:
    """Probe as often as asked; the exit code: 1 for any collapse, else 3 for any probe that could not judge."""
    source = random.SystemRandom()  # another mark each time, whatever seed the process has
    if pause is None:
        report = order.probe(source, teller.doing)
        teller.tell(report)
        return report.status.exit_code
    codes = set()
    for report in order.watch(pause, rounds, source, teller.doing):
        teller.tell(report)
        codes.add(report.status.exit_code)
        if 1 in codes and not keep_going:
            break
    return next(code for code in (1, 3, 0) if code in codes)
