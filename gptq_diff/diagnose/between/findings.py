"""Wrong intervals as findings: what differs by how much, and what computes it as it was computed."""

from __future__ import annotations

from collections.abc import Sequence

from gptq_diff.diagnose.between.named import Named, number
from gptq_diff.records import Finding, Judgement

MOST_NAMED = 3
"""Further places named in the evidence."""
CERTAIN, UNNAMED = 1.0, 0.9
"""Confidence where something known reproduces the captured values, and where nothing does."""
WHAT = {
    "embedding": "the embedding of the tokens, normed",
    "norm": "the norm of the residual stream",
    "residual": "the residual stream, normed",
    "attention": "the attention of its own q, k and v",
    "rotary": "the attention of its own q, k and v",
    "activation": "the activation of its own gate and up",
    "lm_head": "the output head on the residual stream",
}


def findings(bad: Sequence[tuple[Judgement, Named]]) -> tuple[Finding, ...]:
    """One finding for all places of one interval with one explanation, in order of execution."""
    groups: dict[tuple[str, str, str], list[tuple[Judgement, Named]]] = {}
    for j, named in sorted(bad, key=lambda pair: (pair[0].step, pair[0].index)):
        assert j.cause is not None
        groups.setdefault((j.cause, named.name, named.how), []).append((j, named))
    return tuple(_finding(cause, name, places) for (cause, name, _), places in groups.items())


def _finding(cause: str, name: str, places: list[tuple[Judgement, Named]]) -> Finding:
    first, why = places[0][0], places[0][1].why
    evidence = [f"the interval is {name}", _figures(first), *([why] if why else [])]
    layers = list(dict.fromkeys(j.layer for j, _ in places))[1:]
    if layers:
        named = ", ".join(layers[:MOST_NAMED]) + (", ..." if len(layers) > MOST_NAMED else "")
        evidence.append(f"so it is before {len(layers)} more linears: {named}")
    elif len(places) > 1:
        evidence.append(f"so it is in {len(places) - 1} more steps")
    return Finding(cause, CERTAIN if why else UNNAMED, tuple(evidence), first.layer, why)


def _figures(j: Judgement) -> str:
    at = f" in step {j.step}" if j.step else ""
    ends = f"the input of {j.layer}" if j.path != "lm_head" else "the first token's logits"
    what = WHAT.get(j.path, "what is computed there")
    if j.nonfinite:
        row, column = j.first_index or (0, 0)
        lost = f"{j.nonfinite} values of {ends} are infinite or NaN{at}, the first at [{row}, {column}]"
        if j.cause == "result-overflow":
            return f"{lost}: the exact result, up to {number(j.exact_absmax)}, is beyond the dtype"
        return f"{lost}, though {what} is at most {number(j.exact_absmax)} and everything before it finite"
    error = "large" if j.local_l2_rel is None else f"{j.local_l2_rel:.2g}"
    floor = "-" if j.noise_floor is None else f"{j.noise_floor:.2g}"
    return f"{ends} is {error} off {what}{at}, where rounding explains {floor} (relative l2)"
