"""What the judge says: of single calls, of rows, of what lies between linears."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gptq_diff.records.found import Finding


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
    error_share: of the squared error the share that its largest element has: 1 where one element is all of it; None
    where it is not known.
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
    error_share: float | None = None

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
    """The first call, in (step, index) order, that rounding does not explain (docs/report.schema.json, `first_bad`).

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
