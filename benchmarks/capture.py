"""What the tap adds to a forward of SmolLM2 (37 tokens, prefill), beside plain torch hooks on the same modules."""

from __future__ import annotations

import itertools
import tempfile
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import smollm2
from benchmarks.figure import Figure, median, ratio, side_by_side
from gptq_diff.capture.store import CaptureWriter, Manifest, NullSink
from gptq_diff.capture.tap import Sink, Tap
from gptq_diff.engines.base import Generation
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.quant_linear import QuantLinear

FORWARDS = 3
"""In one measurement."""


def forward(engine: HfEngine, sink: Sink | None, ids: tuple[int, ...] = smollm2.TOKEN_IDS) -> Generation:
    """One prefill."""
    tap = None if sink is None else Tap(engine.tapped, sink)
    return engine.generate(ids, max_new_tokens=1, forced=None, tap=tap)


def full_capture(engine: HfEngine, directory: Path, ids: tuple[int, ...] = smollm2.TOKEN_IDS) -> None:
    """A prefill with everything a worker writes for it, manifest included."""
    writer = CaptureWriter(directory)
    generation = forward(engine, writer, ids)
    writer.close()
    manifest = Manifest(
        backend="bench", prompt="bench", order=tuple(writer.kernels), kernels=writer.kernels, skipped={}, steps=1,
        tokens=generation.tokens, logits_finite=generation.logits_finite, cached_rows=0, forced=False,
        where=writer.where, bytes_written=writer.bytes_written, seconds={},
    )  # fmt: skip
    writer.finish(manifest, generation.first_logits_V)


def hooked(engine: HfEngine, out: Path | None) -> None:
    """What one would write by hand: a forward hook on every linear, for two magnitudes or for both tensors."""
    model = engine._model
    kept, handles = {}, []
    for name, module in model.named_modules():
        if isinstance(module, QuantLinear):
            handles.append(module.register_forward_hook(_hook(name, kept, tensors=out is not None)))
    forward(engine, None)
    for handle in handles:
        handle.remove()
    if out is not None:
        save_file(kept, out)


def _hook(name, kept, *, tensors):
    def hook(_module, inputs, output):
        if tensors:
            kept[f"{name}.in"], kept[f"{name}.out"] = inputs[0].clone(), output.clone()
        else:
            kept[name] = float(inputs[0].abs().max()), float(output.abs().max())

    return hook


def figures() -> list[Figure]:
    """Both modes of the tap, as ratios to the bare forward, float32 and float16."""
    found = []
    for dtype, kernel in (("float32", "exact"), ("float16", "fp16")):
        with tempfile.TemporaryDirectory() as scratch:
            found += _figures(smollm2.engine(dtype, kernel), dtype, Path(scratch))
    return found


def _figures(engine: HfEngine, dtype: str, scratch: Path) -> list[Figure]:
    fresh = (scratch / f"capture-{i}" for i in itertools.count())

    def many(work):
        return lambda: [work() for _ in range(FORWARDS)]

    times = side_by_side({
        "bare": many(lambda: forward(engine, None)),
        "statistics": many(lambda: forward(engine, NullSink())),
        "full": many(lambda: full_capture(engine, next(fresh))),
        "hooks, statistics": many(lambda: hooked(engine, None)),
        "hooks, tensors": many(lambda: hooked(engine, scratch / "hooks.safetensors")),
    })  # fmt: skip
    bare = f"bare {median(times['bare']) / FORWARDS * 1e3:.0f} ms"
    written = sum(f.stat().st_size for f in (scratch / "capture-0").iterdir())
    by_hand = (scratch / "hooks.safetensors").stat().st_size
    return [
        Figure(f"tap, statistics only, {dtype}", ratio(times, "statistics", "bare"), "of bare", most=1.15, note=bare),
        Figure("  plain hooks, two magnitudes", ratio(times, "hooks, statistics", "bare"), "of bare"),
        Figure(f"tap, full tensors on disk, {dtype}", ratio(times, "full", "bare"), "of bare", most=1.5, note=bare),
        Figure("  plain hooks, in and out to one file", ratio(times, "hooks, tensors", "bare"), "of bare"),
        Figure(f"bytes written, {dtype}", written / 1e6, "MB", note=_contents(scratch / "capture-0")),
        Figure("  plain hooks", by_hand / 1e6, "MB"),
    ]


def _contents(capture: Path) -> str:
    """What the tensor files of a capture hold: inputs and outputs, and nothing else (the first logits apart)."""
    keys = []
    for block in sorted(capture.glob("block-*.safetensors")):
        with safe_open(block, framework="pt") as tensors:
            keys += tensors.keys()
    inputs, outputs = (sum(key.endswith(side) for key in keys) for side in ("/in", "/out"))
    return f"{inputs} inputs, {outputs} outputs, {len(keys) - inputs - outputs} weights or others"
