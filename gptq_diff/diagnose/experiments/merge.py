"""Findings of experiments among those of the capture: one list, the first bad layer's surest cause first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gptq_diff.records import Experiment, Finding


def merged(findings: Sequence[Finding], experiments: Sequence[Experiment]) -> tuple[Finding, ...]:
    """One finding a cause and layer; what a live kernel showed stands behind what the capture did.

    A cause that only an experiment found comes behind the layer's known ones and before its `unknown`.
    """
    found = list(findings)
    for shown in sorted((e.finding for e in experiments if e.finding is not None), key=lambda f: -f.confidence):
        same = next((i for i, f in enumerate(found) if (f.cause, f.layer) == (shown.cause, shown.layer)), None)
        if same is not None:
            more = tuple(f"on the live kernel: {sentence}" for sentence in shown.evidence)
            known = found[same]
            sure = max(known.confidence, shown.confidence)
            found[same] = replace(known, confidence=sure, evidence=(*known.evidence, *more))
        else:
            found.insert(_place(found, shown), shown)
    return tuple(found)


def _place(found: Sequence[Finding], new: Finding) -> int:
    of_layer = [i for i, f in enumerate(found) if f.layer == new.layer]
    if new.layer is None or not of_layer:
        return len(found)
    unknown = [i for i in of_layer if found[i].cause == "unknown"]
    return unknown[0] if unknown else of_layer[-1] + 1
