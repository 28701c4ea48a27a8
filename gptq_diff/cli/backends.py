"""`gptq-diff backends`."""

from __future__ import annotations

from dataclasses import asdict

from gptq_diff.cli.options import AsJson
from gptq_diff.hosts import Host, look_around


def backends(as_json: AsJson = False) -> None:
    """Show every backend: the interpreter that it would run under, with its versions, or why it cannot run here."""
    from gptq_diff.cli.output import console, print_json

    here = look_around()
    hosts = [(preset, here.host_of(preset)) for preset in here.presets]
    if as_json:
        listed = [
            {
                **asdict(preset), "usable": host.support.ok, "reason": host.support.reason,
                "python": None if host.python is None else str(host.python), "environment": host.environment,
                "versions": host.versions,
            }
            for preset, host in hosts
        ]  # fmt: skip
        print_json({"schema_version": 1, "backends": listed})
        return
    from rich.table import Table

    table = Table("backend", "usable", "interpreter, or what is missing", "what it is", box=None, pad_edge=False)
    for preset, host in hosts:
        table.add_row(preset.name, "yes" if host.support.ok else "no", _where(host), preset.summary)
    console().print(table)


def _where(host: Host) -> str:
    """`own: torch 2.13.0`, or the reason."""
    versions = ", ".join(f"{name} {version}" for name, version in host.versions.items())
    return f"{host.environment or 'own'}: {versions}" if host.support.ok else host.support.reason
