"""What a report holds: results, verdict, and all that is shown beside them."""

from __future__ import annotations

from dataclasses import dataclass

from gptq_diff.records.asked import PromptInfo
from gptq_diff.records.found import Experiment, Finding, Headroom, Workaround
from gptq_diff.records.judged import FirstBad
from gptq_diff.records.model import ModelInfo, OriginalInfo, SkippedLayer


@dataclass(frozen=True)
class IntervalCount:
    """How many intervals between linears were judged, which were not, and the largest share of their threshold."""

    compared: int
    skipped: tuple[SkippedLayer, ...]
    worst_excess: float | None


@dataclass(frozen=True)
class LayerCount:
    """How many linears were judged, and which were not.

    bounded: how many of the skipped ones a bound proves safe (--simulate targeted): they take nothing from a verdict.
    """

    compared: int
    skipped: tuple[SkippedLayer, ...]
    bounded: int = 0


@dataclass(frozen=True)
class LayerError:
    """What quantisation changes at one linear of the unquantised model, in the prefill.

    local_l2_rel: norm of (x W_original - x W) over norm of x W, for the unquantised model's own x; lower is better.
    inherited_l2_rel: norm of (x - reference's x) over norm of the reference's x: what quantising all before it changed.
    None where it has no size.
    """

    local_l2_rel: float | None
    inherited_l2_rel: float | None


@dataclass(frozen=True)
class QuantizationError:
    """What quantisation changes, over all linears: the middle and the worst local_l2_rel, and every layer's figures."""

    median_l2_rel: float | None
    worst_l2_rel: float | None
    worst_layer: str | None
    layers: dict[str, LayerError]


@dataclass(frozen=True)
class Result:
    """What one backend did with one prompt (docs/report.schema.json, `results`).

    kernel: layer glob -> path that really ran. steps: forward passes judged.
    seconds: by phase: "load" and "judge" of the backend with all its prompts, "generate" of this prompt.
    peaks: in bytes, of the backend; None where the system does not say, and peak_gpu_bytes where it used no GPU.
    quantization_error: of hf-original alone.
    worst_excess: the largest share of the detection threshold that any judged call reached; 1 is the threshold.
    experiments: on the live kernel, of one linear. intervals: between linears; None where nobody looked.
    tokens_approximate: some linears gave the exact answer in place of the kernel's (--simulate targeted).
    """

    backend: str
    prompt: str
    engine: str
    kernel: dict[str, str]
    versions: dict[str, str]
    status: str
    first_bad: FirstBad | None
    tokens: tuple[int, ...]
    text: str | None
    collapsed: bool
    collapse_token: int | None
    first_token_kl: float | None
    first_different_token: int | None
    cached_rows: int
    layers: LayerCount
    steps: int
    bad_layers: int
    worst_excess: float | None
    findings: tuple[Finding, ...]
    workarounds: tuple[Workaround, ...]
    headroom_bits: dict[str, float]
    seconds: dict[str, float]
    peak_rss_bytes: int | None
    peak_private_bytes: int | None
    peak_gpu_bytes: int | None
    quantization_error: QuantizationError | None = None
    experiments: tuple[Experiment, ...] = ()
    intervals: IntervalCount | None = None
    tokens_approximate: bool = False


@dataclass(frozen=True)
class SkippedBackend:
    """A backend that was asked for and did not finish.

    log: relative to the run directory. log_end: the last lines that its worker wrote there, cleaned.
    """

    backend: str
    reason: str
    log: str
    log_end: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The worst result in one sentence."""

    status: str
    backend: str | None
    prompt: str | None
    layer: str | None
    summary: str


@dataclass(frozen=True)
class SweepRange:
    """Neighbouring prompt lengths with one verdict.

    first, last: in tokens, both included. layer: where it breaks first, None where nothing does.
    """

    first: int
    last: int
    status: str
    layer: str | None


@dataclass(frozen=True)
class Sweep:
    """What one backend did with one prompt at the lengths first, first + step, ... up to last, in tokens.

    prompt: the id that was swept; its results are those of the prompts `PROMPT-tLENGTH`. ranges: shortest first; a
    length without a result is in none of them.
    """

    backend: str
    prompt: str
    first: int
    last: int
    step: int
    ranges: tuple[SweepRange, ...]


@dataclass(frozen=True)
class Report:
    """report.json (docs/report.schema.json, schema_version 1).

    left_out: tensors dropped by --capture, in words. original_model: what hf-original ran, if it was asked for.
    sweeps: of --sweep-tokens. headroom: of every backend the smallest over all prompts, by arithmetic.
    """

    schema_version: int
    gptq_diff: str
    created: str
    model: ModelInfo
    reference_model: ModelInfo | None
    environment: dict[str, str | None]
    reference: str
    prompts: tuple[PromptInfo, ...]
    verdict: Verdict
    results: tuple[Result, ...]
    skipped_backends: tuple[SkippedBackend, ...]
    left_out: tuple[str, ...]
    allow_skip: bool
    original_model: OriginalInfo | None = None
    sweeps: tuple[Sweep, ...] = ()
    headroom: tuple[Headroom, ...] = ()
