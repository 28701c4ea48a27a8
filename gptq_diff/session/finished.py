"""Which captures of a run are whole, and their readers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gptq_diff.compare.judge_run import Key, open_captures

if TYPE_CHECKING:
    from gptq_diff.capture.run_dir import RunDir
    from gptq_diff.compare.align import Captured
    from gptq_diff.session.asked import RunRecord


def finished_captures(record: RunRecord, run: RunDir) -> list[Key]:
    """(backend, prompt) of every capture that is whole, in the report's order."""
    prompts = [p.id for p in run.prompts()]
    return [(b.name, p) for b in record.backends for p in prompts if p in b.finished]


def open_finished(run: RunDir, record: RunRecord, keys: Sequence[Key]) -> dict[Key, Captured]:
    """Readers for those captures, each beside the reference's of the same prompt, be that one of them or not."""
    return open_captures(run, keys, record.reference, finished_captures(record, run))
