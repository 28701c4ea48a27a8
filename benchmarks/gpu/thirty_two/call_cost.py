"""What the tap adds to one kernel call: python -m benchmarks.gpu.thirty_two.call_cost --out FILE.json

A tree of 256 modules whose kernels take no time, with tensors of a few values: what is left is this process's own work,
in microseconds a call, beside the same calls without a tap and with forward hooks that clone. On a GPU also what the
ways of copying x and y cost when they are launched.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.thirty_two.prompt import Found, synchronize
from gptq_diff.capture import tap as taps
from gptq_diff.capture.call import Fused
from gptq_diff.capture.cuda.kernel import looker_of
from gptq_diff.capture.looks import HostLooker
from gptq_diff.capture.numbering import Known
from gptq_diff.capture.stage import Stage, site
from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import Tap
from gptq_diff.capture.ways import WAYS, fastest, views_of
from gptq_diff.engines.vllm.modules import FusedLinear
from gptq_diff.engines.vllm.taps import Staged, Taps, Told

MODULES = 256
ROWS, COLUMNS = 37, 64


class GPTQLinearMethod:
    """As vLLM's, with an output that is there already."""

    def __init__(self, y_MN: torch.Tensor) -> None:
        self.y_MN = y_MN

    def apply(self, layer: nn.Module, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:  # noqa: ARG002
        """The same tensor for every input."""
        return self.y_MN


class Module(nn.Module):
    """One quantised module."""

    def __init__(self, y_MN: torch.Tensor) -> None:
        super().__init__()
        self.quant_method = GPTQLinearMethod(y_MN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As vLLM's linears call their method."""
        return self.quant_method.apply(self, x, None)


class Tree:
    """All modules, one after the other."""

    def __init__(self, device: str) -> None:
        self.x_MK = torch.ones(ROWS, COLUMNS, dtype=torch.float16, device=device)
        self.modules = [Module(self.x_MK.clone()) for _ in range(MODULES)]
        self.linears = [FusedLinear(f"m{i}", module, ()) for i, module in enumerate(self.modules)]
        self.stage, self.known = Stage(), Known()
        self.sites = {one.name: site(Fused((one.name,), (COLUMNS,)), "marlin") for one in self.linears}
        self.taps = Taps(self.linears, {}, self.told)
        self.tap: Tap | None = None

    def told(self, linear: FusedLinear) -> Told:
        """As gptq_diff.engines.vllm.rank has it."""
        here = self.sites[linear.name]

        def seen(x_MK: torch.Tensor, y_MN: torch.Tensor) -> None:
            assert self.tap is not None
            self.tap.record_fused(here.parts, x_MK, y_MN, "marlin")

        return Told(seen, Staged(self.stage, here))

    def forward(self) -> float:
        """Seconds of all calls."""
        modules, x_MK = self.modules, self.x_MK
        started = time.perf_counter()
        for module in modules:
            module(x_MK)
        return time.perf_counter() - started

    def tapped(self) -> tuple[float, float]:
        """(seconds of all calls, of a whole prompt with what comes before and after them)."""
        started = time.perf_counter()
        with Tap(frozenset(self.sites), NullSink()) as self.tap, self.taps.in_place():
            self.tap.stage_in(self.stage, self.known)
            self.tap.begin_step(0)
            calls = self.forward()
            self.tap.end_step()
            whole = time.perf_counter() - started
        return calls, whole

    def cloned(self) -> float:
        """With forward hooks that clone input and output."""
        kept: list[Any] = []
        hooks = [m.register_forward_hook(lambda _, x, y: kept.append((x[0].clone(), y.clone()))) for m in self.modules]
        took = self.forward()
        for hook in hooks:
            hook.remove()
        return took


def copies(device: str) -> dict[str, float]:
    """Microseconds that launching the copy of one call's x and y takes, by the way of copying."""
    x_MK = torch.ones(37, 5120, dtype=torch.float16, device=device)
    y_MN = torch.ones(37, 7168, dtype=torch.float16, device=device)
    flat = torch.empty(x_MK.numel() + y_MN.numel(), dtype=torch.float16, device=device)
    views = views_of(flat, x_MK.shape, y_MN.shape)
    works: dict[str, Callable[[], Any]] = {way.__name__: partial(way, views, x_MK, y_MN) for way in WAYS}
    works["two clones"] = lambda: (x_MK.clone(), y_MN.clone())
    found = {}
    for name, work in works.items():
        best = float("inf")
        for _ in range(10):
            synchronize()
            started = time.perf_counter()
            for _ in range(100):
                work()
            best = min(best, time.perf_counter() - started)
            synchronize()
        found[name] = round(best * 1e4, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--staged", action="store_true", help="stage copies of CPU tensors too: without a GPU")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if asked.staged or device == "cpu":
        taps.asks_later = lambda _: True
    torch.set_num_threads(1)
    gc.disable()
    with torch.inference_mode():
        tree, looked = Tree(device), Tree(device)
        tree.stage.way = fastest(torch.device(device))
        looked.stage.looker = looker_of(torch.device(device)) or HostLooker()
        best: dict[str, float] = {}
        for _ in range(asked.rounds):
            calls, whole = tree.tapped()
            looks, whole_looked = looked.tapped()
            took = {"bare": tree.forward(), "tapped by torch": calls, "a prompt tapped by torch": whole,
                    "looked at": looks, "a prompt looked at": whole_looked, "cloned": tree.cloned()}  # fmt: skip
            best = {name: min(best.get(name, seconds), seconds) for name, seconds in took.items()}
            synchronize()
        a_call = {name: round(seconds / MODULES * 1e6, 2) for name, seconds in best.items()}
        Found(asked.out, what="a call of 256 modules whose kernels take no time, microseconds, the best round").add(
            microseconds=a_call, added={name: round(took - a_call["bare"], 2) for name, took in a_call.items()},
            copies=copies(device), device=device, way=tree.stage.way.__name__,
            looker=type(looked.stage.looker).__name__,
        )  # fmt: skip


if __name__ == "__main__":
    main()
