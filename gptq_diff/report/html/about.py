"""What ran and on what: kernels, versions, time and memory of each backend, the model, the machine."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.records import ModelInfo, Report, Result
from gptq_diff.report.costs import PHASES, size


@dataclass(frozen=True)
class Ran:
    """One backend: which kernel path ran where (layer glob, path), versions, seconds by phase, peak memory."""

    backend: str
    engine: str
    kernels: tuple[tuple[str, str], ...]
    versions: str
    seconds: tuple[str, ...]
    memory: str
    gpu_memory: str


def ran(report: Report) -> tuple[Ran, ...]:
    """Once a backend; its kernels on all prompts together."""
    of: dict[str, list[Result]] = {}
    for result in report.results:
        of.setdefault(result.backend, []).append(result)
    return tuple(_ran(backend, results) for backend, results in of.items())


def _ran(backend: str, results: list[Result]) -> Ran:
    first = results[0]
    kernels = dict.fromkeys((glob, path) for r in results for glob, path in r.kernel.items())
    generated = [r.seconds["generate"] for r in results if "generate" in r.seconds]
    seconds = {**first.seconds, **({"generate": sum(generated)} if generated else {})}
    return Ran(
        backend, first.engine, tuple(kernels), ", ".join(f"{k} {v}" for k, v in first.versions.items()),
        tuple(f"{seconds[phase]:.1f} s" if phase in seconds else "–" for phase in PHASES),
        size(first.peak_private_bytes).replace("-", "–"), size(first.peak_gpu_bytes).replace("-", "–"),
    )  # fmt: skip


def facts(report: Report) -> tuple[tuple[str, str], ...]:
    """(what, value) of the model and of the machine; nothing that is not known."""
    rows = [("gptq-diff", report.gptq_diff), ("run", report.created), *_model("model", report.model)]
    if report.reference_model is not None:
        rows += _model("reference's model", report.reference_model)
    if report.original_model is not None:
        rows.append(("unquantised model", report.original_model.path))
    rows += [(name, value) for name, value in report.environment.items() if value is not None]
    return tuple(rows)


def _model(what: str, model: ModelInfo) -> list[tuple[str, str]]:
    flags = ("symmetric" if model.sym else "asymmetric") + (", desc_act" if model.desc_act else "")
    kind = f"{model.architecture}, {model.bits} bit, group size {model.group_size}, {flags}, {model.format}"
    linears = f"{model.quantized_linears} quantised linears"
    return [(what, model.path), (f"{what} is", f"{kind}, {linears}"), (f"{what}'s fingerprint", model.fingerprint)]
