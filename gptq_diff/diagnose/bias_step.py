"""What was added to a product in place of its bias: nothing, twice of it, another linear's, or some other columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.bias_step import BiasStep, bias_step
from gptq_diff.compare.figures import FACTOR
from gptq_diff.records import Finding

if TYPE_CHECKING:
    from gptq_diff.checkpoint.reader import Checkpoint
    from gptq_diff.compare.judge import CapturedCall

MOST_COLUMNS = 3
"""Wrong columns named in the evidence."""


def explain_bias(layer: str, call: CapturedCall, judge: Checkpoint) -> Finding:
    """The finding on a bias step that is not product plus bias; the checkpoint's other biases are tried too."""
    own_N = judge.packed(layer).bias
    step = bias_step(call, own_N)
    said = _whole(step) or _other_tensor(step, layer, judge) or _columns(step)
    evidence = (
        "the product is as its kernel's rounding explains",
        f"product plus the checkpoint's bias passes the threshold {step.share(step.exact_N):.3g} times", said,
    )  # fmt: skip
    return Finding("bias", 1.0, evidence, layer, said)


def _whole(step: BiasStep) -> str:
    for said, factor in (("missing", 0.0), ("added twice", 2.0), ("subtracted", -1.0)):
        if step.share(step.product_N + factor * step.bias_N) <= 1.0:
            return f"the bias is {said}"
    return ""


def _other_tensor(step: BiasStep, layer: str, judge: Checkpoint) -> str:
    for spec in judge.layers:
        if spec.has_bias and spec.out_features == len(step.y_N) and spec.name != layer:
            other_N = judge.packed(spec.name).bias
            if other_N is not None and step.share(step.product_N + other_N.to(torch.float16).double()) <= 1.0:
                return f"the bias of {spec.name} is added in its place"
    return ""


def _columns(step: BiasStep) -> str:
    """How many columns are wrong, what was added there, and whether it is the bias missing or doubled in them."""
    off_N = (step.y_N - step.exact_N).abs() / step.variance_N.clamp_min(1e-300).sqrt()
    wrong = torch.nonzero(step.known_N & ~(off_N <= 2 * FACTOR)).flatten()
    wrong = wrong[torch.argsort(off_N[wrong], descending=True)]
    if len(wrong) == 0:
        return "more differs than rounding explains, no column by itself"
    added_N = step.y_N - step.product_N
    told = ", ".join(
        f"{float(added_N[c]):.3g} at column {int(c)} (the checkpoint has {float(step.bias_N[c]):.3g})"
        for c in wrong[:MOST_COLUMNS]
    )
    kind = ""
    for said, factor in (("missing", 0.0), ("added twice", 2.0)):
        mixed_N = step.exact_N.clone()
        mixed_N[wrong] = (step.product_N + factor * step.bias_N)[wrong]
        if step.share(mixed_N) <= 1.0:
            kind = f"the bias is {said} in {len(wrong)} of {len(off_N)} columns: "
            break
    return f"{kind or f'{len(wrong)} of {len(off_N)} columns have another bias: '}{told}"
