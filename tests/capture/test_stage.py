"""The stage that taps put calls on by themselves, and what they find made there for the next prompt."""

from __future__ import annotations

import pytest

from gptq_diff.capture import staging, strip
from gptq_diff.capture import tap as taps
from gptq_diff.capture.ways import WAYS, Way
from gptq_diff.errors import CaptureError
from tests.capture.toy_modules import Copying, Engine, K, N, inputs_of, run


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


@pytest.mark.parametrize("way", WAYS)
def test_only_the_first_call_of_a_chunk_is_told(way: Way) -> None:
    """All others are staged where they are made, in whatever way; what the sink is given is the same."""
    names = "abcdef"
    for asked in (False, True):
        engine = Engine(names, asked=asked)
        engine.stage.way = way
        for seed in range(3):
            run(engine, inputs_of(names, 3, seed))
            assert engine.told == ["a"]


def test_any_order_will_do_and_another_one_for_the_next_prompt() -> None:
    """Nothing is expected of the order: it is that of the calls."""
    engine = Engine("abcd")
    for order in ("abcd", "dbca", "cabd"):
        run(engine, inputs_of(order, 2, seed=len(order)))


def test_prompts_of_other_lengths_share_the_memory_and_find_their_views() -> None:
    """One strip for all; the second prompt of a length makes no view."""
    engine = Engine("abcd")
    for rows in (3, 5, 3, 1, 5):
        run(engine, inputs_of("abcd", rows))
    assert engine.stage.made == 1
    (used,) = engine.stage.free
    assert len(used.views) == 4 * 3


def test_views_of_many_lengths_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strip, "MOST_VIEWS", 10)
    engine = Engine("abcd")
    for rows in range(1, 20):
        run(engine, inputs_of("abcd", rows))
    assert len(engine.stage.free[0].views) <= 10


def test_chunks_that_fill_up_and_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for two calls a chunk and more chunks than there are strips."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2 * 3 * (K + N) * 4)
    names = [f"m{i}" for i in range(40)]
    engine = Engine(names)
    run(engine, inputs_of(names, 3))
    assert engine.told == names[::2]
    assert engine.stage.made == staging.STAGED


def test_what_is_known_to_come_makes_the_last_chunks_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each holds half of what is left: the copy of the last one is what a prefill waits for."""
    a_call = 3 * (K + N)
    monkeypatch.setattr(staging, "LEAST_BYTES", 2 * a_call * 4)
    names = [f"m{i}" for i in range(32)]
    engine = Engine(names)
    run(engine, inputs_of(names, 3), expected=32 * a_call)
    assert [names.index(name) for name in engine.told] == [0, 16, 24, 28, 30]


@pytest.mark.parametrize("odd", ["another dtype", "three dimensions", "large"])
def test_a_call_that_cannot_be_staged_there_is_told_and_keeps_its_place(
    odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another dtype, a batch dimension, more than a chunk holds: never lost, and the others go on."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 100 * (K + N) * 4)
    inputs = inputs_of("abcde", 3)
    x = inputs[2][1]
    changed = {"another dtype": x.half(), "three dimensions": x[None], "large": x.repeat(200, 1)}[odd]
    inputs[2] = ("c", changed)
    engine = Engine("abcde")
    run(engine, inputs)
    assert "c" in engine.told
    assert "b" not in engine.told


def test_modules_that_share_a_method_are_told_apart() -> None:
    engine = Engine("abc", shared=True)
    run(engine, inputs_of("cab", 2))


def test_a_module_that_runs_twice_is_refused() -> None:
    engine = Engine("ab")
    with pytest.raises(CaptureError, match=r"a\.q ran twice in step 0"):
        engine.prompt(inputs_of("aba", 2), Copying())


@pytest.mark.parametrize("order", ["abcb", "abca", "aabc"])
def test_a_module_that_runs_twice_is_refused_where_the_step_before_was_right(order: str) -> None:
    """What is remembered of a step is taken for the very same calls alone."""
    engine = Engine("abc")
    for seed in range(2):
        run(engine, inputs_of("abc", 2, seed))
    with pytest.raises(CaptureError, match=r"\.q ran twice in step 0"):
        engine.prompt(inputs_of(order, 2), Copying())
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("ab", 2), Copying())
    run(engine, inputs_of("cab", 2))


def test_places_that_were_counted_for_other_layers_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same calls in a tap that expects fewer layers: the one too many is refused, in a chunk of its own too."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2 * (K + N) * 4)
    engine = Engine("abc")
    for seed in range(2):
        run(engine, inputs_of("abc", 2, seed))
    with pytest.raises(CaptureError, match=r"c\.q ran in step 0, and is none of the quantised linears"):
        engine.prompt(inputs_of("abc", 2), Copying(), names="ab")
    run(engine, inputs_of("abc", 2))


def test_a_prompt_that_failed_leaves_nothing_to_the_next() -> None:
    """Its memory may still be read by copies on their way: the next prompt has its own."""
    engine = Engine("ab")
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("a", 2), Copying())
    run(engine, inputs_of("ab", 2))


def test_statistics_alone_count_what_is_not_finite_after_the_memory_was_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Values stay on the GPU then: those of a chunk with NaN are fetched before its strip goes to another."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 3 * (K + N) * 4)
    names = [f"m{i}" for i in range(20)]
    inputs = inputs_of(names, 3)
    inputs[2][1][1, 1] = float("nan")
    sink = Copying()
    sink.wants_tensors = False
    Engine(names).prompt(inputs, sink)
    counted = {call.layer: (call.x.nan, call.y.nan) for call in sink.calls if call.x.nan or call.y.nan}
    assert counted == {"m2.q": (1, 4), "m2.k": (1, 2)}


def test_prompts_with_tensors_and_with_figures_alone_share_the_memory() -> None:
    """By turns, as in a benchmark: the strip and its views are made once."""
    engine = Engine("abcd")
    for seed in range(6):
        sink = Copying()
        sink.wants_tensors = seed % 2 == 0
        engine.prompt(inputs_of("abcd", 3, seed), sink)
    assert engine.stage.made == 1
    assert [len(used.views) for used in engine.stage.free] == [4]
