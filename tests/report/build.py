"""Reports made up from nothing, one of every status, for whatever shows them."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.compare.results import BAD_KINDS, verdict
from gptq_diff.records import (
    Finding,
    FirstBad,
    Judgement,
    LayerCount,
    LayerError,
    ModelInfo,
    OriginalInfo,
    PromptInfo,
    QuantizationError,
    Report,
    Result,
    SkippedBackend,
    SkippedLayer,
)

STATUSES = ("agree", "diverged", "overflow", "nan", "collapsed", "nondeterministic", "incomplete")
LAYERS = tuple(
    f"model.layers.{block}.mlp.{part}" for block in range(4) for part in ("gate_proj", "up_proj", "down_proj")
)
BAD = 5
HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]markup[/bold] :smile: a\u202eb\x9b2J\r\n\x00\x7f\u200bend"
"""Escapes, Rich markup, emoji codes, bidirectional and invisible characters, controls of both sets."""


def first_bad(kind: str) -> FirstBad:
    return FirstBad(
        layer=LAYERS[BAD], index=BAD, step=1 if kind == "diverged" else 0, kind=kind,
        nonfinite=2 * (kind != "diverged"), elements=1000, first_index=None if kind == "diverged" else (0, 7),
        local_l2_rel=0.5, noise_floor=1e-3, inherited_l2_rel=None, input_absmax=11600.0, exact_absmax=21835.0,
        excess=300.0, path="exllama", rows=37,
    )  # fmt: skip


def a_result(status: str = "agree", backend: str = "sim-exllama", prompt: str = "short") -> Result:
    """A result of that status with every field of its own kind of value."""
    bad = first_bad(status) if status in BAD_KINDS else None
    skipped = (SkippedLayer(LAYERS[11], "its input was already NaN or infinite"),) if bad else ()
    findings = (Finding("race-or-uninitialised", 0.5, ("3 linears gave other bits",), LAYERS[2]),)
    collapsed = status in {"overflow", "collapsed"}
    return Result(
        backend=backend, prompt=prompt, engine="transformers",
        kernel={"*": "exllama", LAYERS[3]: "exllama, reconstruct"}, versions={"torch": "2.13.0"}, status=status,
        first_bad=bad, tokens=(0, 0, 0, 0), text="!!!!",
        collapsed=collapsed, collapse_token=0 if collapsed else None, first_token_kl=0.25, first_different_token=0,
        cached_rows=0, layers=LayerCount(0 if status == "incomplete" else 12 - len(skipped), skipped), steps=4,
        bad_layers=int(bad is not None), worst_excess=0.75,
        findings=findings if status == "nondeterministic" else (), workarounds=(), headroom_bits={LAYERS[0]: 2.5},
        seconds={"load": 1.5, "generate": 2}, peak_rss_bytes=1000, peak_private_bytes=None, peak_gpu_bytes=None,
    )  # fmt: skip


def an_original(prompt: str = "short") -> Result:
    """What hf-original gives: nothing compared, every linear's error of quantisation."""
    layers = {layer: LayerError(0.01 * (i + 1), None if i == 0 else 0.02) for i, layer in enumerate(LAYERS)}
    skipped = tuple(SkippedLayer(layer, "it is not quantised") for layer in LAYERS)
    return replace(
        a_result("agree", "hf-original", prompt), layers=LayerCount(0, skipped), worst_excess=None,
        quantization_error=QuantizationError(0.065, 0.12, LAYERS[-1], layers), peak_gpu_bytes=2_100_000_000,
    )  # fmt: skip


def a_report(*results: Result, skipped: tuple[SkippedBackend, ...] = ()) -> Report:
    model = ModelInfo("/models/m", "Qwen2ForCausalLM", 4, 64, True, False, "gptq", 12, "ab" * 32)
    return Report(
        schema_version=1, gptq_diff="0.1.0", created="2026-01-02T03:04:05+00:00", model=model,
        reference_model=replace(model, path="/models/sound") if len(results) == 1 else None,
        environment={"python": "3.11.7", "torch": "2.13.0", "transformers": "5", "cuda": None, "gpu": None, "cpu": "x"},
        reference="hf-fp32", prompts=(PromptInfo("short", 37, "cd" * 32), PromptInfo("long", 63, "ef" * 32)),
        verdict=verdict(results, 12), results=results, skipped_backends=skipped,
        left_out=("2 of 2 captures keep less",), allow_skip=False,
        original_model=OriginalInfo("/models/o", "Qwen2ForCausalLM", "ef" * 32) if len(results) == 2 else None,
    )  # fmt: skip


def judgements(kind: str = "overflow", step: int = 0) -> list[Judgement]:
    """One step of all layers, with a bad one in the middle and lost inputs after it."""
    return [
        Judgement(
            layer=layer, index=i, step=step, rank=0, path="exllama", rows=37, elements=1000,
            kind=kind if i == BAD else "inherited" if i > BAD else "ok", cause=None, nonfinite=2 if i == BAD else 0,
            first_index=(0, 7) if i == BAD else None, inherited_rows=37 if i > BAD else 3 * (i == 0),
            local_l2_rel=None if i > BAD else 1e-3, noise_floor=None if i > BAD else 1e-3,
            excess=None if i > BAD else 0.3, worst_row=None if i > BAD else 0,
            inherited_l2_rel=None if i > BAD else 0.01, input_absmax=10.0**i, exact_absmax=0.0 if i == 1 else 2.0**i,
            output_absmax=1.0, max_abs=0.1,
        )
        for i, layer in enumerate(LAYERS)
    ]  # fmt: skip
