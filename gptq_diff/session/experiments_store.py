"""RUN/experiments/BACKEND/PROMPT/: an experiment a file, beside the input it was made with and what the kernel gave."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import damaged, read_json, write_json
from gptq_diff.diagnose.experiments.all_probes import PROBES
from gptq_diff.diagnose.experiments.merge import merged
from gptq_diff.records import Experiment, Finding, Result, RowRange

ORDER = [probe.name for probe in PROBES]
"""Of experiments in reports; what is none of them comes last."""
MOST_BYTES = 64 * 2**20
"""Tensors of one linear's experiments are kept up to this size."""


def experiments_dir(run: RunDir, backend: str, prompt: str) -> Path:
    """Where those of one capture lie, absolute."""
    return (run.root / "experiments" / backend / prompt).absolute()


def fresh_dir(run: RunDir, backend: str, prompt: str) -> Path:
    """The same, made anew: what an earlier run of the experiments left there is gone."""
    place = experiments_dir(run, backend, prompt)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    return place


def write_experiments(place: Path, experiments: Sequence[Experiment]) -> None:
    """One file each; tensors go where they are too large to be kept."""
    for experiment in experiments:
        write_json(place / f"{experiment.name}.json", asdict(experiment))
    tensors = list(place.glob("*.safetensors"))
    if sum(file.stat().st_size for file in tensors) > MOST_BYTES:
        for file in tensors:
            file.unlink()


def read_experiments(place: Path) -> tuple[Experiment, ...]:
    """In the order of reports; none where none were made. CaptureError for a damaged file."""
    found = [_experiment(file) for file in sorted(place.glob("*.json"))]
    return tuple(sorted(found, key=lambda e: ORDER.index(e.name) if e.name in ORDER else len(ORDER)))


def _experiment(file: Path) -> Experiment:
    raw: dict[str, Any] = read_json(file)
    try:
        finding = raw["finding"]
        values = {
            **raw,
            "evidence": tuple(raw["evidence"]),
            "finding": None if finding is None else Finding.from_json(finding),
            "ranges": tuple(RowRange(**r) for r in raw["ranges"]),
        }
        return Experiment(**values)
    except (TypeError, KeyError) as e:
        raise damaged(file, e) from e


def with_experiments(result: Result, run: RunDir) -> Result:
    """The result with the experiments of its capture, and their findings among its own."""
    made = read_experiments(experiments_dir(run, result.backend, result.prompt))
    return replace(result, experiments=made, findings=merged(result.findings, made)) if made else result
