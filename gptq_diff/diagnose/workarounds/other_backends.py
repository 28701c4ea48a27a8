"""Another kernel or engine, as far as this very run has tried it."""

from __future__ import annotations

from collections.abc import Sequence

from gptq_diff.records import Result, Workaround

COSTS = {
    "exllama-reconstruct": "dequantises the weight for every call: a decode step then costs more memory traffic",
    "marlin": "Marlin takes in_features that are multiples of 128 (of 64 with smaller groups); with one group a column "
    "it has an overflow of its own",
    "machete": "Machete runs on Hopper GPUs alone",
    "fp16": "holds weights in float16, 16 bits for each code, or dequantises them for every call",
    "auto-gptq-torch": "dequantises the weight for every call",
    "gptqmodel-torch": "dequantises the weight for every call",
    "vllm-cpu": "computes on the CPU",
}
"""What taking such a path costs, by the path."""
SIMULATED = "is a simulation: it says what that path would give, and serves nobody"


def other_backends(failed: Result, results: Sequence[Result], reference: Result | None) -> list[Workaround]:
    """One workaround for every other backend that ran this prompt, the reference and what is unquantised left out.

    It works where every linear agrees and the tokens are the reference's.
    """
    found = []
    for other in results:
        same = other.prompt == failed.prompt and other.backend != failed.backend
        if not same or other.quantization_error is not None or (reference and other.backend == reference.backend):
            continue
        right = reference is not None and other.tokens == reference.tokens
        agrees = other.status == "agree" and not other.collapsed
        works = agrees and right
        found.append(Workaround.run(f"backend {other.backend}", _detail(other, agrees, right), works=works))
    return found


def _detail(other: Result, agrees: bool, right: bool) -> str:
    path = other.kernel.get("*", other.engine)
    said = "the reference's tokens" if right else "other tokens than the reference"
    if not agrees:
        bad = "" if other.first_bad is None else f" at {other.first_bad.layer}"
        return f"run here by {path}: {other.status}{bad}"
    cost = next((cost for name, cost in COSTS.items() if path.startswith(name)), "")
    cost = SIMULATED if other.backend.startswith("sim-") else cost
    return f"run here by {path}: all linears agree, {said}" + (f"; it {_lower(cost)}" if cost else "")


def _lower(text: str) -> str:
    return text if text.split(" ", 1)[0] in {"Marlin", "Machete"} else text[0].lower() + text[1:]
