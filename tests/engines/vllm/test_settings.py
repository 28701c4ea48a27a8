"""What vLLM is started with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm.settings import (
    ENVIRONMENT,
    LEAST_FREE,
    OPTIONAL,
    beside_others,
    engine_arguments,
    own_process,
    route_named,
)
from gptq_diff.errors import BackendError

SPEC = LoadSpec(
    "vllm", Path("/m"), "float16", "cuda", trust_remote_code=False, threads=0, seed=3, route="gptq", longest=300
)
ALL = frozenset(
    {
        "model",
        "quantization",
        "dtype",
        "seed",
        "trust_remote_code",
        "skip_tokenizer_init",
        "max_model_len",
        "max_num_batched_tokens",
        "max_num_seqs",
        "enforce_eager",
        "enable_prefix_caching",
        "enable_chunked_prefill",
    }
)


def test_one_plain_batch_and_nothing_that_changes_its_rows() -> None:
    given = engine_arguments(SPEC, ALL | OPTIONAL)
    assert given["max_num_batched_tokens"] == given["max_model_len"] == 301
    assert given["max_num_seqs"] == 1
    assert given["enforce_eager"] is True
    assert not any(given[name] for name in ("enable_prefix_caching", "enable_chunked_prefill", "async_scheduling"))
    assert (given["dtype"], given["seed"], given["quantization"]) == ("float16", 3, "gptq")


def test_an_old_release_goes_without_what_it_does_not_need() -> None:
    assert engine_arguments(SPEC, ALL).keys() == ALL


def test_a_release_without_something_that_matters_is_refused() -> None:
    with pytest.raises(BackendError, match="no engine argument 'enable_prefix_caching'"):
        engine_arguments(SPEC, ALL - {"enable_prefix_caching"})


def test_a_route_to_one_kernel_switches_the_others_off_but_for_the_stand_in() -> None:
    assert route_named("auto").environment() == ENVIRONMENT
    off = route_named("marlin").environment()["VLLM_DISABLED_KERNELS"].split(",")
    assert "MacheteLinearKernel" in off
    assert not {"MarlinLinearKernel", "ExllamaLinearKernel"} & set(off)
    assert "MarlinLinearKernel" in route_named("gptq").environment()["VLLM_DISABLED_KERNELS"]
    with pytest.raises(BackendError, match="'side-door'"):
        route_named("side-door")


@pytest.mark.parametrize("where", ["vllm", "vllm.v1", "vllm.v1.executor"])
def test_a_release_without_that_executor_starts_as_it_likes(monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    """Before 0.9 or so there is none to name."""
    monkeypatch.setitem(sys.modules, where, None)
    assert own_process(frozenset({"distributed_executor_backend"})) == {}


def test_a_gpu_is_shared_with_the_judge() -> None:
    """Only where the bytes of the cache are given: older releases would fill the share with it."""
    share, size = "gpu_memory_utilization", "kv_cache_memory_bytes"
    assert beside_others(frozenset({share, size})) == {share: LEAST_FREE}
    assert beside_others(frozenset({share})) == beside_others(frozenset({size})) == {}


def test_one_worker_stays_in_this_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The executor is named by its class, which no release replaces."""
    package = tmp_path / "vllm" / "v1" / "executor"
    package.mkdir(parents=True)
    for folder in (package, package.parent, package.parents[1]):
        (folder / "__init__.py").touch()
    (package / "uniproc_executor.py").touch()
    for name in ("vllm", "vllm.v1", "vllm.v1.executor"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    wanted = {"distributed_executor_backend": "vllm.v1.executor.uniproc_executor.UniProcExecutor"}
    assert own_process(frozenset({"distributed_executor_backend"})) == wanted
    assert own_process(frozenset()) == {}
    for name in ("vllm", "vllm.v1", "vllm.v1.executor"):
        sys.modules.pop(name, None)
