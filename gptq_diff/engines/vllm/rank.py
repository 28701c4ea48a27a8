"""What is done beside the model, in the process that holds it: the engine's own, or a tensor-parallel rank's."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from gptq_diff.capture.bias_step import BiasStep, bias_step
from gptq_diff.capture.cuda.kernel import looker_of
from gptq_diff.capture.numbering import Known
from gptq_diff.capture.stage import Site, Stage, site
from gptq_diff.capture.tap import Fused, Tap
from gptq_diff.capture.ways import fastest
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.engines.base import Generation
from gptq_diff.engines.device import gpu_peak
from gptq_diff.engines.vllm.kernels import WANTED, Choice, choose
from gptq_diff.engines.vllm.modules import GEMM, FusedLinear, fused_linears
from gptq_diff.engines.vllm.proof import Place, Proof, device_of
from gptq_diff.engines.vllm.reduced import Reduced, shared_out
from gptq_diff.engines.vllm.steps import Steps
from gptq_diff.engines.vllm.taps import BiasTap, Staged, Taps, Told
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.base import Product
from gptq_diff.kernels.vllm_gemm.op import vllm_ops
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT, PathGuard


class _Now(NamedTuple):
    """The prompt that is being watched."""

    steps: Steps
    tap: Tap


class Rank:
    """The quantised modules of one process, proved, with their taps and forced paths."""

    def __init__(self, model: nn.Module, checkpoint: Checkpoint, proof: Proof) -> None:
        self.model = model
        self._checkpoint = checkpoint
        self._proof = proof
        self._linears = fused_linears(model, checkpoint.layers, proof.ranks)
        _all_proved(self._linears, proof)
        self._choice = Choice()
        self._reduced: list[Reduced] = []
        self._tapped = frozenset[str]()
        self._stage, self._known = Stage(), Known()
        self._taps = Taps((), {}, self._told)
        self._now: _Now | None = None
        self._values_a_row = 0
        self._bias_steps: dict[str, tuple[BiasStep, ...]] = {}  # by module
        self._biases_known: tuple[BiasStep, ...] | None = None  # all of those; None before any prompt
        self._bias_tap = BiasTap(self._bias_seen)
        self._guard: PathGuard | None = None

    def use_kernel(self, name: str) -> None:
        """Check every module's kernel against the mode, and prepare to force its path."""
        self._choice = choose(name, self._linears)
        self._reduced = shared_out(self._choice.judged, self._stage) if self._proof.ranks > 1 else []
        self._tapped = frozenset(part.spec.name for linear in self._choice.judged for part in linear.parts)
        self._bias_steps, self._biases_known = {}, None
        self._bias_tap = BiasTap(self._bias_seen)
        of_bias = self._bias_tap if self._proof.ranks == 1 else None  # ranks add shares of one, or leave it to one rank
        self._taps = Taps(self._choice.judged, self._proof.biases, self._told, of_bias)
        self._values_a_row = sum(
            linear.parts[0].rows + sum(part.last - part.first for part in linear.parts)
            for linear in self._choice.judged
        )
        device = device_of(self._choice.judged)
        self._stage.way, self._stage.looker = fastest(device), looker_of(device)
        gemm = [linear for linear in self._choice.judged if linear.path == GEMM]
        if gemm and self._guard is None:
            self._guard = PathGuard(vllm_ops(), str(next(gemm[0].module.parameters()).device))
        if self._guard is not None:
            self._guard.force = name if WANTED[name] == GEMM and name in (FAST, RECONSTRUCT) else None
            for bits in sorted({part.spec.bits for linear in gemm for part in linear.parts}):
                self._guard.boundary(bits)

    @property
    def skipped(self) -> dict[str, str]:
        """Layer -> why it is not judged."""
        held = {part.spec.name for linear in self._linears for part in linear.parts}
        absent = {s.name: "vLLM has no quantised module for it" for s in self._checkpoint.layers if s.name not in held}
        return {**absent, **self._choice.skipped}

    @property
    def tapped(self) -> frozenset[str]:
        """Every linear of a judged module."""
        return self._tapped

    @property
    def places(self) -> dict[str, Place]:
        """Linear -> the part of its W that this process holds."""
        return dict(self._proof.places)

    @property
    def reduced(self) -> list[Reduced]:
        """The judged modules whose outputs are summed over the ranks."""
        return self._reduced

    @property
    def boundaries(self) -> dict[int, int]:
        """Bits -> rows up to which gptq_gemm takes its fast path, as far as that was asked."""
        return self._guard.boundaries if self._guard is not None else {}

    @contextlib.contextmanager
    def followed(self, steps: Steps) -> Iterator[None]:
        """One prompt: taps where the steps have one, the path guard, and the steps themselves; undone in any case."""
        with contextlib.ExitStack() as undo:
            undo.enter_context(collector_off())
            if self._guard is not None:
                undo.enter_context(self._guard.installed())
            if steps.tap is not None:
                self._begin(steps, steps.tap)
                undo.enter_context(self._taps.in_place())
                for reduced in self.reduced:
                    undo.enter_context(reduced.watched(steps.tap))
            undo.enter_context(steps.followed(self.model))
            yield

    def _begin(self, steps: Steps, tap: Tap) -> None:
        """One prompt's steps and tap are those that calls are told to.

        A bias does not depend on the prompt: the kernel is asked with the first prompt whose row is finite, and what it
        gave then stands for the others.
        """
        self._now = _Now(steps, tap)
        steps.values_a_row = self._values_a_row
        tap.stage_in(self._stage, self._known)
        bias_tap = self._bias_tap
        if bias_tap.looked or self._biases_known is None:
            bias_tap.looked.clear()
            bias_tap.due.update(linear.name for linear in self._choice.judged if linear.name not in self._bias_steps)
            self._biases_known = tuple(step for known in self._bias_steps.values() for step in known)
        tap.record_bias(*self._biases_known)

    def _bias_seen(self, linear: FusedLinear, product_RN: torch.Tensor, with_bias_1N: torch.Tensor) -> None:
        if self._guard is not None:
            self._guard.taken()  # these calls were not the engine's own
        found = tuple(
            bias_step(part.spec.name, product_RN[:, part.first : part.last], with_bias_1N[:, part.first : part.last])
            for part in linear.parts
            if part.spec.has_bias
        )
        if bool(torch.isfinite(product_RN).all()):
            self._bias_steps[linear.name] = found
        assert self._now is not None
        self._now.tap.record_bias(*found)

    def _told(self, linear: FusedLinear) -> Told:
        """What is done with one module's calls."""
        name, parts, path = linear.name, fused(linear), linear.path

        def path_of_call() -> str:
            return self._taken(linear) if path is None or path == GEMM else path

        def record(x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            now = self._now
            assert now is not None
            now.steps.check_rows(name, x_MK.shape[0])
            now.tap.record_fused(parts, x_MK, y_MN, path_of_call())

        sites: dict[str, Site] = {}

        def site_of_call() -> Site:
            ran = self._taken(linear)
            if ran not in sites:
                sites[ran] = site(parts, ran)
            return sites[ran]

        if path is None or path == GEMM:
            return Told(record, Staged(self._stage, site(parts, ""), site_of_call))
        return Told(record, Staged(self._stage, site(parts, path)))

    def _taken(self, linear: FusedLinear) -> str:
        """The path of the call of gptq_gemm that this module has just made."""
        path = self._guard.taken() if self._guard is not None else None
        if path is None:
            raise CaptureError(f"{linear.name} ran without a call of gptq_gemm", "its kernel is not understood")
        return path

    def multiply(self, layer: str, x_MK: torch.Tensor) -> Product:
        """The kernel call of the module that holds that linear, without a bias: the linear's own columns of y."""
        held = ((linear, part) for linear in self._choice.judged for part in linear.parts if part.spec.name == layer)
        linear, part = next(held, (None, None))
        if linear is None or part is None:
            raise BackendError(f"vLLM does not run {layer} on a kernel that is judged", "name another linear")
        module: Any = linear.module
        x_MK = x_MK.to(device=module.qweight.device, dtype=torch.float16)
        with contextlib.ExitStack() as undo:
            undo.enter_context(torch.inference_mode())
            if self._guard is not None:
                undo.enter_context(self._guard.installed())
            y_MN = linear.method.apply(linear.module, x_MK, None)
        path = linear.path
        taken = self._taken(linear) if path is None or path == GEMM else path
        return Product(y_MN[:, part.first : part.last].contiguous(), taken)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    """Python's cyclic collector does not run inside: what a tap makes would set it off in the middle of a step.

    One pass over all that an engine holds takes as long as a prefill.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def fused(linear: FusedLinear) -> Fused:
    """A module's linears as the tap wants them; `modules.split` laid their columns side by side."""
    return Fused(tuple(part.spec.name for part in linear.parts), tuple(part.last - part.first for part in linear.parts))


def _all_proved(linears: list[FusedLinear], proof: Proof) -> None:
    """Without a proof of the columns, a fused module's parts cannot be told apart."""
    for linear in linears:
        for part in linear.parts:
            if part.spec.name not in proof.places:
                raise BackendError(
                    f"it could not be proved which columns of vLLM's {linear.name} are {part.spec.name}",
                    "this release loads weights in a way that is not understood",
                )


class OneProcess(Rank):
    """The whole model in the engine's own process."""

    def gpu_peak(self) -> int | None:
        """The most bytes of this process's tensors on GPUs since the last call; None where it uses none."""
        return gpu_peak()

    @contextlib.contextmanager
    def watching(
        self, rows: int, forced: tuple[int, ...] | None, tap: Tap | None, *, caches: bool
    ) -> Iterator[Watched]:
        """One prompt of that many tokens; what it gave is there once the context is left. caches: as in Steps."""
        steps = Steps(rows, forced, tap, caches=caches)
        with self.followed(steps):
            yield Watched(steps)


@dataclass(frozen=True)
class Watched:
    """The steps of one prompt."""

    steps: Steps

    def generation(self) -> Generation:
        """What they gave; CaptureError when there was none."""
        steps = self.steps
        if steps.first_logits_V is None:
            raise CaptureError("vLLM computed no logits for the prompt", "this release is not understood")
        return Generation(
            tuple(steps.tokens), tuple(steps.finite), steps.first_logits_V, len(steps.tokens), steps.cached_rows
        )


def facts_of(rank: Rank) -> dict[str, Any]:
    """What a rank tells the engine after `use_kernel`, as plain values."""
    return {
        "skipped": rank.skipped,
        "tapped": sorted(rank.tapped),
        "places": {name: (place.row, place.column) for name, place in rank.places.items()},
        "reduced": [reduced.name for reduced in rank.reduced],
        "boundaries": rank.boundaries,
    }
