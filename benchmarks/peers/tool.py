"""One tool on one prefill, under the tool's own interpreter: `python tool.py names|cost TOOL MODEL OUT` prints JSON.

Needs nothing of gptq-diff. names: two infinite values are planted in what the kernel of block 11's down_proj returns,
and what the tool names is noted. cost: the forward with the tool is timed against the forward without it, by turns, and
what it stored is compared with what it stored of the broken forward. Processes of their own: not every tool can begin
anew.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable

import torch
from torch import nn

IDS = (1, *range(100, 136))
ROUNDS = 5
FAULTY = "model.layers.11.mlp.down_proj"
Forward = Callable[[], Any]


def load(directory: Path) -> nn.Module:
    """The model in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()  # type: ignore[no-any-return]


def linears(model: nn.Module) -> dict[str, nn.Module]:
    """The 210 that are quantised in the demo."""
    return {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear) and ".layers." in n}


class Broken(nn.Linear):
    """A linear whose kernel returns two infinite values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the linear, but for the values."""
        y = nn.functional.linear(x, self.weight, self.bias)
        y.view(-1)[3], y.view(-1)[700] = float("inf"), float("inf")
        return y


@contextlib.contextmanager
def broken(model: nn.Module) -> Iterator[None]:
    """Planted inside the module's own forward, where a hook's order does not matter."""
    module = model.get_submodule(FAULTY)
    before, module.__class__ = module.__class__, Broken
    try:
        yield
    finally:
        module.__class__ = before


class Tool:
    """How one tool looks at a forward."""

    packages: tuple[str, ...] = ("transformers",)

    def __init__(self, model: nn.Module, out: Path) -> None:
        self.model = model
        self.out = out
        self.said = ""

    def once(self, forward: Forward) -> None:
        """A forward with the tool in place, all of what it does included."""
        raise NotImplementedError

    def names(self) -> str:
        """What it names of a broken forward that `once` has just seen."""
        return "nothing by itself"

    def compare(self, mine: Path, theirs: Path) -> float | None:  # noqa: ARG002  for the tools that can
        """Seconds that its own comparison of two outputs takes; None where it has none."""
        return None


class Hooks(Tool):
    """Forward hooks by hand, both tensors of every linear into one file."""

    def once(self, forward: Forward) -> None:
        """Clones, then safetensors."""
        from safetensors.torch import save_file

        kept: dict[str, torch.Tensor] = {}

        def keep(name: str) -> Any:
            def hook(_module: nn.Module, inputs: Any, output: Any) -> None:
                kept[f"{name}.in"], kept[f"{name}.out"] = inputs[0].clone(), output.clone()

            return hook

        handles = [m.register_forward_hook(keep(n)) for n, m in linears(self.model).items()]
        forward()
        for handle in handles:
            handle.remove()
        self.out.mkdir(exist_ok=True)
        save_file(kept, str(self.out / "kept.safetensors"))


class UnderflowOverflow(Tool):
    """transformers' DebugUnderflowOverflow: prints the last frames when a value is not finite."""

    def once(self, forward: Forward) -> None:
        """It cannot be taken off again but by removing its hooks."""
        from transformers.debug_utils import DebugUnderflowOverflow

        before = {m: dict(m._forward_hooks) for m in self.model.modules()}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            DebugUnderflowOverflow(self.model)
            with contextlib.suppress(ValueError):
                forward()
        for module, hooks in before.items():
            module._forward_hooks.clear()
            module._forward_hooks.update(hooks)
        self.said = printed.getvalue()

    def names(self) -> str:
        """The module of the last frame that it printed."""
        frames = re.findall(r"^\s+(\S+) (\w+)$", self.said, re.MULTILINE)
        return f"`{frames[-1][0]}`, in the last of its frames" if frames else "nothing"


class AdditionDebugger(Tool):
    """transformers' model_addition_debugger: a tree of statistics as JSON."""

    def once(self, forward: Forward) -> None:
        """Its context around the forward."""
        from transformers.model_debugging_utils import model_addition_debugger_context

        with model_addition_debugger_context(self.model, debug_path=str(self.out), do_prune_layers=False):
            forward()

    def names(self) -> str:
        """Whoever reads the tree finds the first inf."""
        return "nothing by itself; a tree to be read"


