"""The numbers behind the pictures, column by column, as the page's script reads them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gptq_diff.records import INTERVALS, Finding, Judgement, Result, RowMap
from gptq_diff.report.html.parts import Parts, pictured, shown_step
from gptq_diff.report.html.swept import asked, asked_data, lengths_data

LARGEST = 65504.0
FACTOR = 3.0
"""How many times the noise floor is still explained by it: the detection threshold (gptq_diff.compare.figures)."""
MAP_BYTES = 700_000
"""What the maps of linear by token may take of the page, as base64; the plotting library takes 220 kB."""


def page_data(parts: Parts) -> dict[str, Any]:
    """Everything that the script draws; plain JSON without NaN or infinities."""
    report = parts.report
    captures, room = [], MAP_BYTES
    for result in pictured(report):
        rows = parts.rows.get((result.backend, result.prompt))
        maps, room = _maps(result, rows, room)
        captures.append({**_capture(parts, result), "maps": maps})
    order = {(r.backend, r.prompt): i for i, r in enumerate(report.results)}
    selected = captures[0]["key"] if captures else None
    captures.sort(key=lambda c: order[c["backend"], c["prompt"]])
    sums = [_sums(f) for f in told_findings(report.results)]
    return {
        "largest": LARGEST, "factor": FACTOR, "selected": selected, "captures": captures, "sums": sums,
        "lengths": lengths_data(report), "asked": [_finite(asked_data(one)) for one in asked(report)],
    }  # fmt: skip


def told_findings(results: Sequence[Result]) -> dict[Finding, list[Result]]:
    """Every cause once, in the report's order, with the results that have the very same."""
    of: dict[Finding, list[Result]] = {}
    for result in results:
        for finding in result.findings:
            of.setdefault(finding, []).append(result)
    return of


def capture_key(backend: str, prompt: str) -> str:
    """How the page names a capture; no backend's name holds a `|`."""
    return f"{backend}|{prompt}"


def _capture(parts: Parts, result: Result) -> dict[str, Any]:
    step = shown_step(result)
    judged = [j for j in parts.judged.get((result.backend, result.prompt), []) if j.step == step]
    asked = parts.prompts.get(result.prompt)
    tokens = asked.token_ids if asked is not None and not result.cached_rows else ()  # captured rows start elsewhere
    return {
        "key": capture_key(result.backend, result.prompt), "backend": result.backend, "prompt": result.prompt,
        "status": result.status, "step": step, "reference": result.backend == parts.report.reference,
        "linears": _linears(judged), "bad": _bad_place(result, judged), "bad_kind": _bad_kind(result),
        "tokens": [*tokens], "written": [*result.tokens],
        "shared": sum(j.part.isdigit() for j in judged),
        "headroom": {layer: _rounded(bits) for layer, bits in result.headroom_bits.items()},
    }  # fmt: skip


def _maps(result: Result, rows: RowMap | None, room: int) -> tuple[dict[str, Any], int]:
    """The maps of one capture, or in `why` why there are none; and the bytes that are left for others."""
    if result.quantization_error is not None:
        return {"why": "There is no picture: an unquantised model has no kernel that could err."}, room
    if rows is None:
        why = "There is no picture: the figures of single tokens are not stored beside this report."
        return {"why": f"{why} Where the run's tensors are, gptq-diff compare RUN stores them."}, room
    size = len(rows.x) + len(rows.error)
    if size > room:
        return {
            "why": "There is no picture: it is left out to keep this file small. Failing captures have theirs."
        }, room
    maps = {"layers": rows.layers, "bins": rows.bins, "x": rows.x, "error": rows.error, "lost": rows.lost}
    return maps, room - size


def _sums(finding: Finding) -> dict[str, Any] | None:
    sums = finding.sums
    if sums is None:
        return None
    return {"channels": sums.channels, "exact": sums.exact, "half": sums.half, "limit": sums.limit}


def _linears(judged: Sequence[Judgement]) -> dict[str, list[Any]]:
    """One entry a judged call of the step, in order of execution."""
    return {
        "layer": [_name(j) for j in judged],
        "rows": [j.rows for j in judged],
        "local": [_rounded(j.local_l2_rel) for j in judged],
        "floor": [_rounded(j.noise_floor) for j in judged],
        "excess": [_rounded(j.excess) for j in judged],
        "inherited": [_rounded(j.inherited_l2_rel) for j in judged],
        "input": [_rounded(j.input_absmax) for j in judged],
        "exact": [_rounded(j.exact_absmax) for j in judged],
        "kind": [j.kind for j in judged],
        "note": [_note(j) for j in judged],
    }


def _name(j: Judgement) -> str:
    """A bad interval is named by what it is and the linear that it leads to."""
    return f"{j.path} before {j.layer}" if j.path in INTERVALS else j.stored


def _bad_place(result: Result, judged: Sequence[Judgement]) -> int | None:
    """Where the first bad call stands among them."""
    bad = result.first_bad
    if bad is None:
        return None
    alike = (i for i, j in enumerate(judged) if (j.layer, j.index, j.path) == (bad.layer, bad.index, bad.path))
    return next(alike, None)


def _bad_kind(result: Result) -> str:
    return result.first_bad.kind if result.first_bad is not None else ""


def _note(j: Judgement) -> str:
    if j.kind == "ok":
        return f"{j.inherited_rows} of {j.rows} rows had lost their input" if j.inherited_rows else ""
    if j.kind == "inherited":
        return "input already NaN or infinite"
    return f"{j.kind}: {j.nonfinite} infinite or NaN" if j.nonfinite else j.kind


def _finite(value: Any) -> Any:
    """The same with None for numbers that JSON cannot hold."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _rounded(value: float | None) -> float | None:
    """Four digits, which is more than any picture shows; None for what has no size."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
