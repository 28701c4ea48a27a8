"""`gptq-diff model inspect DIR`."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

    from gptq_diff.checkpoint.inspect import InspectReport, LayerInspection


def inspect(path: str, *, as_json: bool, console: Console) -> None:
    """Show every quantised linear of a checkpoint: a table on the console, or JSON on stdout."""
    from gptq_diff.checkpoint.inspect import inspect_checkpoint  # imports torch
    from gptq_diff.checkpoint.reader import open_checkpoint, resolve_model

    with open_checkpoint(resolve_model(path)) as checkpoint:
        if as_json:
            report = inspect_checkpoint(checkpoint)
        else:
            with console.status("reading every packed tensor", spinner="dots"):
                report = inspect_checkpoint(checkpoint)
    if as_json:
        sys.stdout.write(json.dumps(_as_object(report), indent=2, allow_nan=False) + "\n")
    else:
        _show(report, console)


def _as_object(report: InspectReport) -> dict[str, object]:
    layers = [
        {
            **asdict(layer.spec),
            "groups": layer.spec.groups,
            **_without_spec(layer),
            "suspicions": list(layer.suspicions),
        }
        for layer in report.layers
    ]
    return {
        "model": asdict(report.info),
        "layers": layers,
        "skipped": [asdict(skipped) for skipped in report.skipped],
        "notes": list(report.notes),
    }


def _without_spec(layer: LayerInspection) -> dict[str, object]:
    return {key: value for key, value in asdict(layer).items() if key != "spec"}


def _show(report: InspectReport, console: Console) -> None:
    info = report.info
    zeros = "v1, zero = stored + 1" if info.format == "gptq" else "v2, zero = stored"
    order = "desc_act" if info.desc_act else "rows in order"
    console.print(_plain(f"{info.path}: {info.architecture}, {info.bits}-bit {info.format} ({zeros}), {order}"))
    console.print(_plain(f"fingerprint {info.fingerprint}"))
    table = Table()
    for column in ("layer", "K", "N", "bits", "group", "groups", "sym", "scales", "suspicious"):
        table.add_column(column, justify="right" if column in ("K", "N", "bits", "group", "groups") else "left")
    for layer in report.layers:
        table.add_row(*_cells(layer))
    console.print(table)
    for skipped in report.skipped:
        console.print(_plain(f"skipped {skipped.name}: {skipped.reason}"))
    for note in report.notes:
        console.print(_plain(f"note: {note}"))
    console.print(
        _plain(
            f"{len(report.layers)} quantised linears, {len(report.suspicious)} of them suspicious, "
            f"{len(report.skipped)} skipped"
        )
    )


def _cells(layer: LayerInspection) -> tuple[Text, ...]:
    spec = layer.spec
    scales = "none finite" if layer.scale_min is None else f"{layer.scale_min:.3g} to {layer.scale_max:.3g}"
    numbers = (spec.in_features, spec.out_features, spec.bits, spec.group_size, spec.groups)
    return (
        _plain(spec.name),
        *(Text(str(number)) for number in numbers),
        Text("yes" if spec.sym else "no"),
        Text(scales),
        Text("; ".join(layer.suspicions), style="bold red"),
    )


def _plain(text: str) -> Text:
    """Text from a checkpoint, without markup and with control characters shown as a replacement."""
    return Text("".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text))
