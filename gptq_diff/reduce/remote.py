"""A live kernel in a process of its own, under its engine's interpreter: the side of who asks it (see served)."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

from gptq_diff.capture.store import save_tensors
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.errors import BackendError, CannotJudge
from gptq_diff.kernels.base import Product
from gptq_diff.processes import MARK, Family
from gptq_diff.reduce.served import ABOUT, PATH, REFUSED, SEEN_ON

START_SECONDS = 300.0
"""For importing an engine, and compiling a kernel at its first use."""
CLEAR_SECONDS = 10.0


@dataclass(frozen=True)
class Host:
    """Which interpreter serves which kernel. staged: for PYTHONPATH. timeout: seconds a call, None for no limit."""

    python: Path
    kernel: str
    staged: Path
    log: Path
    environment: Mapping[str, str]
    timeout: float | None


class Remote:
    """The kernel as gptq_diff.reduce.trial.Multiply. seen_on: versions and GPU, as its process tells them."""

    def __init__(self, host: Host, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._host = host
        self._folder = folder
        self._process = process
        self._calls = 0
        self.seen_on: dict[str, str] = {}
        self._read(START_SECONDS)

    def __call__(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        """One product; BackendError for what the kernel refuses, CannotJudge where its process has gone."""
        self._calls += 1
        tensors = {"x": x_MK, "qweight": linear.qweight, "qzeros": linear.qzeros, "scales": linear.scales}
        call = self._folder / f"call-{self._calls}.safetensors"
        save_tensors({k: t.contiguous() for k, t in tensors.items()}, call, {ABOUT: json.dumps(asdict(linear.spec))})
        return self._read(self._host.timeout)

    def _read(self, timeout: float | None) -> Product:
        product = self._folder / f"product-{self._calls}.safetensors"
        until = None if timeout is None else time.monotonic() + timeout
        while not product.exists():
            if self._process.poll() is not None and not product.exists():
                raise CannotJudge(f"the process of {self._host.kernel} ended", f"its log is {self._host.log}")
            if until is not None and time.monotonic() > until:
                raise CannotJudge(f"{self._host.kernel} gave no answer within {timeout:g} s")
            time.sleep(0.001)
        with safe_open(str(product), framework="pt") as stored:
            said, y_MN = stored.metadata() or {}, stored.get_tensor("y")
        product.unlink()
        if REFUSED in said:
            raise BackendError(said[REFUSED])
        self.seen_on = json.loads(said[SEEN_ON])
        return Product(y_MN, said[PATH])

    def end(self) -> None:
        """Ask it to end."""
        (self._folder / "end").touch()


@contextlib.contextmanager
def remote(host: Host) -> Iterator[Remote]:
    """The process, started and ended; BackendError where the kernel is not there, nothing of it is left in any case."""
    mark = secrets.token_hex(16)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(host.staged), *([inherited] if inherited else [])])
    environment = {**os.environ, **host.environment, MARK: mark, "PYTHONPATH": path}
    with tempfile.TemporaryDirectory(prefix="gptq-diff-reduce-") as place, host.log.open("wb") as log:
        folder, cwd = Path(place), Path(place, "cwd")
        cwd.mkdir()
        command = [str(host.python), "-m", "gptq_diff.reduce.served", str(folder), host.kernel, str(os.getpid())]
        try:
            process = subprocess.Popen(  # noqa: S603  an interpreter of this machine, or one the user named
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd, env=environment,
                start_new_session=True,
            )  # fmt: skip
        except OSError as e:
            raise BackendError(f"the interpreter {host.python} cannot be started: {e.strerror or e}") from e
        family = Family(process.pid, mark)
        try:
            served = Remote(host, folder, process)
            yield served
            served.end()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=CLEAR_SECONDS)
        finally:
            family.look()
            if process.poll() is None:
                process.kill()
            process.wait()
            family.end(CLEAR_SECONDS)
