"""What a user asked of one run, checked, and the record of it in run.json."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gptq_diff.errors import CannotJudge
from gptq_diff.jobs import Plant
from gptq_diff.memory import NOTHING, MemoryUse
from gptq_diff.records import ModelInfo, OriginalInfo, Prompt
from gptq_diff.session.sweep import Lengths

CACHING = frozenset({"vllm"})
"""Engines with a prefix cache."""
AUTO, OFF, ALL = "auto", "off", "all"
"""--experiments: on live kernels that fail, on none, on every backend. --workarounds: what costs no load of its own,
none, a fixed checkpoint too."""


@dataclass(frozen=True)
class Backend:
    """One backend to run: a preset with the interpreter that runs it. route: engines.base.LoadSpec.route."""

    name: str
    engine: str
    kernel: str
    dtype: str
    python: str
    route: str = ""

    @property
    def load(self) -> tuple[str, str, str, str]:
        """Backends of which this is equal share one load of the engine."""
        return (self.engine, self.dtype, self.python, self.route)


@dataclass(frozen=True)
class Asked:
    """Everything `run` needs, after all checks of the input.

    model, reference_model: directories; the reference and the judge read the second. original: the unquantised model's.
    backends: in the order of the report, the reference included. timeout: seconds a backend; None is no limit.
    device: --device; "" leaves it to each engine.
    capture: "auto", "full" or "stats"; capture_budget in bytes.
    tensor_parallel: processes that share a model, for the engines that can; the others use one.
    sweep: the lengths that the prompts were brought to (--sweep-tokens).
    experiments: "auto", "off" or "all" (gptq_diff.session.live_subjects). workarounds: the same words
    (gptq_diff.session.workarounds). plant: a fault in the kernels of all backends but the reference.
    prefix_cache: --prefix-cache, for the engines that have one.
    simulate: "all", or "targeted" (gptq_diff.kernels.sim_targeted).
    """

    model: Path
    reference_model: Path
    prompts: tuple[Prompt, ...]
    backends: tuple[Backend, ...]
    reference: str
    capture: str = "auto"
    capture_budget: int = 2_000_000_000
    max_new_tokens: int = 8
    repeats: int = 1
    teacher_force: bool = False
    device: str = ""
    tensor_parallel: int = 1
    timeout: float | None = None
    seed: int = 0
    threads: int = 0
    trust_remote_code: bool = False
    allow_skip: bool = False
    full_hash: bool = False
    original: Path | None = None
    sweep: Lengths | None = None
    experiments: str = "auto"
    workarounds: str = "auto"
    plant: Plant | None = None
    prefix_cache: bool = False
    simulate: str = "all"


@dataclass(frozen=True)
class BackendRecord:
    """What became of one backend, as run.json keeps it; log is relative to the run directory, log_end as in Outcome."""

    name: str
    engine: str
    kernel: str
    dtype: str
    python: str
    log: str = ""
    failure: str | None = None
    log_end: tuple[str, ...] = ()
    finished: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    memory: MemoryUse = NOTHING


@dataclass(frozen=True)
class RunRecord:
    """run.json: what was asked, on what, and what became of it.

    state: "running" until every backend has ended, then "captured", then "finished"; "interrupted" after Ctrl-C.
    quantized: every quantised linear of the checkpoint; not_read: those the reader leaves out, with the reason.
    left_out: what --capture dropped, in words. full_hash: the fingerprints are over every byte. original: --original's.
    sweep: --sweep-tokens. prefix_cache: --prefix-cache. simulate: as in Asked.
    """

    schema_version: int
    gptq_diff: str
    created: str
    state: str
    model: ModelInfo
    reference_model: ModelInfo | None
    environment: dict[str, str | None]
    reference: str
    backends: tuple[BackendRecord, ...]
    quantized: tuple[str, ...]
    not_read: dict[str, str]
    capture: str
    capture_budget: int
    repeats: int
    teacher_force: bool
    allow_skip: bool
    left_out: tuple[str, ...] = ()
    full_hash: bool = False
    original: OriginalInfo | None = None
    sweep: Lengths | None = None
    prefix_cache: bool = False
    simulate: str = "all"

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(raw: dict[str, Any]) -> RunRecord:
        """From what `to_json` gave; CannotJudge for anything else."""
        try:
            values = dict(raw)
            values["model"] = ModelInfo(**raw["model"])
            values["reference_model"] = ModelInfo(**raw["reference_model"]) if raw["reference_model"] else None
            values["backends"] = tuple(
                BackendRecord(**{
                    **b, "finished": tuple(b["finished"]), "memory": MemoryUse(**b["memory"]),
                    "log_end": tuple(b.get("log_end", ())),
                })
                for b in raw["backends"]
            )  # fmt: skip
            original = raw.get("original")
            values["original"] = None if original is None else OriginalInfo(**original)
            sweep = raw.get("sweep")
            values["sweep"] = None if sweep is None else Lengths(**sweep)
            for key in ("quantized", "left_out"):
                values[key] = tuple(raw[key])
            return RunRecord(**values)
        except (KeyError, TypeError, ValueError) as e:
            raise CannotJudge(
                f"run.json is damaged, or of another version of gptq-diff: {e}", "run the capture again"
            ) from e
