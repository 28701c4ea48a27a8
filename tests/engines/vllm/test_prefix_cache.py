"""The vLLM engine with its prefix cache on: taps see the computed rows alone, and vLLM's own count has to fit them."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm.settings import engine_arguments
from gptq_diff.engines.vllm.steps import Steps
from gptq_diff.engines.vllm_engine import VllmEngine
from gptq_diff.errors import BackendError, CaptureError
from tests.engines.vllm.test_engine import LAYERS, FakeLLM, run
from tests.engines.vllm.test_engine import load as load

BLOCK = 4
LONG = tuple(range(1, 14))


class CachingLLM(FakeLLM):
    """Whole blocks of four that it has seen at the same place are not computed again; the last token always is."""

    enabled = True
    lies = 0
    says_reset: bool | None = True

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.enabled = arguments["enable_prefix_caching"]
        self.known: set[tuple[int, ...]] = set()

    def generate(self, prompt: dict[str, list[int]], sampling: Any, use_tqdm: bool) -> list[Any]:
        ids = tuple(prompt["prompt_token_ids"])
        cached = 0
        while self.enabled and cached + BLOCK < len(ids) and ids[: cached + BLOCK] in self.known:
            cached += BLOCK
        self.known |= {ids[:end] for end in range(BLOCK, len(ids) + 1, BLOCK)}
        (output,) = super().generate({"prompt_token_ids": list(ids[cached:])}, sampling, use_tqdm)
        output.num_cached_tokens = cached + self.lies
        return [output]

    def reset_prefix_cache(self) -> bool | None:
        self.known.clear()
        return self.says_reset


@pytest.fixture
def caching(load: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function (prefix_cache) -> engine on CachingLLM, which is given as `llm`."""
    kind = type("Fresh", (CachingLLM,), {})
    monkeypatch.setattr(sys.modules["vllm"], "LLM", kind)

    def loaded(prefix_cache: bool = True) -> VllmEngine:
        return VllmEngine(LoadSpec("vllm", load.directory, "float16", "cpu", False, 0, 0, "auto", 20,
                                   prefix_cache=prefix_cache))  # fmt: skip

    loaded.llm = kind  # type: ignore[attr-defined]
    return loaded


def test_the_cache_is_on_only_where_it_is_asked_for(load: Any) -> None:
    """Everything else is asked of vLLM as always."""
    spec = LoadSpec("vllm", load.directory, "float16", "cpu", False, 0, 0, "auto", 20)
    off = engine_arguments(spec, frozenset(sys.modules["vllm"].EngineArgs.__dataclass_fields__))
    on = engine_arguments(
        LoadSpec("vllm", load.directory, "float16", "cpu", False, 0, 0, "auto", 20, prefix_cache=True),
        frozenset(sys.modules["vllm"].EngineArgs.__dataclass_fields__),
    )
    assert (off.pop("enable_prefix_caching"), on.pop("enable_prefix_caching")) == (False, True)
    assert off == on


def test_only_computed_rows_are_seen_and_the_rest_is_counted(caching: Any) -> None:
    """13 tokens, then 11 of which the first 8 are in the cache: 3 rows, the very ones that are computed without it."""
    engine = caching()
    first, sink, _ = run(engine, LONG)
    assert first.cached_rows == 0
    assert {c.rows for c in sink.calls if c.step == 0} == {13}
    again, sink, _ = run(engine, (*LONG[:9], 40, 41))
    assert again.cached_rows == 8
    assert {c.rows for c in sink.calls if c.step == 0} == {3}
    assert {c.rows for c in sink.calls if c.step > 0} == {1}
    whole, without, _ = run(caching(prefix_cache=False), (*LONG[:9], 40, 41))
    assert whole.cached_rows == 0
    assert whole.tokens == again.tokens
    assert torch.equal(sink.y[0, LAYERS[2]], without.y[0, LAYERS[2]][8:])


def test_it_can_be_emptied(caching: Any) -> None:
    """The next prompt is computed whole; without a cache there is nothing to do."""
    engine = caching()
    run(engine, LONG)
    engine.forget()
    assert run(engine, LONG)[0].cached_rows == 0
    caching(prefix_cache=False).forget()


def test_a_cache_that_is_not_emptied_is_no_backend(caching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of an earlier backend would be judged as this one's. Older releases answer nothing, which is fine."""
    engine = caching()
    monkeypatch.setattr(caching.llm, "says_reset", None)
    engine.forget()
    monkeypatch.setattr(caching.llm, "says_reset", False)
    with pytest.raises(BackendError, match="did not empty"):
        engine.forget()
    monkeypatch.setattr(caching.llm, "reset_prefix_cache", None)
    with pytest.raises(BackendError, match="no way to empty its prefix cache"):
        engine.forget()


def test_what_vllm_says_must_fit_what_was_seen(caching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows would be held against other rows of the reference else."""
    engine = caching()
    run(engine, LONG)
    monkeypatch.setattr(caching.llm, "lies", 4)
    with pytest.raises(
        CaptureError, match="says that 12 tokens came from its prefix cache, and its kernels left out 8"
    ):
        run(engine, (*LONG[:9], 40, 41))


def test_a_release_that_says_nothing_of_its_cache(caching: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused with the option, and taken without it."""

    def silent(self: Any, prompt: Any, sampling: Any, use_tqdm: bool) -> list[Any]:
        (output,) = FakeLLM.generate(self, prompt, sampling, use_tqdm)
        return [SimpleNamespace(outputs=output.outputs)]

    monkeypatch.setattr(caching.llm, "generate", silent)
    with pytest.raises(CaptureError, match="does not say how many tokens"):
        run(caching(), LONG)
    assert run(caching(prefix_cache=False), LONG)[0].cached_rows == 0


def test_steps_take_the_first_calls_rows_and_hold_the_others_to_them() -> None:
    """A cache can leave rows out, not add any; the output head may take its last row alone."""
    steps = Steps(9, None, None, caches=True)
    assert steps.cached_rows == 0
    steps.check_rows("q", 5)
    assert (steps.cached_rows, steps.rows) == (4, 5)
    steps.check_rows("down", 5)
    steps.check_rows("lm_head", 1)
    for rows in (4, 9):
        with pytest.raises(CaptureError, match=f"gave q {rows} rows in step 0, not 5"):
            steps.check_rows("q", rows)
    with pytest.raises(CaptureError, match="gave q 10 rows in step 0, not 9"):
        Steps(9, None, None, caches=True).check_rows("q", 10)
    with pytest.raises(CaptureError, match="gave q 5 rows in step 0, not 9"):
        Steps(9, None, None).check_rows("q", 5)
