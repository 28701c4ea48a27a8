"""Exit codes of contract.md: 2 is not a report's; then 1, then 3, then 0."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gptq_diff.exit_codes import exit_code
from gptq_diff.records import SkippedBackend
from tests.report.build import a_report, a_result

FAILED = (SkippedBackend("hf-fp16", "died", "logs/x.log"),)


@pytest.mark.parametrize(
    ("statuses", "failed", "code", "allowed"),
    [
        (["agree"], False, 0, 0),
        (["agree", "agree"], False, 0, 0),
        (["agree", "overflow"], False, 1, 1),
        (["nan"], False, 1, 1),
        (["diverged"], False, 1, 1),
        (["collapsed"], False, 1, 1),
        (["nondeterministic"], False, 1, 1),
        (["incomplete"], False, 3, 3),
        (["agree", "incomplete"], False, 3, 3),
        (["agree"], True, 3, 0),
        (["agree", "overflow"], True, 1, 1),  # a failure that was found beats a backend that could not run
        (["incomplete", "diverged"], True, 1, 1),
        (["agree", "incomplete"], True, 3, 3),
        ([], False, 3, 3),
        ([], True, 3, 3),  # nothing compared is no agreement, whatever is allowed
    ],
)
def test_the_table(statuses: list[str], failed: bool, code: int, allowed: int) -> None:
    """allowed: with --allow-skip."""
    report = a_report(*map(a_result, statuses), skipped=FAILED if failed else ())
    assert exit_code(report) == code
    assert exit_code(replace(report, allow_skip=True)) == allowed
