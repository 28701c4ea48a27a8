"""`reduce`: the failing linear call of a finished run, shrunk to the smallest that still fails, as a script."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

import torch

from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.errors import CannotJudge, NothingFound
from gptq_diff.reduce.call import call_of, differs
from gptq_diff.reduce.record import FOLDER, Reduced, write_reduced
from gptq_diff.reduce.script import family_of, script
from gptq_diff.reduce.shrink import Pair, shrink
from gptq_diff.reduce.trial import Fault, Trial
from gptq_diff.session.opened import open_alone
from gptq_diff.session.reduce_choice import Failing, captured_call, choose
from gptq_diff.session.reduce_kernel import How, Tried, kernel_for
from gptq_diff.session.reduce_story import reduced_of, story_of

if TYPE_CHECKING:
    from gptq_diff.compare.judge import CapturedCall


MOST_BYTES = 1_000_000
"""Of the file beside a script; hardly ever reached, and said where it is."""


@dataclass(frozen=True)
class Wanted:
    """What is to be reduced, and how.

    backend (with @PYTHON, if not the default one), prompt, layer: None for the run's verdict's. out: folder, None for
    RUN/reduced. model, reference_model: where the checkpoints are, if they have moved. simulate: no live kernel.
    device: --device. timeout: seconds without an answer of a live kernel.
    """

    backend: str | None = None
    prompt: str | None = None
    layer: str | None = None
    out: Path | None = None
    model: str | None = None
    reference_model: str | None = None
    simulate: bool = False
    device: str = ""
    timeout: float | None = 600.0


def reduce_run(root: Path, wanted: Wanted | None = None, say: Callable[[str], None] = lambda _: None) -> Reduced:
    """Shrink the first bad call of a finished run and write RUN/reduced; what lay there is replaced.

    NothingFound where there is nothing to reduce (a healthy run, a fault that is no linear's), with the reason;
    CannotJudge where tensors, the checkpoint or a kernel that could show the fault are not here.
    """
    wanted = wanted or Wanted()
    with open_alone(root, wanted.model, wanted.reference_model) as opened:
        run, record = opened.run, opened.record
        failing = choose(run, record, wanted.backend, wanted.prompt, wanted.layer)
        loaded, judge = opened.checkpoints()
        captured = captured_call(run, failing)
        other = differs(loaded.packed(failing.judgement.layer), judge.packed(failing.judgement.layer))
        how = How(wanted.simulate, wanted.device, wanted.timeout, run.log("reduce"))
        with kernel_for(failing, record.model.bits, how, say) as tried:
            found, pair, text = _reduced(failing, captured, loaded, tried, other)
        data = text[1]
        if data is not None and sum(t.nbytes for t in data.values()) > MOST_BYTES:
            say(f"{found.data} is larger than {MOST_BYTES:,} bytes: the fault takes so many inputs to show")
        write_reduced(wanted.out or run.root / FOLDER, found, text[0], _tensors(pair), data)
    return found


def _reduced(
    failing: Failing, captured: CapturedCall, loaded: Checkpoint, tried: Tried, other: bool
) -> tuple[Reduced, Pair, tuple[str, dict[str, torch.Tensor] | None]]:
    """The record, the calls, and the script with its data. other: the judge's weights of this linear are others."""
    j = failing.judgement
    family = family_of(j.path)
    if family is None:
        raise CannotJudge(f"no script is known that calls the kernel of the path {j.path}: {j.layer} is not reduced")
    call = call_of(captured.x_MK, loaded.packed(j.layer), captured.first)
    finite_M = torch.isfinite(call.x_MK).all(dim=1)
    trial = Trial(tried.multiply, Fault.of(j))
    pair = shrink(call.rows(torch.nonzero(finite_M).flatten().tolist()), captured.y_MN[finite_M], trial, tried.columns)
    if pair is None:
        raise _not_shown(failing, tried, other)
    found = reduced_of(failing, captured, loaded.packed(j.layer).spec.out_features, pair, trial, tried)
    text, tensors = script(pair, story_of(found, pair, trial, family))
    return found, pair, (text, None if tensors is None else dict(tensors))


def _not_shown(failing: Failing, tried: Tried, other: bool) -> CannotJudge | NothingFound:
    j = failing.judgement
    if other:
        return NothingFound(
            f"nothing to reduce: {tried.name} multiplies the weights of {j.layer} that it was given rightly; "
            "they are others than the reference's"
        )
    if tried.live:
        return NothingFound(
            f"{j.layer} by itself gives the right answer on {tried.name}: the fault is not the product's"
        )
    return CannotJudge(
        f"the simulation of {j.path} does not show the fault of {j.layer} on {failing.backend}",
        "reduce it where the engine and its GPU are, or name another interpreter: --backend NAME@PYTHON",
    )


def _tensors(pair: Pair) -> dict[str, torch.Tensor]:
    """calls.safetensors: the numbers of both calls, unpacked."""
    call = pair.failing
    return {
        "failing": call.x_MK.contiguous(), "passing": pair.passing.x_MK.contiguous(),
        "codes": call.codes_KN.contiguous(), "zeros": call.zeros_GN.contiguous(), "scales": call.scales_GN.contiguous(),
    }  # fmt: skip


__all__ = ["Reduced", "Wanted", "reduce_run"]
