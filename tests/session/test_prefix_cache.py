"""--prefix-cache through a run's plan: order of prompts, what is forgotten when, who takes it."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gptq_diff import worker
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader
from gptq_diff.engines.hf import HfEngine
from gptq_diff.errors import UsageError
from gptq_diff.jobs import Job
from gptq_diff.session.asked import Asked, Backend
from gptq_diff.session.fixed_checkpoint import _asked as fixed_asked
from gptq_diff.session.loads import load_of
from gptq_diff.session.sweep import Lengths
from tests.session.in_process import FIRST, SECOND, asked

VLLM = f"vllm@{sys.executable}"


@pytest.fixture
def wanted(small_model: Path) -> Asked:
    """Two prompts, vLLM beside a simulator, two repeats."""
    return asked(small_model, f"hf-fp16,{VLLM}", (FIRST, SECOND), prefix_cache=True, repeats=2)


def jobs(wanted: Asked, *backends: Backend) -> tuple[bool, list[tuple[str, str, bool]]]:
    """Whether that load has a cache, and its jobs: backend, capture, whether the cache is emptied before."""
    load = load_of(wanted, RunDir(Path("run")), Path("staged"), list(backends), {})
    found = [(job.backend, job.key, job.forget) for job in load.spec.jobs if isinstance(job, Job)]
    return load.spec.prefix_cache, found


def named(wanted: Asked, name: str) -> Backend:
    return next(b for b in wanted.backends if b.name == name)


def test_prompts_come_in_file_order_and_repeats_after_each_other(wanted: Asked) -> None:
    """Each repeat begins with an empty cache, so that it meets what the first run met; so does each backend."""
    vllm = named(wanted, "vllm")
    other = replace(vllm, name="vllm-gptq")
    order = [("p1", True), ("p2", False), ("p1@2", True), ("p2@2", False)]
    assert jobs(wanted, vllm, other) == (True, [(b, *each) for b in ("vllm", "vllm-gptq") for each in order])


def test_others_run_as_always(wanted: Asked) -> None:
    """No cache, repeat after repeat; and so does vLLM without the option."""
    plain = [("p1", False), ("p1@2", False), ("p2", False), ("p2@2", False)]
    assert jobs(wanted, named(wanted, "hf-fp16")) == (False, [("hf-fp16", *each) for each in plain])
    off = replace(wanted, prefix_cache=False)
    assert jobs(off, named(off, "vllm")) == (False, [("vllm", *each) for each in plain])


def test_without_a_preset_of_vllm_it_is_refused(small_model: Path) -> None:
    """It could do nothing."""
    with pytest.raises(UsageError, match="--prefix-cache is about vLLM's presets"):
        asked(small_model, "hf-fp16,sim-exllama", prefix_cache=True)
    assert asked(small_model, "hf-fp16", prefix_cache=False).prefix_cache is False


def test_a_sweep_is_refused(small_model: Path) -> None:
    """Every length begins as the one before."""
    with pytest.raises(UsageError, match="--prefix-cache and --sweep-tokens"):
        asked(small_model, VLLM, prefix_cache=True, sweep=Lengths(3, 5, 1))


def test_a_fixed_checkpoint_is_tried_without(wanted: Asked) -> None:
    """There the failing prompts alone are run, and no earlier one is to answer for them."""
    failing: Any = [SimpleNamespace(backend="vllm", prompt="p2")]
    again = fixed_asked(wanted, failing, cast(Any, SimpleNamespace(path="fixed")))
    assert (again.prefix_cache, [p.id for p in again.prompts]) == (False, ["p2"])


def test_a_worker_forgets_before_the_job_that_says_so(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And writes into the manifest what the engine counted."""
    seen: list[str] = []

    class Counting(HfEngine):
        def forget(self) -> None:
            seen.append("forget")

        def generate(self, token_ids: tuple[int, ...], **how: Any) -> Any:
            seen.append("generate")
            return replace(super().generate(token_ids, **how), cached_rows=2)

    monkeypatch.setattr("gptq_diff.engines.catalogue.engine_named", lambda name: Counting)
    made = tuple(
        Job("b", "fp16", f"p{n}", FIRST, 1, None, str(tmp_path / f"p{n}"), forget=n != 2) for n in (1, 2, 3)
    )  # fmt: skip
    spec = worker.WorkerSpec(
        "transformers", str(small_model), "float16", "cpu", False, 1, 0, str(tmp_path / "events"), 0, made
    )
    worker.work(spec, worker.Events(tmp_path / "events"))
    assert seen == ["forget", "generate", "generate", "forget", "generate"]
    assert CaptureReader(tmp_path / "p1").manifest.cached_rows == 2
