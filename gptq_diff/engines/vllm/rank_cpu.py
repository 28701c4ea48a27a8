"""vLLM's CPU worker with our calls; imported by vLLM in every rank, by the name in `worker_cls`."""

from __future__ import annotations

from vllm.v1.worker.cpu_worker import CPUWorker

from gptq_diff.engines.vllm.rank_calls import RankCalls


class CpuRank(RankCalls, CPUWorker):  # type: ignore[misc]
    """One tensor-parallel rank on a CPU."""
