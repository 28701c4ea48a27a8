"""Which tensors of a judged run are kept: all, those of bad layers, or as many as the budget holds."""

from __future__ import annotations

from gptq_diff.between_file import between_file, read_between
from gptq_diff.capture.prune import keep_only, size_of
from gptq_diff.capture.run_dir import RunDir
from gptq_diff.compare.results import BAD_KINDS, in_order
from gptq_diff.jobs import prompt_of
from gptq_diff.judged_file import read_judged
from gptq_diff.records import INTERVALS, Judgement
from gptq_diff.session.asked import RunRecord

NEIGHBOURS = 1
"""Linears kept before and after a bad one."""
BEFORE = 3
"""Linears kept before a bad interval: attention is made of three."""
MOST_BAD = 8
"""Bad linears a capture keeps: the first ones matter, the rest inherit."""


def interesting(judgements: list[Judgement]) -> frozenset[str]:
    """The first bad layers of a capture and their neighbours in order of execution."""
    order = {j.index: j.layer for j in judgements if j.step == 0}
    places: list[int] = []
    for j in judgements:
        if j.kind in BAD_KINDS and j.index not in places:
            places.append(j.index)
    near = {i + d for i in places[:MOST_BAD] for d in range(-NEIGHBOURS, NEIGHBOURS + 1)}
    between = [j.index for j in judgements if j.kind in BAD_KINDS and j.path in INTERVALS][:MOST_BAD]
    near |= {i - d for i in between for d in range(BEFORE + 1)}
    return frozenset(order[i] for i in near if i in order)


def keep_what_was_asked(run: RunDir, record: RunRecord) -> tuple[str, ...]:
    """Apply --capture and its budget; returns in words what was left out.

    "auto" drops nothing while all captures together fit; else it drops, the last backend first and the reference
    last, everything but the first bad layers (of any backend, for that prompt) and their neighbours.
    """
    if record.capture == "full":
        return record.left_out
    ordered = sorted(record.backends, key=lambda b: b.name != record.reference)
    captures = [(b.name, key) for b in ordered for key in b.finished]
    total = sum(size_of(run.capture(*c)) for c in captures)
    wanted: dict[str, frozenset[str]] = {}
    for backend, key in captures:
        prompt = prompt_of(key)
        between = read_between(between_file(run.root, backend, prompt))
        intervals = list(between.judgements) if between is not None else []
        found = interesting(in_order(read_judged(run.judged(backend, prompt)), intervals))
        wanted[prompt] = wanted.get(prompt, frozenset()) | found
    freed, dropped = 0, 0
    for backend, key in reversed(captures):
        if record.capture == "auto" and total - freed <= record.capture_budget:
            break
        freed += keep_only(run.capture(backend, key), wanted[prompt_of(key)])
        dropped += 1
    if not dropped:
        return record.left_out
    why = "--capture stats" if record.capture == "stats" else f"the capture budget is {record.capture_budget:,} bytes"
    return (*record.left_out, f"{dropped} of {len(captures)} captures keep only the first bad linears' tensors: {why}")
