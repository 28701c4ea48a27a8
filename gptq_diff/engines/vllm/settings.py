"""What vLLM is started with: environment variables and engine arguments, so that every backend sees one plain batch."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from pathlib import Path

from gptq_diff.engines.base import LoadSpec
from gptq_diff.errors import BackendError

SCRATCH = "gptq_diff_scratch"
"""Key in vLLM's `additional_config`: a directory that the engine and its ranks share."""

ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the model lives in this process, where the taps are
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # compiles at its first use
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB, for releases that do not know kv_cache_memory_bytes
}
"""Set before vLLM is imported."""

MIXED_KERNELS = (
    "CutlassW4A8LinearKernel",
    "MacheteLinearKernel",
    "AllSparkLinearKernel",
    "MarlinLinearKernel",
    "ConchLinearKernel",
    "HummingLinearKernel",
    "TritonW4A16LinearKernel",
    "ExllamaLinearKernel",
)
"""Kernels that `gptq_marlin` (and everything from vLLM 0.33 on) chooses from on an NVIDIA GPU."""

STAND_IN = "ExllamaLinearKernel"
"""Stays allowed on every route: it runs the linears that the kernel asked for cannot take, which then are skipped."""


class Route:
    """One way into vLLM.

    quantization: vLLM's argument; None leaves the choice to it.
    kernel: the kernel class that it must come to; None for any.
    """

    def __init__(self, quantization: str | None, kernel: str | None) -> None:
        self.quantization = quantization
        self.kernel = kernel

    def environment(self) -> dict[str, str]:
        """ENVIRONMENT, and for a route to one kernel the others switched off."""
        if self.kernel is None:
            return dict(ENVIRONMENT)
        others = [name for name in MIXED_KERNELS if name not in (self.kernel, STAND_IN)]
        return {**ENVIRONMENT, "VLLM_DISABLED_KERNELS": ",".join(others)}


ROUTES = {
    "auto": Route(None, None),
    "gptq": Route("gptq", STAND_IN),
    "marlin": Route("gptq_marlin", "MarlinLinearKernel"),
    "machete": Route("gptq_marlin", "MacheteLinearKernel"),
}

KV_BYTES_PER_TOKEN = 2**20
"""Room for one token's keys and values: 64 blocks of 8 heads of 128 take 256 KiB, 40 blocks of 40 heads 800 KiB."""
LEAST_KV_BYTES = 2**28
LEAST_FREE = 0.25
"""Share of a GPU that must be free for vLLM to start. By itself it wants 0.92, also where it is told how many bytes to
take (`request_memory` in vllm/v1/worker/utils.py, 0.20.2 and 0.32.0); the judge works there meanwhile."""
OPTIONAL = frozenset({"async_scheduling", "generation_config", "kv_cache_memory_bytes"})
"""Arguments that older releases do not have, and do not need."""


def route_named(name: str) -> Route:
    """The route of that name."""
    if name not in ROUTES:
        raise BackendError(f"there is no way into vLLM called {name!r}", f"the ways are {', '.join(ROUTES)}")
    return ROUTES[name]


def engine_arguments(spec: LoadSpec, known: frozenset[str]) -> dict[str, object]:
    """Arguments for vllm.LLM; known: those that this release has. BackendError when it lacks one that matters."""
    length = max(spec.longest + 1, 64)
    wanted: dict[str, object] = {
        "model": str(spec.model),
        "quantization": route_named(spec.route).quantization,
        "dtype": spec.dtype,
        "seed": spec.seed,
        "trust_remote_code": spec.trust_remote_code,
        "skip_tokenizer_init": True,  # every backend is given the same ids
        "max_model_len": length,
        "max_num_batched_tokens": length,  # at least the prompt: it must be one batch
        "max_num_seqs": 1,
        "enforce_eager": True,  # taps do not fire in a captured graph
        "enable_prefix_caching": spec.prefix_cache,  # it changes the number of rows, and so the path
        "enable_chunked_prefill": False,
        "async_scheduling": False,  # it would run a step whose result nobody asks for
        "generation_config": "vllm",
        "kv_cache_memory_bytes": max(LEAST_KV_BYTES, length * KV_BYTES_PER_TOKEN),
    }
    missing = sorted(wanted.keys() - known - OPTIONAL)
    if missing:
        raise BackendError(f"this vLLM has no engine argument {missing[0]!r}", "take a release from 0.5.1 on")
    return {name: value for name, value in wanted.items() if name in known}


def beside_others(known: frozenset[str]) -> dict[str, object]:
    """Further arguments on a GPU that is not vLLM's alone; of older releases the share is what they take for keys."""
    both = {"kv_cache_memory_bytes", "gpu_memory_utilization"} <= known
    return {"gpu_memory_utilization": LEAST_FREE} if both else {}


def own_process(known: frozenset[str]) -> dict[str, object]:
    """Further arguments on a CPU, where some releases (0.20.2) else put even a single worker into another process.

    They replace the executor called "uni" and leave alone one that is named by its class.
    """
    home, name = "vllm.v1.executor.uniproc_executor", "UniProcExecutor"
    if "distributed_executor_backend" not in known:
        return {}
    try:
        found = importlib.util.find_spec(home)
    except ModuleNotFoundError:  # a package above it is missing: an older release
        found = None
    if found is None:
        return {}
    return {"distributed_executor_backend": f"{home}.{name}"}


def rank_environment(ranks: int, cores: Collection[int]) -> dict[str, str]:
    """Variables for ranks on a CPU: the cores of each, since vLLM by itself wants a NUMA node for every rank."""
    ordered = sorted(cores)
    shares = [ordered[rank % len(ordered) :: ranks] for rank in range(ranks)]
    return {"VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, share)) for share in shares)}


def rank_arguments(spec: LoadSpec, known: frozenset[str], scratch: Path, *, cuda: bool) -> dict[str, object]:
    """Further arguments where the model is shared out among ranks (tensor parallelism).

    scratch: directory that the engine and the ranks share.
    """
    kind = "rank_gpu.GpuRank" if cuda else "rank_cpu.CpuRank"
    wanted: dict[str, object] = {
        "tensor_parallel_size": spec.tensor_parallel,
        "distributed_executor_backend": "mp",
        "worker_cls": f"gptq_diff.engines.vllm.{kind}",
        "additional_config": {SCRATCH: str(scratch)},
    }
    missing = sorted(wanted.keys() - known)
    if missing:
        raise BackendError(
            f"this vLLM has no engine argument {missing[0]!r}, which --tensor-parallel-size needs",
            "take a newer release, or one GPU",
        )
    return wanted
