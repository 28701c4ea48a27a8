"""One run of a backend in this process: engine, tap, capture on disk, judge. No worker is started."""

from __future__ import annotations

from pathlib import Path

from gptq_diff.capture.store import CaptureReader, CaptureWriter, Manifest
from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import judge_captures
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.kernels.catalogue import make_kernel

KERNELS = {"hf-fp32": ("exact", "float32"), "hf-fp16": ("fp16", "float16")} | {
    name: (name, "float16") for name in ("sim-exllama", "sim-reconstruct", "sim-gptq")
}


def engine(model: Path, dtype: str = "float16") -> HfEngine:
    spec = {"engine": "transformers", "device": "cpu", "trust_remote_code": False, "threads": 0, "seed": 0}
    return HfEngine(LoadSpec(model=model, dtype=dtype, **spec))


def capture(host, kernel, ids, out: Path, *, backend="b", prompt="p", new_tokens=1) -> CaptureReader:
    """Run one prompt; kernel is a name or a Kernel."""
    host.install(make_kernel(kernel) if isinstance(kernel, str) else kernel)
    writer = CaptureWriter(out)
    tap = Tap(host.tapped, writer)
    made = host.generate(tuple(ids), max_new_tokens=new_tokens, forced=None, tap=tap)
    writer.close()
    writer.finish(
        Manifest(
            backend=backend, prompt=prompt, order=tuple(tap.order), kernels=writer.kernels, skipped=host.skipped,
            steps=made.steps, tokens=made.tokens, logits_finite=made.logits_finite, cached_rows=0, forced=False,
            where=writer.where, bytes_written=writer.bytes_written, seconds={},
        ), made.first_logits_V,
    )  # fmt: skip
    return CaptureReader(out)


def judge(captures: dict[tuple[str, str], CaptureReader], reference_model: Path, model: Path | None = None):
    """Judgements by (backend, prompt); model: what the backends loaded, where it is another checkpoint."""
    judging = open_checkpoint(reference_model)
    loaded = judging if model is None else open_checkpoint(model)
    return judge_captures({key: Captured(r, None) for key, r in captures.items()}, judging, loaded, lambda a, b: None)
