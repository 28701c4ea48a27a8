"""vLLM's own server for as long as it is needed: started, waited for, ended with all that it has started."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from gptq_diff.processes import end_descendants

# As users have it, but for what needs a network, and a sampler that wants a compiler.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_USE_FLASHINFER_SAMPLER": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
}  # fmt: skip


@dataclass(frozen=True)
class Served:
    """One server to start. python: the interpreter that has vLLM. options: of `vllm serve`, besides those it needs."""

    python: Path
    model: Path
    log: Path
    options: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, port: int) -> list[str]:
        """`vllm serve` by its module: vllm-cpu's own script looks for a package called vllm and ends."""
        return [
            str(self.python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model),
            "--host", "127.0.0.1", "--port", str(port), "--dtype", "float16", "--enforce-eager", *self.options,
        ]  # fmt: skip


@contextmanager
def serving(served: list[Served], patience: float) -> Iterator[list[str]]:
    """Start them side by side and give their addresses when all answer; patience: seconds for that.

    TimeoutError or RuntimeError with the end of a log where one of them does not.
    """
    with ExitStack() as stack:
        started = [(each, *stack.enter_context(_process(each))) for each in served]
        deadline = time.monotonic() + patience
        for each, process, url in started:
            while not _answers(url):
                if process.poll() is not None:
                    raise RuntimeError(f"{each.model.name}: vLLM ended with {process.returncode}\n{_end(each.log)}")
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{each.model.name}: no answer within {patience:.0f} s\n{_end(each.log)}")
                time.sleep(0.5)
        yield [url for _, _, url in started]


@contextmanager
def _process(served: Served) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    port = _free_port()
    with served.log.open("wb") as log:
        process = subprocess.Popen(
            served.command(port), stdout=log, stderr=subprocess.STDOUT, cwd=served.log.parent,
            env={**os.environ, **ENVIRONMENT, **served.environment}, start_new_session=True,
        )  # fmt: skip
        try:
            yield process, f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
            end_descendants(process.pid)
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-15:])
