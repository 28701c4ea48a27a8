"""`gptq-diff demo`: the main job on a real small model with the reported bug planted in it."""

from __future__ import annotations

import io
import json
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning
from gptq_diff.text import one_line

if TYPE_CHECKING:
    from gptq_diff.records import Report
    from gptq_diff.session.asked import Asked

SHORT = "What is the capital of France?"
LONG = (
    "You are a friendly guide who knows the countries of Europe, their rivers, their mountains and their largest "
    "cities. A traveller asks: What is the capital of France?"
)
"""37 and 64 tokens after the chat template: on both sides of vLLM's boundary of 50 rows."""
BACKENDS = "hf-fp32,hf-fp16,sim-exllama,sim-reconstruct,sim-gptq"
PLANTED_LAYER = "model.layers.11.mlp.down_proj"
EXPECTED = {
    ("sim-exllama", "short"): "overflow",
    ("sim-exllama", "long"): "overflow",
    ("sim-gptq", "short"): "overflow",
    ("sim-gptq", "long"): "agree",
    ("sim-reconstruct", "short"): "agree",
    ("sim-reconstruct", "long"): "agree",
    ("hf-fp16", "short"): "agree",
    ("hf-fp16", "long"): "agree",
    ("hf-fp32", "short"): "agree",
    ("hf-fp32", "long"): "agree",
}


def demo(
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Build SmolLM2 with the reported bug planted in it, and find it: no GPU, no account, no arguments."""
    wait_without_spinning()
    from rich.text import Text

    from gptq_diff.cli.main_job import watched
    from gptq_diff.cli.output import console
    from gptq_diff.cli.run import fresh_out
    from gptq_diff.cli.show import show_report
    from gptq_diff.models.build import build_model
    from gptq_diff.models.options import BuildOptions, GainShift

    screen = console(quiet=quiet or as_json)
    with screen.status("building SmolLM2-135M-Instruct as a GPTQ checkpoint (once)") as status:
        options = BuildOptions(gain_shift=GainShift(block=11, group=19, gain=4))
        model = build_model("smollm2", options, None, lambda line: status.update(Text(one_line(line))))
    run, report = watched(_asked(model), out or fresh_out(), overwrite=overwrite, quiet=quiet or as_json)
    show_report(run.root, report, as_json=as_json, quiet=quiet, verbose=verbose)
    missed = differences(report)
    for line in missed:
        console().print(f"not as planted: {line}")
    if not missed:
        screen.print(
            f"Found what was planted: the fast path overflows at {PLANTED_LAYER}, "
            "and every other way of computing it agrees."
        )
    absent = {s.backend for s in report.skipped_backends}
    if absent and not differences(report, absent):
        raise typer.Exit(3)  # nothing else is amiss: what could not run cannot be judged
    raise typer.Exit(1 if missed else 0)


def _asked(model: Path) -> Asked:
    from gptq_diff.session.prepare import PromptSource, prepare

    entries = [{"id": "short", "prompt": SHORT}, {"id": "long", "prompt": LONG}]
    return prepare(
        model, None, PromptSource("-", None, chat_template=True), io.BytesIO(json.dumps(entries).encode()), BACKENDS,
        "hf-fp32", trust_remote_code=False, timeout=600.0,
    )  # fmt: skip


def differences(report: Report, absent: Collection[str] = ()) -> list[str]:
    """What the report says that was not planted, or does not say that was; empty when all is as expected.

    absent: backends to pass over.
    """
    found = {(r.backend, r.prompt): r for r in report.results}
    lines = []
    for (backend, prompt), status in EXPECTED.items():
        if backend in absent:
            continue
        result = found.get((backend, prompt))
        if result is None or result.status != status:
            lines.append(f"{backend} on {prompt}: {result.status if result else 'did not run'}, expected {status}")
        elif status == "overflow":
            layer = result.first_bad.layer if result.first_bad else None
            if layer != PLANTED_LAYER or not result.collapsed or result.collapse_token != 0:
                lines.append(
                    f"{backend} on {prompt}: {layer}, token {result.collapse_token}, expected {PLANTED_LAYER}, 0"
                )
        elif "Paris" not in (result.text or ""):
            lines.append(f"{backend} on {prompt}: writes {result.text!r}, expected Paris")
    return lines
