"""The script that stresses live kernels: what it counts as agreement."""

from __future__ import annotations

from benchmarks.gpu.stress import agreement


def test_agreement_by_kernel() -> None:
    """A broken kernel agrees within one doubling or it does not; one that could not be broken is told apart."""
    rows = [
        {"backend": "a", "broke": True, "doublings": 3, "computed": 3},
        {"backend": "a", "broke": True, "doublings": 2, "computed": 3},
        {"backend": "a", "broke": True, "doublings": 5, "computed": 3},
        {"backend": "b", "broke": False, "doublings": 9, "computed": 3},
    ]
    assert agreement(rows) == {
        "a": {"linears": 3, "broken": 3, "within_one": 2, "equal": 1, "not_broken": 0},
        "b": {"linears": 1, "broken": 0, "within_one": 0, "equal": 0, "not_broken": 1},
    }
