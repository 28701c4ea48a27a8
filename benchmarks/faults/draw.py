"""What is drawn for one number of one seed: the model, the prompt, the kernel, and the fault, if it has one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from benchmarks.faults.models import TINY, ModelChoice, draw_model, draw_prompt
from gptq_diff.faults.catalogue import ALONE_ONLY, IN_ONE_LAYER, KINDS
from gptq_diff.faults.fault import Fault, Floats, Model, Site, Unplantable
from gptq_diff.faults.linear import Array, Linear
from gptq_diff.models.options import BuildOptions

PAIRED_LAYER, PAIRED_MODEL = "two in one linear", "two linears"
CYCLE = (*KINDS, PAIRED_LAYER, PAIRED_MODEL, PAIRED_LAYER, PAIRED_MODEL)
"""Every kind comes once in so many faults, in an order that the seed shuffles; pairs four times."""
ATTEMPTS = 500
PARTS = ("qweight", "qzeros", "scales", "g_idx", "bias")
PATHS = {"fp16": "fp16", "sim-exllama": "exllama-fast", "sim-reconstruct": "exllama-reconstruct"}
FAST_ROWS = {2: 50, 3: 50, 4: 50, 8: 24}


class Place(Protocol):
    """Where runs are made: in this process, or on a real engine. small: the share of SmolLM2 among the models."""

    name: str
    small: float

    def usable(self, options: BuildOptions) -> bool:
        """Whether its kernels take such a model."""

    def kernels(self, choice: ModelChoice) -> tuple[str, ...]:
        """Those that it can run that model on."""

    def path(self, kernel: str, bits: int, rows: int) -> str:
        """The arithmetic that a call of so many rows takes."""

    def takes(self, fault: Fault) -> bool:
        """Whether it can be planted there as it was drawn."""

    def ways(self, kind: str) -> tuple[str, ...]:
        """ "bytes", "engine": how such a fault can be planted there."""

    def stored(self, choice: ModelChoice) -> Model:
        """The sound checkpoint."""

    def inputs(self, choice: ModelChoice, prompt: tuple[int, ...], layer: str) -> Floats:
        """The healthy input of a linear in the prefill."""


@dataclass(frozen=True)
class Run:
    """How a model is asked, healthy or not.

    threads: of torch; 0 leaves it. steps: forward passes, the prefill included.
    forced: the reference's ids are fed (--teacher-force).
    extra: what else is unusual about a healthy run: see healthy.py.
    """

    place: str
    model: ModelChoice
    kernel: str
    dtype: str
    threads: int
    prompt: tuple[int, ...]
    steps: int
    forced: bool
    repeats: int
    extra: str = ""

    @property
    def calls(self) -> tuple[int, ...]:
        """Rows of every call of a linear."""
        return (len(self.prompt), *[1] * (self.steps - 1))


@dataclass(frozen=True)
class Drawn:
    """One run with what is planted in it; `faults` is empty for a healthy one."""

    run: Run
    way: str
    drawn_as: str
    faults: tuple[Fault, ...]


class Overlay:
    """A sound model with one fault in it, as the next fault sees it."""

    def __init__(self, model: Model, fault: Fault) -> None:
        self._model = model
        self._tensors: Mapping[str, Array] = {**fault.prepared, **fault.changed}
        self._misread = fault.misread
        self.settings: Mapping[str, Any] = {**model.settings, **fault.settings}
        self._offset = {"gptq": 1, "gptq_v2": 0}.get(str(fault.settings.get("checkpoint_format")))

    @property
    def linears(self) -> tuple[str, ...]:
        return self._model.linears

    def tensor(self, name: str) -> Array:
        return self._tensors[name] if name in self._tensors else self._model.tensor(name)

    def linear(self, name: str) -> Linear:
        if name in self._misread:
            return self._misread[name]  # made of what the fault prepared: that must not come on top again
        linear = self._model.linear(name)
        if self._offset is not None:
            linear = replace(linear, offset=self._offset)
        parts = {part: self._tensors.get(f"{name}.{part}") for part in PARTS}
        return replace(linear, **{part: array for part, array in parts.items() if array is not None})


def plantable(place: Place) -> list[str]:
    """The kinds that can be planted there, in some model."""
    options = [o for o in TINY.values() if place.usable(o)]
    return [k for k in KINDS if place.ways(k) and any(WANTED.get(k, lambda _: True)(o) for o in options)]


def draw_fault(place: Place, seed: int, number: int, order: int) -> Drawn:
    """Fault `number` of that seed, the same every time; order: how many were drawn for this place before it."""
    rng = np.random.default_rng([seed, number, 1])
    alone = plantable(place)
    cycle = [drawn_as for drawn_as in CYCLE if drawn_as in alone or drawn_as not in KINDS]
    turn = np.random.default_rng([seed, order // len(cycle), 2]).permutation(len(cycle))
    drawn_as = cycle[int(turn[order % len(cycle)])]
    why: Unplantable | None = None
    for _ in range(ATTEMPTS):
        kinds = _kinds(rng, drawn_as, alone)
        try:
            return _attempt(place, rng, drawn_as, kinds)
        except Unplantable as e:
            why = e
    raise Unplantable(f"{drawn_as} found no place in {ATTEMPTS} attempts on {place.name}: {why}")


def _kinds(rng: np.random.Generator, drawn_as: str, known: Sequence[str]) -> tuple[str, ...]:
    if drawn_as == PAIRED_LAYER:
        pairs = [pair for pair in IN_ONE_LAYER if set(pair) <= set(known)]
        return pairs[int(rng.integers(len(pairs)))]
    if drawn_as == PAIRED_MODEL:
        free = [kind for kind in known if kind not in ALONE_ONLY]
        return (str(rng.choice(free)), str(rng.choice(free)))
    return (drawn_as,)


WANTED: dict[str, Callable[[BuildOptions], bool]] = {
    "accumulator-overflow": lambda o: o.bits != 8 and o.group_size != -1,
    "ambiguous-zero": lambda o: o.sym is False and o.checkpoint_format != "gptq_v2",
    "g-idx-ignored": lambda o: bool(o.desc_act) and o.group_size != -1,
    "scale-group": lambda o: o.group_size != -1,
    "all-reduce": lambda o: not o.desc_act,
}
"""What a model must be for a kind to make sense; attempts sort out the rest."""
LEAVES = {
    "accumulator-overflow": ("down_proj",),
    "bias": ("q_proj", "k_proj", "v_proj"),
    "all-reduce": ("o_proj", "down_proj"),
}


def _attempt(place: Place, rng: np.random.Generator, drawn_as: str, kinds: tuple[str, ...]) -> Drawn:
    def usable(options: BuildOptions) -> bool:
        return place.usable(options) and all(WANTED.get(kind, lambda _: True)(options) for kind in kinds)

    choice = draw_model(rng, usable, place.small)
    ways = [(str(rng.choice(place.ways(kind))), kind) for kind in kinds]
    ways.sort(key=lambda way: way[0] != "bytes")  # what an engine misreads is drawn from bytes as they will be
    chosen, kinds = [way for way, _ in ways], tuple(kind for _, kind in ways)
    kernels = place.kernels(choice)
    kernel = str(rng.choice(kernels))
    run = draw_run(place, rng, choice, kernel, decoding="row-path" in kinds)
    if "race-or-uninitialised" in kinds:
        run = replace(run, repeats=2)  # one call cannot show that another would differ
    faults: list[Fault] = []
    sites: list[tuple[Site, int]] = []
    model = place.stored(choice)
    layers = _layers(rng, model, drawn_as, kinds)
    for kind, layer, way in zip(kinds, layers, chosen):
        size = float(rng.random())
        path = place.path(kernel, model.settings["bits"], len(run.prompt))
        own_seed = int(rng.integers(2**62))
        site = Site(
            model=model, layer=layer, size=size, way=way, path=path, calls=run.calls,
            inputs=lambda name: place.inputs(choice, run.prompt, name), rng=np.random.default_rng(own_seed),
        )  # fmt: skip
        sites.append((site, own_seed))
        faults.append(KINDS[kind](site))
        if not place.takes(faults[-1]):
            raise Unplantable("it would have to be planted in the engine's own code")
        model = Overlay(model, faults[-1])
    _compatible(faults)
    if drawn_as == PAIRED_MODEL and set(faults[0].layers) & set(faults[1].layers):
        raise Unplantable("both are in one linear")
    if drawn_as == PAIRED_LAYER and undone(place.stored(choice), faults, *sites[1]):
        raise Unplantable("the second would be all that is left of both")
    return Drawn(run, " and ".join(dict.fromkeys(chosen)), drawn_as, tuple(faults))


def undone(sound: Model, faults: Sequence[Fault], second: Site, seed: int) -> bool:
    """Whether nothing is left of the first of two faults in the weight of a linear, once the second is planted too."""
    first = faults[0]
    if not (first.changed or first.misread):
        return False
    base = Overlay(sound, Fault("", "", (), prepared=first.prepared))
    try:
        alone = KINDS[faults[1].kind](replace(second, model=base, rng=np.random.default_rng(seed)))
    except Unplantable:
        return False  # it needs what the first one did
    both, one = (
        Overlay(model, fault).linear(second.layer) for model, fault in ((second.model, faults[1]), (base, alone))
    )
    return np.array_equal(both.weight(), one.weight(), equal_nan=True)


def _layers(rng: np.random.Generator, model: Model, drawn_as: str, kinds: tuple[str, ...]) -> list[str]:
    """A linear for each kind: one and the same, or two."""

    def fitting(kind: str) -> list[str]:
        return [n for n in model.linears if n.rpartition(".")[2] in LEAVES.get(kind, (n.rpartition(".")[2],))]

    first = str(rng.choice(fitting(kinds[0])))
    if drawn_as == PAIRED_LAYER:
        return [first, first]
    return [first, *(str(rng.choice(fitting(kind))) for kind in kinds[1:])]


def _compatible(faults: list[Fault]) -> None:
    """A second fault must not undo what the first one needs."""
    if len(faults) < 2:
        return
    if any(f.settings for f in faults):
        raise Unplantable("another format for the whole checkpoint leaves no room for a second fault")
    if faults[0].layers and set(faults[0].layers) & set(faults[1].layers) and faults[0].layers != faults[1].layers:
        raise Unplantable("they share one of several linears")
    if len({f.kind for f in faults}) == 1 and faults[0].layers == faults[1].layers:
        raise Unplantable("the same fault twice in one linear")
    for first, second in (faults, faults[::-1]):
        if set(first.prepared) & (set(second.prepared) | set(second.changed)):
            raise Unplantable("both change the same tensor of the sound checkpoint")


def draw_run(
    place: Place, rng: np.random.Generator, choice: ModelChoice, kernel: str, *, decoding: bool = False
) -> Run:
    """The circumstances: prompt, skeleton, threads, steps."""
    prompt = draw_prompt(rng, choice)
    steps = int(rng.choice([1, 3])) if choice.tiny else 1
    steps = int(rng.choice([2, 4])) if decoding else steps
    forced = steps > 1 and bool(decoding or rng.random() < 0.5)
    dtype = "float32" if place.name == "process" and rng.random() < 0.15 else "float16"
    return Run(place.name, choice, kernel, dtype, int(rng.integers(1, 3)), prompt, steps, forced, 1)
