"""`gptq-diff run`: the main job."""

from __future__ import annotations

import io
import secrets
import sys
from datetime import datetime, timezone
from pathlib import Path

import typer

from gptq_diff.cli import options as o
from gptq_diff.cli.threads import wait_without_spinning


def run(
    model: o.Model,
    prompt_file: o.PromptFile,
    backends: o.Backends = None,
    reference: o.Reference = "hf-fp32",
    reference_model: o.ReferenceModel = None,
    original: o.Original = None,
    out: o.Out = None,
    overwrite: o.Overwrite = False,
    capture: o.Capture = None,
    capture_budget: o.CaptureBudget = 2_000_000_000,
    max_new_tokens: o.MaxNewTokens = None,
    sweep_tokens: o.SweepTokens = None,
    experiments: o.Experiments = o.ExperimentsMode.AUTO,
    workarounds: o.Workarounds = o.ExperimentsMode.AUTO,
    simulate: o.Simulate = o.SimulateMode.AUTO,
    repeats: o.Repeats = 1,
    teacher_force: o.TeacherForce = False,
    prefix_cache: o.PrefixCache = False,
    system: o.System = None,
    no_chat_template: o.NoChatTemplate = False,
    trust_remote_code: o.TrustRemoteCode = False,
    download: o.Download = False,
    device: o.Device = "",
    tensor_parallel_size: o.TensorParallelSize = 1,
    timeout: o.Timeout = 3600.0,
    seed: o.Seed = 0,
    allow_skip: o.AllowSkip = False,
    full_hash: o.FullHash = False,
    as_json: o.AsJson = False,
    quiet: o.Quiet = False,
    verbose: o.Verbose = False,
) -> None:
    """Run a checkpoint on every backend, judge every quantised linear, name the first that breaks."""
    wait_without_spinning()
    from gptq_diff.session.prepare import PromptSource, prepare, prepare_model
    from gptq_diff.session.sweep import parse_lengths

    sweep = parse_lengths(sweep_tokens) if sweep_tokens is not None else None
    capture = capture or (o.CaptureMode.AUTO if sweep is None else o.CaptureMode.STATS)
    asked = prepare(
        prepare_model(model, download=download),
        prepare_model(reference_model, download=download) if reference_model else None,
        PromptSource(prompt_file, system, not no_chat_template),
        sys.stdin.buffer if sys.stdin is not None else io.BytesIO(),  # None where it was closed
        backends,
        reference,
        trust_remote_code=trust_remote_code,
        capture=capture.value,
        capture_budget=capture_budget,
        max_new_tokens=max_new_tokens or (8 if sweep is None else 1),
        sweep=sweep,
        experiments=experiments.value,
        workarounds=workarounds.value,
        simulate=simulate.value,
        repeats=repeats,
        teacher_force=teacher_force,
        prefix_cache=prefix_cache,
        device=device,
        original=prepare_model(original, download=download) if original else None,
        tensor_parallel=tensor_parallel_size,
        timeout=timeout,
        seed=seed,
        allow_skip=allow_skip,
        full_hash=full_hash,
    )
    from gptq_diff.cli.main_job import run_and_show

    code = run_and_show(asked, out or fresh_out(), overwrite=overwrite, as_json=as_json, quiet=quiet, verbose=verbose)
    raise typer.Exit(code)


def fresh_out() -> Path:
    """gptq-diff-runs/UTC-TIME-ID below the current directory."""
    now = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%SZ")
    return Path("gptq-diff-runs") / f"{now}-{secrets.token_hex(2)}"
