"""Tensors that are held instead of copied: where the engine leaves them alone, which is found out, and again."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from gptq_diff.capture import left_alone, staging
from gptq_diff.capture import tap as taps
from gptq_diff.capture.left_alone import Watch
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
    lefts = {left.name: left for left in engine.stage.watch._many}
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
    run(engine, inputs_of(NAMES, 1), step=1)
    assert engine.at_once[1] - before[1] == 6
    run(engine, inputs_of(NAMES, 1, seed=1), step=2)
    assert engine.at_once[1] - before[1] <= 6 + 2


def test_a_single_row_at_position_0_teaches_nothing() -> None:
    """A rotary embedding leaves it as it is, and no other: prompts of one token, decode steps, in any order."""
    engine = Counted()
    engine.rotates = set("be")
    for seed, (rows, steps) in enumerate([(1, 0), (1, 4), (5, 2), (1, 3), (5, 0), (1, 0), (1, 0), (5, 3)] * 3):
        run(engine, inputs_of(NAMES, rows, seed))
        for step in range(1, steps + 1):
            run(engine, inputs_of(NAMES, 1, seed + step), step=step)
    assert relied_on(engine) == {"a": "", "b": "x", "c": "xy", "d": "xy", "e": "x", "f": "xy"}


@pytest.mark.parametrize("value", [float("nan"), 0.0, float("inf")])
def test_values_that_nothing_changes_teach_nothing(value: float) -> None:
    """A normalisation leaves NaN as it is: a prompt that collapsed must not spoil those after it."""
    engine = Counted()
    engine.rotates = set("bcdef")  # NaN, infinity and zero times anything stay what they are
    for seed in range(3):
        inputs = inputs_of(NAMES, 3, seed)
        for _, x in inputs:
            x.fill_(value)
        for module in engine.modules.values():
            module.quant_method.calls = -1  # the toy kernel adds the number of its call
        run(engine, inputs)
    assert not any(relied_on(engine).values())
    for seed in range(12):
        run(engine, inputs_of(NAMES, 3, seed))
    assert relied_on(engine) == {"a": "", **dict.fromkeys("bcdef", "x")}


def test_what_was_written_into_once_is_never_held() -> None:
    """Clamped in this prompt and not in that one: whatever came last, it is copied at once."""
    engine = Counted()
    engine.spoils = {("y", "b"), ("x", "c")}
    run(engine, inputs_of(NAMES, 3))
    engine.spoils = set()
    for seed in range(2 * len(NAMES)):
        run(engine, inputs_of(NAMES, 3, seed))
    assert relied_on(engine)["b"] == "x"
    assert relied_on(engine)["c"] == "y"
    engine.spoils = {("y", "b"), ("x", "c")}
    for seed in range(2 * len(NAMES)):
        run(engine, inputs_of(NAMES, 3, seed))


def test_where_outputs_may_not_be_held_inputs_are() -> None:
    """Of a model whose qkv is clamped in place: most prompts do not show it."""
    engine = Counted()
    engine.stage.watch.outputs = False
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    assert relied_on(engine) == {"a": "", **dict.fromkeys("bcdef", "x")}


def test_one_module_of_those_that_run_is_looked_at_again_in_a_step() -> None:
    """However long a generation is, it costs the next prefill nothing."""
    engine = Counted()
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    for step in range(1, 20):
        run(engine, inputs_of(NAMES, 1, step), step=step)
    before = engine.at_once[3]
    run(engine, inputs_of(NAMES, 3, seed=5))
    assert engine.at_once[3] - before <= 2


def test_what_is_held_to_be_compared_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two modules a step fit: all have had their turn after some."""
    monkeypatch.setattr(left_alone, "MOST_BYTES", 2 * 3 * (K + N) * 4)
    engine = Counted()
    run(engine, inputs_of(NAMES, 3))
    assert relied_on(engine) == {**dict.fromkeys(NAMES, ""), "b": "xy", "c": "xy"}
    for seed in range(4):
        run(engine, inputs_of(NAMES, 3, seed))
    assert relied_on(engine) == {"a": "", **dict.fromkeys("bcdef", "xy")}


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
        run(engine, inputs_of(NAMES, 4, seed))
    assert engine.told == ["a", "c", "e"], "two calls of four rows fit"


def test_a_prompt_that_failed_teaches_nothing_and_holds_nothing() -> None:
    engine = Counted()
    with pytest.raises(CaptureError, match="did not run"):
        engine.prompt(inputs_of("ab", 2), Copying())
    assert not engine.stage.held
    assert not engine.stage.watch._compared
    assert not any(relied_on(engine).values())
    run(engine, inputs_of(NAMES, 2))


def test_other_kernels_are_looked_at_anew() -> None:
    """After `forget` nothing is relied on, not by taps that were made before either."""
    engine = Counted()
    for seed in range(2):
        run(engine, inputs_of(NAMES, 3, seed))
    engine.stage.forget()
    engine.spoils.add(("y", "d"))
    for seed in range(3):
        run(engine, inputs_of(NAMES, 3, seed))
    assert engine.stage.orders.expected


@pytest.mark.parametrize(
    ("copy", "now", "written"),
    [([1.0, 0.0], [1.0, -0.0], True), ([1.0, 2.0], [1.0, 2.0], False), ([1.0, 2.0], [1.0, float("nan")], True)],
)
def test_bits_decide_and_not_values(copy: list[float], now: list[float], written: bool) -> None:
    """Minus zero is not zero: what is compared are copies."""
    watch = Watch()
    left, _ = watch.of("m")
    other = torch.ones(2, 2)
    watch.begin(0)
    watch.add(left, Views(other, (torch.tensor([copy] * 2), other)), torch.tensor([now] * 2), other.clone())
    watch.note()
    assert left.x_written == written
    assert (left.x, left.y, left.known) == (not written, True, True)


def test_prompts_with_tensors_and_with_figures_alone_find_their_own_memory_again() -> None:
    """By turns, as in a benchmark: a strip of each kind, and its views, are made once."""
    engine = Counted()
    for seed in range(6):
        sink = Copying()
        sink.wants_tensors = seed % 2 == 0
        engine.prompt(inputs_of(NAMES, 3, seed), sink)
    assert engine.stage.made == 2
    assert [len(strip.views) for strip in engine.stage.free] == [len(NAMES)] * 2