class Msprobe(Tool):
    """msprobe's PrecisionDebugger. task: "statistics" or "tensor"."""

    packages = ("mindstudio-probe",)
    task = "statistics"

    def once(self, forward: Forward) -> None:
        """One step, of modules and of API calls ("mix"), as its guide has it for precision."""
        from msprobe.pytorch import PrecisionDebugger

        config = self.out.with_suffix(".json")
        how = {"scope": [], "list": [], "data_mode": ["all"], "summary_mode": "statistics"}
        asked = {"task": self.task, "dump_path": str(self.out), "rank": [], "step": [], "level": "mix", self.task: how}
        config.write_text(json.dumps(asked), encoding="utf-8")
        PrecisionDebugger._instance = None
        with contextlib.redirect_stdout(io.StringIO()):
            debugger = PrecisionDebugger(config_path=str(config))
            debugger.start(model=self.model)
            forward()
            debugger.stop()
            debugger.step()

    def names(self) -> str:
        """The first entry of its dump that holds an infinite value."""
        for dump in sorted(self.out.rglob("dump.json")):
            for name, entry in json.loads(dump.read_text(encoding="utf-8"))["data"].items():
                if "inf" in json.dumps(entry.get("output", entry.get("output_args", ""))).lower():
                    return f"`{name}`, if its dump is read for inf"
        return "nothing"

    def compare(self, mine: Path, theirs: Path) -> float | None:
        """Its own command."""
        dumps = [next(iter(sorted(path.rglob("dump.json"))), None) for path in (mine, theirs)]
        if None in dumps:
            return None
        command = [
            str(Path(sys.executable).with_name("msprobe")),
            "compare",
            "-tp",
            str(dumps[0]),
            "-gp",
            str(dumps[1]),
        ]
        started = time.perf_counter()
        done = subprocess.run([*command, "-o", str(mine.with_name("compared"))], capture_output=True, text=True)
        if done.returncode:
            print(done.stdout[-2000:], done.stderr[-2000:], file=sys.stderr)
            return None
        return time.perf_counter() - started


class MsprobeTensors(Msprobe):
    """The same with whole tensors."""

    task = "tensor"


class Nnsight(Tool):
    """nnsight: inputs and outputs of every linear saved in a trace, then written by safetensors."""

    packages = ("nnsight",)

    def __init__(self, model: nn.Module, out: Path) -> None:
        super().__init__(model, out)
        from nnsight import NNsight

        self.traced = NNsight(model)

    def once(self, forward: Forward) -> None:  # noqa: ARG002  a trace is a forward of its own
        """In order of execution, as a trace must ask for them."""
        from safetensors.torch import save_file

        kept: dict[str, Any] = {}
        ids = torch.tensor([IDS])
        names = list(linears(self.model))
        with torch.inference_mode(), self.traced.trace(input_ids=ids, use_cache=False):
            for name in names:
                module = self.traced
                for part in name.split("."):
                    module = module[int(part)] if part.isdigit() else getattr(module, part)
                kept[f"{name}.in"], kept[f"{name}.out"] = module.input.save(), module.output.save()
        self.out.mkdir(exist_ok=True)
        save_file({k: v.detach().clone().contiguous() for k, v in kept.items()}, str(self.out / "kept.safetensors"))


TOOLS: dict[str, type[Tool]] = {
    "hooks": Hooks, "DebugUnderflowOverflow": UnderflowOverflow, "model_addition_debugger": AdditionDebugger,
    "msprobe-statistics": Msprobe, "msprobe-tensors": MsprobeTensors, "nnsight": Nnsight,
}  # fmt: skip


def private_bytes() -> int:
    """Anonymous and shared memory of this process."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * sum(int(v) for v in re.findall(r"^Rss(?:Anon|Shmem):\s+(\d+)", text, re.MULTILINE))


def size_of(directory: Path) -> int:
    """Bytes below it."""
    return sum(f.stat().st_size for f in directory.rglob("*") if f.is_file())


def bare_forward(model: nn.Module) -> Forward:
    """The prefill."""
    ids = torch.tensor([IDS])

    def bare() -> Any:
        with torch.inference_mode():
            return model(input_ids=ids, use_cache=False)

    return bare


def named(name: str, model: nn.Module, out: Path) -> dict[str, Any]:
    """What it names of a broken forward; what it stored stays in OUT/broken."""
    tool = TOOLS[name](model, out / "broken")
    with broken(model):
        tool.once(bare_forward(model))
    return {"names": tool.names()}


def cost(name: str, model: nn.Module, out: Path) -> dict[str, Any]:
    """Ratio, memory, bytes, comparison."""
    tool, bare = TOOLS[name](model, out / "healthy"), bare_forward(model)
    bare()
    before = private_bytes()
    ratios, peak = [], before
    for number in range(ROUNDS + 1):
        started = time.perf_counter()
        bare()
        between = time.perf_counter()
        shutil.rmtree(tool.out, ignore_errors=True)
        again = time.perf_counter()
        tool.once(bare)
        ended = time.perf_counter()
        peak = max(peak, private_bytes())
        if number:
            ratios.append((ended - again) / (between - started))
    written = size_of(tool.out)
    seconds = tool.compare(out / "broken", tool.out)
    return {
        "tool": name, "versions": ", ".join(f"{p} {version(p)}" for p in tool.packages),
        "ratio": statistics.median(ratios), "added_bytes": peak - before, "written_bytes": written,
        "compare_seconds": seconds, "compared_bytes": written + size_of(out / "broken"),
    }  # fmt: skip


if __name__ == "__main__":
    work = {"names": named, "cost": cost}[sys.argv[1]]
    print(json.dumps(work(sys.argv[2], load(Path(sys.argv[3])), Path(sys.argv[4]))))
