"""What repeats say beside what the capture says."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.records import Finding
from gptq_diff.session.determinism import UNSTABLE, sharpened
from tests.report.build import a_result


def finding(cause: str, layer: str, *evidence: str) -> Finding:
    return Finding(cause, 0.3, evidence, layer)


def test_a_linear_that_nothing_explains_and_that_does_not_repeat_itself_races() -> None:
    """The unknown is taken into the race, with what was ruled out, and the race comes first."""
    found = (finding("unknown", "a", "ruled out"), finding("bias", "b"), finding(UNSTABLE, "a", "other bits"))
    after = sharpened(replace(a_result(), findings=found)).findings
    assert [(f.cause, f.layer) for f in after] == [(UNSTABLE, "a"), ("bias", "b")]
    assert after[0].evidence == ("other bits", "ruled out")
    assert after[0].confidence > 0.3


def test_anything_else_stays_as_it_is() -> None:
    """An unknown elsewhere is not the race's doing, and a race does not displace a cause that was found."""
    for found in (
        (finding("unknown", "a"), finding(UNSTABLE, "b")),
        (finding("zero-point-shift", "a"), finding(UNSTABLE, "a")),
        (finding("unknown", "a"),),
    ):
        assert sharpened(replace(a_result(), findings=found)).findings == found
