"""vLLM's GPU worker with our calls; imported by vLLM in every rank, by the name in `worker_cls`."""

from __future__ import annotations

from vllm.v1.worker.gpu_worker import Worker

from gptq_diff.engines.vllm.rank_calls import RankCalls


class GpuRank(RankCalls, Worker):  # type: ignore[misc]
    """One tensor-parallel rank on a GPU."""
