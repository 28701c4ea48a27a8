"""A real engine's process: loads checkpoint after checkpoint and captures what is asked of each.

    PYTHON served.py FD        requests come by standard input, a line of JSON each; answers go to the descriptor FD

Runs under the engine's own interpreter with gptq_diff staged on its path, from Python 3.9 up. Starting an interpreter,
torch and an engine takes longer than everything else that a tiny model needs, so one process does them all. It plants
nothing by itself: products that are to be spoiled are shown to the parent, which gives back what they become.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable

import numpy as np
import torch

from gptq_diff.errors import GptqDiffError
from gptq_diff.jobs import Events, Job, WorkerSpec
from gptq_diff.processes import end_with_parent
from gptq_diff.worker import load_engine, run_job

Ask = Callable[[str, torch.Tensor, torch.Tensor], torch.Tensor]


class Server:
    """One engine at a time, kept for as long as the same checkpoint is asked for."""

    def __init__(self, answers: Any) -> None:
        self._answers = answers
        self._engine: Any = None
        self._loaded: tuple[str, ...] = ()

    def serve(self, request: dict[str, Any]) -> dict[str, Any]:
        """Load what is wanted, run the jobs, with the products of those linears shown to the parent."""
        spec = WorkerSpec(**{**request["spec"], "jobs": tuple(job_of(raw) for raw in request["jobs"])})
        wanted = (spec.model, spec.route)
        if wanted != self._loaded:
            self.unload()
            self._engine, self._loaded = load_engine(spec), wanted
        engine = self._engine
        torch.manual_seed(spec.seed)
        with spoiled(engine, frozenset(request["spoil"]), self._ask(Path(request["folder"]))):
            engine.use_kernel(spec.jobs[0].kernel)  # inside: an engine that makes its taps here puts them above that
            for index, job in enumerate(spec.jobs):
                run_job(engine, job, Events(Path(spec.events)), index)
        return {"versions": engine.versions()}

    def unload(self) -> None:
        """Let go of the engine; vLLM keeps a process-wide world that must be taken down for the next one."""
        engine, self._engine, self._loaded = self._engine, None, ()
        if engine is None:
            return
        llm = getattr(engine, "_llm", None)
        del engine
        if llm is not None:
            from vllm.distributed import cleanup_dist_env_and_memory

            llm.llm_engine.engine_core.shutdown()
            del llm
            gc.collect()
            cleanup_dist_env_and_memory()
        gc.collect()

    def _ask(self, folder: Path) -> Ask:
        def ask(layer: str, x_MK: torch.Tensor, y_MN: torch.Tensor) -> torch.Tensor:
            np.savez(folder / "asked.npz", x=x_MK.detach().float().numpy(), y=y_MN.detach().float().numpy())
            self.say({"spoil": layer})
            sys.stdin.readline()
            given = np.load(folder / "given.npy")
            return torch.from_numpy(given).to(y_MN.dtype)

        return ask

    def say(self, answer: dict[str, Any]) -> None:
        """One line to the parent."""
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


def job_of(raw: dict[str, Any]) -> Job:
    """A job from its JSON."""
    forced = None if raw["forced"] is None else tuple(raw["forced"])
    return Job(**{**raw, "token_ids": tuple(raw["token_ids"]), "forced": forced})


@contextlib.contextmanager
def spoiled(engine: Any, layers: frozenset[str], ask: Ask) -> Iterator[None]:
    """Below the tap, the products of those linears replaced by what the parent makes of them; a bias is added after.

    A spoiled sum of product and bias would not be what a kernel with that fault gives: it would be rounded before.
    """
    model = getattr(engine, "_model", None)
    linears = engine._linears if hasattr(engine, "_linears") else model._linears
    with contextlib.ExitStack() as undo:
        for linear in linears:
            if hasattr(linear, "parts"):
                parts = [part for part in linear.parts if part.spec.name in layers]
                if parts:
                    undo.enter_context(_in_vllm(linear, parts, ask))
            elif linear.spec.name in layers:
                undo.enter_context(_in_module(linear, ask))
        yield


@contextlib.contextmanager
def _in_vllm(linear: Any, parts: list[Any], ask: Ask) -> Iterator[None]:
    method, module = linear.method, linear.module
    apply, own = method.apply, vars(method).get("apply")

    def changed(layer: Any, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if layer is not module:
            return apply(layer, x, bias)
        y = apply(layer, x, None).clone()
        for part in parts:
            columns = y.reshape(-1, y.shape[-1])[:, part.first : part.last]
            columns.copy_(ask(part.spec.name, x.reshape(-1, x.shape[-1]), columns))
        return y if bias is None else y + bias.to(y.dtype)

    method.apply = changed
    try:
        yield
    finally:
        if own is None:
            del method.apply
        else:
            method.apply = own


@contextlib.contextmanager
def _in_module(linear: Any, ask: Ask) -> Iterator[None]:
    module = linear.module
    forward, own = module.forward, vars(module).get("forward")

    def changed(x: torch.Tensor) -> torch.Tensor:
        bias, module.bias = module.bias, None
        try:
            y = forward(x)
        finally:
            module.bias = bias
        rows = ask(linear.spec.name, x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])).reshape(y.shape)
        return rows if bias is None else rows + bias.to(rows.dtype)

    module.forward = changed
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own


def main() -> None:
    """Until standard input ends."""
    end_with_parent(os.getppid())
    server = Server(os.fdopen(int(sys.argv[1]), "w"))
    for line in iter(sys.stdin.readline, ""):
        try:
            answer = server.serve(json.loads(line))
        except (GptqDiffError, RuntimeError, ValueError, ImportError, OSError) as e:
            traceback.print_exc()
            server.unload()
            answer = {"error": f"{type(e).__name__}: {e}"}
        server.say(answer)


if __name__ == "__main__":
    main()
