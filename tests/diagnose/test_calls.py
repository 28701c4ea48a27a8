"""What other calls of a layer say of a fault that nothing explains."""

from __future__ import annotations

from gptq_diff.diagnose.calls import OtherCall, between_calls
from gptq_diff.records import Finding


def other(rows: int, *, bad: bool, left: float, to_expect: float = 50.0) -> OtherCall:
    return OtherCall(rows, bad, left, to_expect)


UNKNOWN = Finding("unknown", 0.3, ("nothing",), "a")


def test_right_and_wrong_with_the_same_rows_is_a_race() -> None:
    found = between_calls(
        UNKNOWN,
        1,
        [
            other(1, bad=False, left=0.9),
            other(1, bad=True, left=9.0),
            other(37, bad=False, left=1.0),
        ],
    )
    assert found.cause == "race-or-uninitialised"


def test_wrong_up_to_some_rows_is_a_path() -> None:
    found = between_calls(
        UNKNOWN,
        37,
        [
            other(1, bad=True, left=8.0),
            other(51, bad=False, left=0.9),
            other(60, bad=False, left=1.0),
        ],
    )
    assert found.cause == "row-path"
    assert "up to 37" in found.summary


def test_wrong_everywhere_stays_unknown_and_so_does_what_is_unclear() -> None:
    assert between_calls(UNKNOWN, 37, [other(1, bad=True, left=8.0)]) is UNKNOWN
    assert between_calls(UNKNOWN, 37, [other(1, bad=False, left=2.5, to_expect=12.0)]) is UNKNOWN
    assert (
        between_calls(
            UNKNOWN,
            37,
            [other(1, bad=False, left=0.9), other(60, bad=False, left=1.0)],
        )
        is UNKNOWN
    )


def test_errors_in_other_places_of_another_call_are_a_race() -> None:
    """Weights do not move; the columns that err do."""
    found = between_calls(UNKNOWN, 37, [other(1, bad=True, left=0.9)])
    assert found.cause == "race-or-uninitialised"
    assert "other columns" in found.evidence[0]


def test_a_known_cause_is_left_alone() -> None:
    known = Finding("dtype", 0.9, (), "a")
    assert between_calls(known, 37, [other(1, bad=False, left=0.1)]) is known


def test_a_call_in_which_the_error_would_not_show_says_nothing() -> None:
    """One column's answer may be small there; that is no other path."""
    weak = other(1, bad=False, left=0.9, to_expect=1.5)
    assert between_calls(UNKNOWN, 14, [weak]) is UNKNOWN


def test_a_call_that_errs_far_less_than_it_would_is_spared() -> None:
    """One row errs by more than rounding expects now and then; a twentieth of the fault is not the fault."""
    found = between_calls(UNKNOWN, 6, [other(1, bad=False, left=3.0, to_expect=60.0)])
    assert found.cause == "row-path"
    assert between_calls(UNKNOWN, 6, [other(1, bad=False, left=3.0, to_expect=12.0)]) is UNKNOWN
