"""`gptq-diff backends`."""

from __future__ import annotations

from dataclasses import asdict

from gptq_diff.cli.options import AsJson
from gptq_diff.presets import PRESETS, usable


def backends(as_json: AsJson = False) -> None:
    """Show every backend: usable here or not, and why not."""
    from gptq_diff.cli.output import console, print_json

    supports = [(preset, usable(preset)) for preset in PRESETS]
    if as_json:
        listed = [{**asdict(preset), "usable": support.ok, "reason": support.reason} for preset, support in supports]
        print_json({"schema_version": 1, "backends": listed})
        return
    from rich.table import Table

    table = Table("backend", "usable", "what it is", box=None, pad_edge=False)
    for preset, support in supports:
        table.add_row(preset.name, "yes" if support.ok else f"no: {support.reason}", preset.summary)
    console().print(table)
