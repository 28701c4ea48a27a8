"""A fault planted in the transformers engine, for checks that the guard sees (gptq_diff.faults)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import Checkpoint
from gptq_diff.engines.base import Generation
from gptq_diff.errors import BackendError
from gptq_diff.faults.catalogue import KINDS
from gptq_diff.faults.checkpoint import Stored, one_file
from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable
from gptq_diff.faults.kernel import PlantedKernel
from gptq_diff.jobs import Job, Plant
from gptq_diff.kernels.base import Kernel
from gptq_diff.kernels.catalogue import make_kernel


class Plantable(Protocol):
    """An engine whose kernel can be exchanged and whose model can be patched."""

    @property
    def kernel(self) -> Kernel:
        """The present kernel."""

    @property
    def checkpoint(self) -> Checkpoint:
        """What is loaded."""

    @property
    def model(self) -> nn.Module:
        """What runs it."""

    def install(self, kernel: Kernel) -> None:
        """Switch every quantised linear to that kernel."""

    def generate(
        self, token_ids: tuple[int, ...], *, max_new_tokens: int, forced: tuple[int, ...] | None, tap: Tap | None
    ) -> Generation:
        """One prompt."""


@contextlib.contextmanager
def planted_in(engine: Plantable, job: Job, plant: Plant) -> Iterator[None]:
    """That fault in the engine's kernel or model until the context ends; BackendError where it has no place there."""
    sound = engine.kernel
    fault = fault_in(engine, job, plant)
    with contextlib.ExitStack() as undo:
        if fault.misread or fault.spoil:
            kernel: Any = PlantedKernel(sound, lambda: make_kernel(sound.name), [fault])
            undo.callback(engine.install, sound)
            engine.install(kernel)
        if fault.patch is not None:
            undo.enter_context(fault.patch(engine.model))
        yield


def fault_in(engine: Plantable, job: Job, plant: Plant) -> Fault:
    """What is planted: the same for the same checkpoint, prompt and seed."""
    path = engine.checkpoint.path
    if not one_file(path):
        raise BackendError(f"a fault can be planted in a checkpoint of one file, and {path} is none")
    rng = np.random.default_rng(plant.seed)
    site = Site(
        model=Stored(path), layer=plant.layer, size=plant.size, way="engine", path=engine.kernel.name,
        rng=rng, inputs=lambda name: healthy_input(engine, job, name),
        calls=(len(job.token_ids), *[1] * (job.max_new_tokens - 1)),
    )  # fmt: skip
    try:
        fault = KINDS[plant.kind](site)
    except Unplantable as e:
        raise BackendError(f"{plant.kind} has no place at {plant.layer}: {e}", "choose another layer or size") from e
    rng.bytes(8 * (job.repeat - 1))  # what is drawn at every call is another thing in another repeat
    return fault


def healthy_input(engine: Plantable, job: Job, name: str) -> Floats:
    """[M, K]: what that linear is given in the prefill, by the sound kernel."""
    seen: list[torch.Tensor] = []
    module = engine.model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach().clone()))
    try:
        engine.generate(job.token_ids, max_new_tokens=1, forced=None, tap=None)
    finally:
        handle.remove()
    x: Floats = seen[0].reshape(-1, seen[0].shape[-1]).float().cpu().numpy()
    return x
