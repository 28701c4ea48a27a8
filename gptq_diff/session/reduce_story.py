"""What the record and the script say of a reduced call."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from gptq_diff.compare.figures import FACTOR
from gptq_diff.reduce.call import Call
from gptq_diff.reduce.record import Reduced, Shown
from gptq_diff.reduce.script import DATA, RECONSTRUCT_ROWS, Story, in_script
from gptq_diff.reduce.titles import title_of

if TYPE_CHECKING:
    from gptq_diff.compare.judge import CapturedCall
    from gptq_diff.reduce.shrink import Pair
    from gptq_diff.reduce.trial import Trial
    from gptq_diff.session.reduce_choice import Failing
    from gptq_diff.session.reduce_kernel import Tried

LEAST_LIMIT = 0.01
"""Error, as a share of the products, from which a script calls a result wrong, at least: half rounds at 5e-4."""
MOST_SHOWN = 64


def reduced_of(
    failing: Failing, captured: CapturedCall, out_features: int, pair: Pair, trial: Trial, tried: Tried
) -> Reduced:
    """The record; both calls are made once more for it."""
    j, call = failing.judgement, pair.failing
    y_MN, _ = trial.outcome(call)
    at = worst_output(call, y_MN)
    passed_MN, _ = trial.outcome(pair.passing)
    return Reduced(
        failing.backend, failing.prompt, j.layer, j.step, j.path, j.kind, j.cause,
        (*captured.x_MK.shape, out_features), call.shape, call.bits, call.group_size,
        len(call.inputs), int((call.centred != 0).sum()), tried.name, tried.live, tried.seen_on, trial.made, at,
        shown(call, y_MN, at), shown(pair.passing, passed_MN, at), data="" if in_script(call) else DATA,
    )  # fmt: skip


def worst_output(call: Call, y_MN: torch.Tensor) -> tuple[int, int]:
    """[row, column] of the output that is farthest from the exact one; NaN and infinities are farthest."""
    gap_MN = (y_MN.double() - call.exact()).abs()
    gap_MN = torch.where(torch.isfinite(y_MN), gap_MN, torch.inf)
    row, column = divmod(int(gap_MN.argmax()), call.shape[2])
    return row, column


def shown(call: Call, y_MN: torch.Tensor, at: tuple[int, int]) -> Shown:
    """The call in figures."""
    inputs = tuple((m, k, float(call.x_MK[m, k])) for m, k in call.inputs[:MOST_SHOWN])
    return Shown(inputs, f"{float(y_MN[at]):.7g}", float(call.exact()[at]), int((~torch.isfinite(y_MN)).sum()))


def story_of(found: Reduced, pair: Pair, trial: Trial, family: str) -> Story:
    """What the script says; the limit lies between what the two calls give."""
    _, judgement = trial.outcome(pair.failing)
    limit = LEAST_LIMIT
    if found.kind == "diverged" and judgement.local_l2_rel:
        share = float(pair.failing.exact().norm() / pair.failing.products().norm().clamp_min(1e-300))
        limit = min(limit, share * max(judgement.local_l2_rel / 2, FACTOR * (judgement.noise_floor or 0.0)))
    rows = RECONSTRUCT_ROWS if found.path == "exllama-reconstruct" else found.shape[0]
    return Story(
        title_of(found.path, found.kind), seen(found), limit, family, rows, found.at, found.failing.output,
        found.passing.output,
    )  # fmt: skip


def seen(found: Reduced) -> str:
    """Where the fault has been seen in the reduced call."""
    if not found.live:
        return f"Predicted with a simulation ({found.kernel}), not yet seen on a GPU"
    gpu = found.seen_on.get("gpu", "a GPU")
    names = {"vllm": "vLLM", "gptqmodel": "GPTQModel", "auto_gptq": "auto_gptq", "torch": "torch"}
    engines = [f"{names[name]} {version}" for name, version in found.seen_on.items() if name in names]
    return f"Seen on {gpu} with {', '.join(engines)} ({found.kernel})"
