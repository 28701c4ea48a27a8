"""The kernel that `reduce` tries calls on: the engine's own where it runs, else a simulation of the path that ran."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Callable

from gptq_diff.errors import BackendError, CannotJudge, UsageError
from gptq_diff.kernels.fastpath import CHAINS
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.presets import BackendRequest, parse_backends, preset_named
from gptq_diff.reduce.narrowed import NarrowedSum
from gptq_diff.reduce.remote import Host, Remote, remote
from gptq_diff.reduce.trial import Multiply, simulated
from gptq_diff.session.live_subjects import SIMULATED
from gptq_diff.session.loads import cache_dir, worker_variables
from gptq_diff.session.prepare import prepare_backend
from gptq_diff.session.reduce_choice import Failing
from gptq_diff.stage import stage_package

if TYPE_CHECKING:
    from gptq_diff.kernels.base import Kernel

LIVE = {
    ("vllm", "exllama-fast"): "vllm-exllama-fast",
    ("vllm", "exllama-reconstruct"): "vllm-exllama-reconstruct",
    ("vllm", "marlin"): "vllm-marlin",
    ("gptqmodel", "exllama-fast"): "gptqmodel-exllamav2",
    ("auto_gptq", "exllama-fast"): "auto-gptq-exllamav2",
}
"""(engine, path) -> the kernel in gptq_diff.kernels.catalogue that multiplies one linear that way."""
SIMULATORS: dict[str, Callable[[], Kernel]] = {
    "exllama-fast": SimExllama,
    "exllama-reconstruct": SimReconstruct,
    "marlin": NarrowedSum,
}
COLUMNS = {"exllama": 8, "gptqmodel": 32, "marlin": 64}
"""N has to be a multiple: Marlin's smallest tile of columns, and what exllama v2's wrappers take."""


@dataclass(frozen=True)
class How:
    """simulate: no live kernel. device: --device. timeout: seconds a call. log: what a live kernel's process says."""

    simulate: bool
    device: str
    timeout: float | None
    log: Path


@dataclass(frozen=True)
class Tried:
    """name: of the kernel. columns: N stays a multiple of it. served: the engine's own, None for a simulation."""

    name: str
    multiply: Multiply
    columns: int
    served: Remote | None = None

    @property
    def live(self) -> bool:
        """It is the engine's own."""
        return self.served is not None

    @property
    def seen_on(self) -> dict[str, str]:
        """Versions and GPU of a live kernel."""
        return {} if self.served is None else self.served.seen_on


@contextlib.contextmanager
def kernel_for(failing: Failing, bits: int, how: How, say: Callable[[str], None]) -> Iterator[Tried]:
    """The live kernel, else the simulator; CannotJudge where the path has neither, or a named interpreter fails."""
    path = failing.judgement.path
    host = None if how.simulate else _host(failing, how, say)
    columns = _columns(failing, bits)
    with contextlib.ExitStack() as stack:
        if host is not None:
            try:
                served = stack.enter_context(remote(host))
            except BackendError as e:
                if failing.named is not None:
                    raise
                say(f"{host.kernel} does not run here ({e}): its simulation is tried instead")
            else:
                yield Tried(host.kernel, served, columns, served)
                return
        if path not in SIMULATORS:
            raise CannotJudge(f"no simulation is known for the path {path}, and its kernel is not here")
        yield Tried(SIMULATORS[path]().name, simulated(SIMULATORS[path]), columns)


def _columns(failing: Failing, bits: int) -> int:
    if failing.judgement.path == "marlin":
        return COLUMNS["marlin"]
    if failing.engine in ("gptqmodel", "auto_gptq"):
        return COLUMNS["gptqmodel"]
    return max(CHAINS[bits].columns, COLUMNS["exllama"])


def _host(failing: Failing, how: How, say: Callable[[str], None]) -> Host | None:
    """Where the live kernel would run; None where there is none, or not here."""
    kernel = LIVE.get((failing.engine, failing.judgement.path))
    if failing.engine == SIMULATED or kernel is None:
        return None
    request = BackendRequest(preset_named(failing.backend))
    if failing.named is not None:
        request = parse_backends(failing.named)[0]
    try:
        backend = prepare_backend(request)
    except UsageError as e:
        if request.python is not None:
            raise
        say(f"{e}: its simulation is tried instead")
        return None
    how.log.parent.mkdir(parents=True, exist_ok=True)
    return Host(
        Path(backend.python),
        kernel,
        stage_package(cache_dir()),
        how.log,
        worker_variables(backend.engine, how.device),
        how.timeout,
    )
