"""What vLLM's worker class is given under tensor parallelism, so that taps reach the ranks.

vLLM makes its workers in processes of its own from a class named in `worker_cls`. RankCalls is mixed into that class
(rank_gpu.py, rank_cpu.py); its methods are called by name through `LLM.collective_rpc`, which needs no pickled code.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import TracebackType
from typing import Any, Callable

from gptq_diff.capture.store import CaptureWriter, Manifest
from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.engines.device import gpu_peak
from gptq_diff.engines.vllm.proof import proving
from gptq_diff.engines.vllm.rank import Rank, Watched, facts_of
from gptq_diff.engines.vllm.settings import SCRATCH
from gptq_diff.engines.vllm.steps import Steps
from gptq_diff.errors import CaptureError, GptqDiffError

USE_KERNEL, BEGIN, END = "gptq_diff_use_kernel", "gptq_diff_begin", "gptq_diff_end"
PEAK = "gptq_diff_gpu_peak"
LOAD_FAILED = "load-failed"
"""File there: why the first rank that failed could not load the model."""


def first_line(error: BaseException | None) -> str:
    """The first line of what an exception says, or its name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


class RankCalls:
    """Mixed into vLLM's worker in front of its own class, which has `rank`, `vllm_config` and `model_runner`."""

    _gptq_diff: Rank
    _watched: WatchedRank | None = None
    rank: int
    vllm_config: Any
    model_runner: Any

    def load_model(self, *args: Any, **kwargs: Any) -> Any:
        """The load of vLLM's own worker, with every quantised module proved between reading and shuffling."""
        config = self.vllm_config.model_config
        checkpoint = open_checkpoint(Path(config.model), trust_remote_code=config.trust_remote_code)
        ranks = self.vllm_config.parallel_config.tensor_parallel_size
        scratch = self.vllm_config.additional_config.get(SCRATCH)
        with Reported(scratch), proving(checkpoint, self.rank, ranks) as proof:
            done = super().load_model(*args, **kwargs)  # type: ignore[misc]
        self._gptq_diff = Rank(self.model_runner.get_model(), checkpoint, proof)
        return done

    def gptq_diff_use_kernel(self, name: str) -> dict[str, Any]:
        """Rank.use_kernel, then what the engine has to know."""

        def use() -> dict[str, Any]:
            self._gptq_diff.use_kernel(name)
            return facts_of(self._gptq_diff)

        return _told(use)

    def gptq_diff_begin(
        self, directory: str | None, rows: int, forced: list[int] | None, caches: bool = False
    ) -> dict[str, Any]:
        """Watch the next prompt; directory: where ranks keep their tensors, None without a tap. caches: as in Steps."""

        def begin() -> dict[str, Any]:
            place = None if directory is None else Path(directory) / f"rank-{self.rank}"
            ids = None if forced is None else tuple(forced)
            self._watched = WatchedRank(self._gptq_diff, place, rows, ids, samples=self.rank == 0, caches=caches)
            return {}

        return _told(begin)

    def gptq_diff_end(self) -> dict[str, Any]:
        """Stop watching; tokens and logits as this rank saw them."""

        def end() -> dict[str, Any]:
            watched, self._watched = self._watched, None
            if watched is None:
                raise CaptureError("this rank was not watching", "run the capture again")
            return watched.end()

        return _told(end)

    def gptq_diff_gpu_peak(self) -> dict[str, Any]:
        """The most bytes of this rank's tensors on its GPU since the last call; None where it uses none."""
        return {"gpu": gpu_peak()}


class Reported:
    """Leaves word in the shared directory of whatever ends the load of this rank, and lets it pass."""

    def __init__(self, scratch: str) -> None:
        self._file = Path(scratch) / LOAD_FAILED

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if kind is not None and not self._file.exists():
            name = "" if issubclass(kind, GptqDiffError) else f"{kind.__name__}: "
            self._file.write_text(f"{name}{first_line(error)}", encoding="utf-8")


class WatchedRank:
    """One prompt on one rank: everything put in place, and taken away again."""

    def __init__(
        self, rank: Rank, directory: Path | None, rows: int, forced: tuple[int, ...] | None, *, samples: bool,
        caches: bool,
    ) -> None:  # fmt: skip
        self._writer = None if directory is None else CaptureWriter(directory)
        self._tap = None if self._writer is None else Tap(rank.tapped, self._writer)
        self._steps = Steps(rows, forced, self._tap, samples=samples, caches=caches)
        self._undo = contextlib.ExitStack()
        self._undo.enter_context(rank.followed(self._steps))

    def end(self) -> dict[str, Any]:
        """Undo; the capture's manifest goes last."""
        self._undo.close()
        with self._tap or contextlib.nullcontext():
            made = Watched(self._steps).generation()
        if self._writer is not None and self._tap is not None:
            self._writer.close()
            manifest = Manifest(
                backend="", prompt="", order=tuple(self._tap.order), kernels=self._writer.kernels, skipped={},
                steps=made.steps, tokens=made.tokens, logits_finite=made.logits_finite, cached_rows=made.cached_rows,
                forced=self._steps.forced is not None, where=self._writer.where,
                bytes_written=self._writer.bytes_written, seconds={},
            )  # fmt: skip
            self._writer.finish(manifest, made.first_logits_V)
        return {
            "steps": made.steps, "tokens": list(made.tokens), "finite": list(made.logits_finite),
            "first_logits": made.first_logits_V.tolist(), "cached_rows": made.cached_rows,
        }  # fmt: skip


def _told(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The work's answer, or its failure as a value: an exception would end vLLM's engine with a message of its own."""
    try:
        return work()
    except GptqDiffError as e:
        kind = "capture" if isinstance(e, CaptureError) else "backend"
        return {"error": str(e), "hint": e.hint, "kind": kind}
