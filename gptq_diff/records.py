"""The nouns of gptq-diff: frozen records that cross module borders. Standard library only, Python 3.9 syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class LayerSpec:
    """One quantised linear of a checkpoint, known from headers and config alone (no tensor data read).

    name: Hugging Face path, for example `model.layers.11.mlp.down_proj`.
    in_features: K, rows of the dequantised weight W[K, N].
    out_features: N.
    bits: 2, 3, 4 or 8.
    group_size: rows of K that share a scale; K itself where the config says -1.
    sym: True when the config calls the quantisation symmetric.
    desc_act: True when g_idx reorders the rows into groups.
    format: "gptq" (v1: zero = stored + 1) or "gptq_v2" (zero = stored).
    has_bias: True when a bias[N] is stored beside the packed weight.
    """

    name: str
    in_features: int
    out_features: int
    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    format: str
    has_bias: bool

    @property
    def groups(self) -> int:
        """Rows of `scales`: ceil(K / group_size)."""
        return -(-self.in_features // self.group_size)


@dataclass(frozen=True)
class SkippedLayer:
    """A quantised linear that is left out, and why; shown in every report."""

    name: str
    reason: str


@dataclass(frozen=True)
class Support:
    """Whether a kernel or a backend can do something; `reason` says why not, and is empty when ok."""

    ok: bool
    reason: str = ""


ORIGINAL = "original"
"""Kernel mode and path of a linear that is not quantised: there is no kernel to judge."""


@dataclass(frozen=True)
class ModelInfo:
    """What a report says of a checkpoint (contract.md, `model`)."""

    path: str
    architecture: str
    bits: int
    group_size: int
    sym: bool
    desc_act: bool
    format: str
    quantized_linears: int
    fingerprint: str


@dataclass(frozen=True)
class OriginalInfo:
    """What a report says of the unquantised model (--original)."""

    path: str
    architecture: str
    fingerprint: str


@dataclass(frozen=True)
class Prompt:
    """One prompt as every backend gets it.

    id: the entry's own name, or `p1`, `p2`, ... in file order; used in paths, so [A-Za-z0-9._-] only.
    token_ids: what is fed to the model.
    text: the text that was tokenised (after the chat template); None for bare token ids.
    sha256: of the token ids, as little-endian int64.
    """

    id: str
    token_ids: tuple[int, ...]
    text: str | None
    sha256: str

    @property
    def tokens(self) -> int:
        """Number of token ids: M of the prefill."""
        return len(self.token_ids)


@dataclass(frozen=True)
class Preset:
    """One name a user can give to --backends.

    engine: who hosts the model ("transformers", "vllm", ...).
    kernel: kernel mode of that engine.
    dtype: of the skeleton (norms, attention, residual), "float16" or "float32".
    summary: one line for `gptq-diff backends`.
    requires: modules that the interpreter must have.
    route: which way in the engine is loaded for, where it has several; presets of one route can share a load.
    gpu: True when nothing but an NVIDIA GPU will do.
    """

    name: str
    engine: str
    kernel: str
    dtype: str
    summary: str
    requires: tuple[str, ...] = field(default=())
    route: str = ""
    gpu: bool = False


@dataclass(frozen=True)
class Judgement:
    """One kernel call held against the exact answer on its own input.

    step, index: place in time; index counts the linears of one step in order of execution.
    path: the arithmetic that really ran; "all-reduce" for the sum over tensor-parallel ranks, "replicated" for a
    tensor that two ranks should hold alike. rank: the tensor-parallel rank whose share of the rows of W this is.
    rows, elements: M and M*N of the whole call.
    kind: "ok", "overflow", "nan", "diverged", "inherited" (every row of x was already non-finite), or "original": the
    linear is not quantised, nothing is judged, and local_l2_rel is what quantising it changes on this input.
    cause: "result-overflow" or "nan-weights" where the kind alone does not say it, else None.
    nonfinite: NaN and inf in y on rows whose x is finite; first_index: [row, column] of the first, or None.
    inherited_rows: rows whose x was already non-finite; they are not judged.
    local_l2_rel: norm of (y - exact) over norm of exact, finite elements of the judged rows; lower is better.
    noise_floor: the same ratio as the kernel's stated rounding explains it.
    excess: largest of error / (factor * floor) over the tensor and over each row; above 1 is "diverged".
    worst_row: the row with the largest excess.
    inherited_l2_rel: norm of (x - reference's x) over norm of the reference's x; None when not comparable.
    input_absmax, exact_absmax, output_absmax: largest finite magnitudes; max_abs: largest |y - exact|.
    part: "" for the whole linear, else the rank's number or the path of a step that is no kernel's.
    """

    layer: str
    index: int
    step: int
    rank: int
    path: str
    rows: int
    elements: int
    kind: str
    cause: str | None
    nonfinite: int
    first_index: tuple[int, int] | None
    inherited_rows: int
    local_l2_rel: float | None
    noise_floor: float | None
    excess: float | None
    worst_row: int | None
    inherited_l2_rel: float | None
    input_absmax: float
    exact_absmax: float
    output_absmax: float
    max_abs: float
    part: str = ""

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Judgement:
        """From what `asdict` gave; TypeError or KeyError for anything else."""
        return cls(**{**raw, "first_index": tuple(raw["first_index"]) if raw["first_index"] else None})

    @property
    def stored(self) -> str:
        """The name that the call's tensors are stored under in its capture."""
        return f"{self.layer}@{self.part}" if self.part else self.layer


INTERVALS = ("embedding", "norm", "residual", "attention", "rotary", "activation", "lm_head")
"""Paths of what happens between linears, judged by itself; a Judgement's layer is the linear whose input it makes."""


@dataclass(frozen=True)
class FirstBad:
    """The first call, in (step, index) order, that rounding does not explain (contract.md, `first_bad`).

    rank: the tensor-parallel rank whose share broke; None for a whole linear, or a step after it.
    path: that ran; one of INTERVALS where what makes the input of `layer` broke, and not that linear.
    """

    layer: str
    index: int
    step: int
    kind: str
    nonfinite: int
    elements: int
    first_index: tuple[int, int] | None
    local_l2_rel: float | None
    noise_floor: float | None
    inherited_l2_rel: float | None
    input_absmax: float
    exact_absmax: float
    excess: float | None
    path: str
    rows: int
    rank: int | None = None


@dataclass(frozen=True)
class PartialSums:
    """One sum of a lost output while it grows, as the kernel holds it and as it would be without rounding.

    says: what is summed. row, column: of the output. channels: of x, after whose product the sums stand; of a long sum
    a few hundred, those of its largest and smallest value among them. exact: float64. half: in float16, None where it
    is infinite or NaN; empty where the kernel sums in float32 and narrows the end alone. limit: what float16 holds.
    """

    says: str
    row: int
    column: int
    channels: tuple[int, ...]
    exact: tuple[float, ...]
    half: tuple[float | None, ...]
    limit: float = 65504.0

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> PartialSums:
        """From what `asdict` gave; TypeError or KeyError for anything else."""
        return cls(**{**raw, **{name: tuple(raw[name]) for name in ("channels", "exact", "half")}})


@dataclass(frozen=True)
class Finding:
    """A cause with its evidence; confidence from 0 to 1.

    summary: the cause in a few words that fit into a sentence; "" where the cause's name says it. sums: of an
    overflow, the sum that left float16; None where no picture of it can be drawn.
    """

    cause: str
    confidence: float
    evidence: tuple[str, ...]
    layer: str | None
    summary: str = ""
    sums: PartialSums | None = None

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Finding:
        """From what `asdict` gave; TypeError or KeyError for anything else."""
        sums = PartialSums.from_json(raw["sums"]) if raw.get("sums") else None
        return cls(**{**raw, "evidence": tuple(raw["evidence"]), "sums": sums})


@dataclass(frozen=True)
class RowRange:
    """Neighbouring numbers of rows that gave one picture, in the experiment that runs one row M times.

    first, last: M, both included. path: that ran. kind: as Judgement.kind. nonfinite: most in one row.
    local_l2_rel: the largest there; None where it has no size.
    """

    first: int
    last: int
    path: str
    kind: str
    nonfinite: int
    local_l2_rel: float | None


@dataclass(frozen=True)
class Experiment:
    """What one experiment on the live kernel gave (gptq_diff.diagnose.experiments).

    name: "scaled-input", "single-rows", "row-sweep", "repeats", "dirty-memory", "zero-input", "k-slices", or "not-run".
    layer, step: the captured call that it was made on. did: what was done, in a phrase.
    figures: numbers by name, None where there is nothing to count. evidence: what they say, in sentences.
    finding: what follows from this experiment alone. ranges: of the row sweep.
    """

    name: str
    layer: str
    step: int
    did: str
    figures: dict[str, float | None]
    evidence: tuple[str, ...]
    finding: Finding | None = None
    ranges: tuple[RowRange, ...] = ()


@dataclass(frozen=True)
class Workaround:
    """Something that may help; works is None where it was not tried."""

    name: str
    tried: bool
    works: bool | None
    detail: str

    @staticmethod
    def run(name: str, detail: str, *, works: bool) -> Workaround:
        """One that was tried."""
        return Workaround(name=name, tried=True, works=works, detail=detail)


@dataclass(frozen=True)
class Between:
    """What one capture gives between its linears.

    judgements: in order of execution, as of linears; path and part are the interval's name.
    skipped: linear, block or "all" -> why what happens before it, in it, or anywhere is not judged.
    """

    judgements: tuple[Judgement, ...]
    findings: tuple[Finding, ...]
    skipped: dict[str, str]


@dataclass(frozen=True)
class RowMap:
    """Figures of single rows of every linear of one capture, for pictures of linear by token.

    layers: [L] in order of execution. bins: [B] (step, first row, last row, both included): rows of a long step share
    one, which holds their largest. x, y: largest finite magnitude of input and output; error: norm of (y - exact) over
    norm of exact. Each is [L, B] little-endian uint16 in base64: 0 where there is none (x was not finite, or nothing
    was judged), else 32768 + 256 * log2(value), at least 1: which errs by at most 0.14 %.
    lost: (layer, bin, outputs that are infinite or NaN although x is finite), the first MOST_LOST of them.
    """

    layers: tuple[str, ...]
    bins: tuple[tuple[int, int, int], ...]
    x: str
    y: str
    error: str
    lost: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class IntervalCount:
    """How many intervals between linears were judged, which were not, and the largest share of their threshold."""

    compared: int
    skipped: tuple[SkippedLayer, ...]
    worst_excess: float | None


@dataclass(frozen=True)
class LayerCount:
    """How many linears were judged, and which were not."""

    compared: int
    skipped: tuple[SkippedLayer, ...]


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
    """What one backend did with one prompt (contract.md, `results`).

    kernel: layer glob -> path that really ran. steps: forward passes judged.
    seconds: by phase: "load" and "judge" of the backend with all its prompts, "generate" of this prompt.
    peaks: in bytes, of the backend; None where the system does not say, and peak_gpu_bytes where it used no GPU.
    quantization_error: of hf-original alone.
    worst_excess: the largest share of the detection threshold that any judged call reached; 1 is the threshold.
    experiments: on the live kernel, of one linear. intervals: between linears; None where nobody looked.
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
class PromptInfo:
    """A prompt as reports show it."""

    id: str
    tokens: int
    sha256: str


def swept_prompt(prompt: str) -> str:
    """The id that was swept, in the id of one of its lengths: `p1` of `p1-t037`."""
    return prompt.rpartition("-t")[0]


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
class Headroom:
    """The sum of one linear's kernel, over a prompt and its decode steps, that comes nearest to float16's end.

    ran: this sum belongs to the kernel that the backend ran; else it is what another kernel would meet on this input.
    arithmetic: "lane", "block", "accumulator", "unscaled-sum" or "result" (gptq_diff.diagnose.headroom.arithmetics).
    bits: log2(65504 / |value|), doublings left; negative where it overflows.
    layer: LAYER@RANK for a tensor-parallel rank's share. row: of that step's x. column: of y.
    channel: of x, whose product carries the sum; activation: x there; weight: what it is multiplied by, code - zero in
    an unscaled sum. value: the sum, without rounding. terms: products in it.
    """

    backend: str
    ran: bool
    arithmetic: str
    bits: float
    layer: str
    prompt: str
    step: int
    row: int
    column: int
    channel: int
    activation: float
    weight: float
    value: float
    terms: int


@dataclass(frozen=True)
class Report:
    """report.json (contract.md, schema_version 1).

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
