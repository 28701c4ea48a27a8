"""The captured rows that matter: of every failing call the rows that came out wrong, with what they should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gptq_diff.capture.store import CaptureReader
from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.compare.exact_answer import exact_product, stack_inputs
from gptq_diff.errors import GptqDiffError
from gptq_diff.judged_file import read_judged
from gptq_diff.records import INTERVALS, Judgement, Report, Result

if TYPE_CHECKING:
    import torch

    from gptq_diff.checkpoint.reader import Checkpoint

MOST_ROWS = 4
"""Rows of one call: the first that fail. Often one does, and every row more shows more of a prompt."""
MOST_CALLS = 20
_STEPS = frozenset({"all-reduce", "replicated", "bias"})
"""Paths of what is no product: no row of x belongs to a row of y there."""


@dataclass(frozen=True)
class SavedRows:
    """Rows of one call, as a safetensors file: x [R, K], y [R, N], rows int64 [R], exact float32 [R, N] if known.

    note: why there is no exact answer, "" where there is one.
    """

    data: bytes
    rows: int
    note: str


def saved_rows(root: Path, report: Report, checkpoint: Checkpoint | None) -> dict[tuple[str, str], SavedRows]:
    """By (backend, prompt): the first bad linear's failing rows, of at most MOST_CALLS results, if they are kept.

    checkpoint: that the judge reads; None leaves the exact answers out.
    """
    found: dict[tuple[str, str], SavedRows] = {}
    for r in report.results:
        if len(found) == MOST_CALLS:
            break
        if r.first_bad is None or r.first_bad.path in INTERVALS or r.first_bad.path in _STEPS:
            continue
        saved = _of(root, r, checkpoint)
        if saved is not None:
            found[r.backend, r.prompt] = saved
    return found


def _of(root: Path, r: Result, checkpoint: Checkpoint | None) -> SavedRows | None:
    import torch
    from safetensors.torch import save

    judged = _judgement(root, r)
    if judged is None:
        return None
    try:
        reader = CaptureReader(root / "captures" / r.backend / r.prompt)
        try:
            if not all(reader.has(judged.step, judged.stored, side) for side in ("in", "out")):
                return None
            x_MK = reader.tensor(judged.step, judged.stored, "in")
            y_MN = reader.tensor(judged.step, judged.stored, "out")
            rows = _failing(x_MK, y_MN, judged)
            at = torch.tensor(rows, dtype=torch.int64)
            tensors = {"rows": at, "x": x_MK[at].contiguous().clone(), "y": y_MN[at].contiguous().clone()}
        finally:
            reader.close()
    except GptqDiffError:  # a capture that was cut short, or is damaged: the reports say so
        return None
    note = "the checkpoint is not here any more" if checkpoint is None else "it is one rank's share of the linear"
    if checkpoint is not None and not judged.part:
        weight_KN = dequantise(checkpoint.packed(judged.layer), torch.float32)
        tensors["exact"] = exact_product(stack_inputs([tensors["x"]]), weight_KN)
        note = ""
    return SavedRows(save(tensors), len(rows), note)


def _judgement(root: Path, r: Result) -> Judgement | None:
    bad = r.first_bad
    assert bad is not None
    judged = read_judged(root / "judged" / r.backend / f"{r.prompt}.jsonl")
    same = (j for j in judged if (j.layer, j.step, j.index, j.kind) == (bad.layer, bad.step, bad.index, bad.kind))
    return next(same, None)


def _failing(x_MK: torch.Tensor, y_MN: torch.Tensor, judged: Judgement) -> list[int]:
    """Rows whose y is not finite although their x is; else the row that is farthest off."""
    import torch

    lost = torch.isfinite(x_MK).all(dim=1) & ~torch.isfinite(y_MN).all(dim=1)
    rows = torch.nonzero(lost).flatten().tolist()[:MOST_ROWS]
    return rows or [judged.worst_row or 0]
