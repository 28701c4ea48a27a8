"""A case's fault: what it changes in the checkpoint's bytes, and what a worker is told to plant in its kernel."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gptq_diff.cases.case import Case, CaseFault
from gptq_diff.cases.checkpoints import healthy_inputs
from gptq_diff.errors import UsageError
from gptq_diff.faults.catalogue import PREPARES, planter
from gptq_diff.faults.checkpoint import Stored, copy_of, one_file
from gptq_diff.faults.fault import Fault, Floats, Site, Unplantable
from gptq_diff.jobs import Plant
from gptq_diff.session.prepare import PromptSource

PATHS = {
    "sim-exllama": "exllama-fast", "sim-gptq": "exllama-fast", "vllm-exllama": "exllama-fast",
    "vllm-gptq": "exllama-fast", "sim-reconstruct": "exllama-reconstruct", "vllm-reconstruct": "exllama-reconstruct",
}  # fmt: skip
"""Backend -> the arithmetic whose weakness a fault of the model's own aims at."""


@dataclass(frozen=True)
class Planted:
    """loaded: what backends load. sound: what the reference and the judge read. plant: for workers. words: what it is.

    layers: the linears whose products it changes; empty for a fault between linears.
    """

    loaded: Path
    sound: Path
    plant: Plant | None = None
    words: str = ""
    layers: tuple[str, ...] = ()


def plant_fault(case: Case, sound: Path, source: PromptSource, place: Path) -> Planted:
    """Copies below `place` with the fault in them, or the sound checkpoint and what to plant in a kernel.

    UsageError for a fault that has no place there.
    """
    asked = case.fault
    if asked is None:
        return Planted(sound, sound)
    plant = None
    if asked.where == "kernel":
        plant = Plant(asked.kind, asked.layer, asked.size, asked.seed)
        if asked.kind not in PREPARES:
            return Planted(sound, sound, plant, f"{asked.kind} in the kernel at {asked.layer}, seed {asked.seed}")
    fault = drawn(case, asked, sound, source)
    for name in ("sound", "damaged"):
        shutil.rmtree(place / name, ignore_errors=True)
    base = copy_of(Stored(sound), fault.prepared, {}, place / "sound", whole=True) if fault.prepared else sound
    loaded = base
    if plant is None and (fault.changed or fault.settings):
        loaded = copy_of(Stored(base), fault.changed, fault.settings, place / "damaged", whole=True)
    return Planted(loaded, base, plant, f"{asked.kind} at {asked.layer}: {fault.what}", fault.layers)


def drawn(case: Case, asked: CaseFault, sound: Path, source: PromptSource) -> Fault:
    """What is planted there: the same for the same checkpoint, prompts and seed."""
    if not one_file(sound):
        raise UsageError(f"{case.file}: a fault can be planted in a checkpoint of one file, and {sound} is none")
    model = Stored(sound)
    if asked.layer not in model.linears:
        raise UsageError(f"{case.file}: the model has no quantised linear {asked.layer}", "see gptq-diff model inspect")
    kept: dict[str, Floats] = {}

    def inputs(name: str) -> Floats:
        if name not in kept:
            with healthy_inputs(sound, source) as captured:
                kept[name] = captured(name).float().numpy().copy()
        return kept[name]

    path = next((PATHS[name] for name in case.backends if name in PATHS), "fp16")
    way = "bytes" if asked.where == "bytes" else "engine"
    site = Site(model, asked.layer, asked.size, way, path, np.random.default_rng(asked.seed), inputs)
    try:
        return planter(asked.kind, site.path)(site)
    except Unplantable as e:
        raise UsageError(f"{case.file}: {asked.kind} has no place at {asked.layer}: {e}",
                         "choose another layer, size or seed") from e  # fmt: skip
