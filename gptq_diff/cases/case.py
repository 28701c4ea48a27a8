"""A case as it was read: nouns, checked and nothing left open."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from gptq_diff.models.options import BuildOptions
from gptq_diff.prompts import PromptEntry
from gptq_diff.records import Expectation


@dataclass(frozen=True)
class CaseModel:
    """Which checkpoint: built by name, or a path; exactly one of the two is not None.

    options: of `model build`. path: a directory (beside the case file, if it is relative) or a Hub id.
    reference_path: what the reference and the judge read, where `path` is damaged; None for the same.
    headroom_bits: the checkpoint is given so much headroom by `model fix`, on the case's prompts; None for none.
    """

    build: str | None = None
    path: str | None = None
    options: BuildOptions = field(default_factory=BuildOptions)
    headroom_bits: float | None = None
    reference_path: str | None = None


@dataclass(frozen=True)
class CaseFault:
    """What is planted (gptq_diff.faults).

    kind: a cause of report.json, or "clamp". layer: a quantised linear. where: "bytes" of the checkpoint that
    backends load, while the reference reads the sound one, or their "kernel". size: 0 (mild) to 1 (gross).
    seed: of what is drawn.
    """

    kind: str
    layer: str
    where: str
    size: float
    seed: int


@dataclass(frozen=True)
class Case:
    """One case.

    file: case.toml. digest: sha256 of its bytes. prompts: as written, before a tokenizer has seen them.
    backends: in the order of the report; the reference may be left out.
    """

    name: str
    description: str
    file: Path
    digest: str
    model: CaseModel
    fault: CaseFault | None
    prompts: tuple[PromptEntry, ...]
    backends: tuple[str, ...]
    reference: str
    expect: tuple[Expectation, ...]
    max_new_tokens: int = 8
    repeats: int = 1
    teacher_force: bool = False
    prefix_cache: bool = False
