"""Tensors that are held instead of copied: where the engine leaves them alone, which is found out, and again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gptq_diff.capture import staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.left_alone import Seen, Watch
from gptq_diff.capture.ways import Views, one_launch
from gptq_diff.errors import CaptureError
from tests.capture.toy_modules import Copying, Engine, K, N, inputs_of, run

NAMES = "abcdef"


@pytest.fixture(autouse=True)
def everything_is_staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(taps, "asks_later", lambda _: True)


class Counted(Engine):
    """Counts the calls that are copied at once, both tensors together."""

    def __init__(self, names: str = NAMES) -> None:
        super().__init__(names)
        self.spoils = set()
        self.at_once = Counter[int]()
        self.stage.way = self.way

    def way(self, views: Views, x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
        self.at_once[len(x_MK)] += 1
        one_launch(views, x_MK, y_MN)


def relied_on(engine: Engine, names: str = NAMES) -> dict[str, str]:
    """By module, the tensors of many rows that are known to be left alone."""
    lefts = {left.name: left for left in engine.stage.watch._lefts[::2]}
    return {n: "".join(w for w in "xy" if lefts[n].found and getattr(lefts[n], w)) for n in names}


def test_what_an_engine_leaves_alone_is_held_from_the_second_prompt_on() -> None:
    """The first call of a chunk is told, one module is looked at again; no other is copied by itself any more."""
    engine = Counted()
    run(engine, inputs_of(NAMES, 3))
    assert engine.at_once[3] == 6
    run(engine, inputs_of(NAMES, 3, seed=1))
    assert relied_on(engine) == {"a": "", **dict.fromkeys("bcdef", "xy")}
    assert engine.at_once[3] <= 6 + 2
    run(engine, inputs_of(NAMES, 5, seed=2))
    assert engine.at_once[5] <= 2, "what is known holds for prompts of any length"


@pytest.mark.parametrize("when", ["spoils", "late"])
def test_what_it_writes_into_is_copied_at_once(when: str) -> None:
    """Right after the call, as a normalisation does, or when the step is nearly over: what comes out stays right."""
    engine = Counted()
    getattr(engine, when).update({("y", "b"), ("x", "c"), ("x", "d"), ("y", "d")})
    for seed in range(4):
        run(engine, inputs_of(NAMES, 3, seed))
    assert relied_on(engine) == {"a": "", "b": "x", "c": "y", "d": "", "e": "xy", "f": "xy"}


def test_calls_of_one_row_are_known_by_themselves() -> None:
    """A decode step may run through other code than a prefill."""
    engine = Counted()
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    before = engine.at_once.copy()
    run(engine, inputs_of(NAMES, 1))
    assert engine.at_once[1] - before[1] == 6
    run(engine, inputs_of(NAMES, 1, seed=1))
    assert engine.at_once[1] - before[1] <= 6 + 2


def test_an_engine_that_changes_its_ways_is_found_out() -> None:
    """Every module is looked at again in its turn; its capture fails with a sentence that names it."""
    engine = Counted()
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    engine.spoils.add(("y", "d"))
    with pytest.raises(CaptureError, match="wrote into d's output before its step was over, and had left it alone"):
        for seed in range(2 * len(NAMES)):
            engine.prompt(inputs_of(NAMES, 3, seed), Copying())


def test_a_step_whose_memory_is_used_again_teaches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies that would be compared are gone then: all goes on being copied at once, and stays right."""
    monkeypatch.setattr(staging, "CHUNK_BYTES", 2 * 3 * (K + N) * 4)
    names = "abcdefghijklmnopqrst"
    engine = Counted(names)
    for seed in range(3):
        run(engine, inputs_of(names, 3, seed))
    assert not any(relied_on(engine, names).values())


def test_what_is_known_holds_for_steps_of_many_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held tensors leave with their chunk, in the right places, whatever is copied at once beside them."""
    engine = Counted()
    engine.spoils.update({("y", "b"), ("x", "c")})
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    monkeypatch.setattr(staging, "CHUNK_BYTES", 3 * 3 * (K + N) * 4)
    for seed in range(3):
        run(engine, inputs_of(NAMES, 3, seed))
        run(engine, inputs_of(NAMES, 11, seed))


def test_a_prompt_that_failed_teaches_nothing_and_holds_nothing() -> None:
    engine = Counted()
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("ab", 2), Copying())
    assert not engine.stage.held
    assert not engine.stage.watch.seen
    assert not any(relied_on(engine).values())
    run(engine, inputs_of(NAMES, 2))


def test_other_kernels_are_looked_at_anew() -> None:
    """A stage that forgets knows nothing: neither of modules nor of the order of their calls."""
    engine = Counted()
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    watch = engine.stage.watch
    engine.stage.forget()
    assert engine.stage.watch is not watch
    assert engine.stage.orders.expected == frozenset()


def test_bits_decide_and_not_values() -> None:
    """NaN is NaN, and minus zero is not zero: what is compared are copies."""
    watch = Watch()
    left = watch.of("m")
    nan = torch.tensor([[float("nan"), 0.0]])
    zero = torch.tensor([[0.0]])
    watch.begin()
    watch.seen.append(Seen(left, Views(nan, (nan.clone(), zero.clone())), nan, -zero))
    watch.note()
    assert (left.x, left.y, left.known) == (True, False, True)
