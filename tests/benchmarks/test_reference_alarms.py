"""What the reference is judged on, and how the calls nearest to the limit are picked; running it takes minutes."""

from __future__ import annotations

from benchmarks.long_and_many import short_prompts
from benchmarks.reference_alarms import largest, random_prompts
from tests.compare.made import judgement


def test_the_prompts_are_the_same_ones_every_time_and_of_the_lengths_that_are_promised() -> None:
    drawn = random_prompts(77)
    assert drawn == random_prompts(77) != random_prompts(78)
    lengths = [len(ids) for ids in drawn]
    assert len(drawn) == 70 and set(lengths[:40]) <= set(range(1, 8)) and set(lengths[40:]) <= set(range(30, 61))
    assert all(0 < token < 49152 for ids in drawn for token in ids)


def test_the_prompt_that_was_a_false_alarm_has_eight_tokens_and_is_among_the_first_200() -> None:
    assert [len(ids) for ids in short_prompts(200)[135:139]] == [6, 7, 8, 9]
    assert short_prompts(200)[137] == short_prompts(138)[-1]


def test_the_eight_calls_nearest_to_the_limit_come_first_and_one_without_figures_counts_as_zero() -> None:
    judged = {
        "p0": [judgement(excess=0.1 * i, layer=f"l{i}") for i in range(9)],
        "p1": [judgement(excess=None, layer="lost"), judgement(excess=0.95, layer="near", rows=8)],
    }
    found = largest(judged)
    assert found[0] == (0.95, "p1", "near", 8) and found[1][:3] == (0.8, "p0", "l8")
    assert len(found) == 8 and "lost" not in {layer for _, _, layer, _ in found}
