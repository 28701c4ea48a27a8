"""Figures of single rows, kept while a run is judged: they exist there already, and pictures need them.

Bounded by design: a capture keeps at most MOST_BINS numbers of a kind and linear, however long its prompt is.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from gptq_diff.records import RowMap

MOST_BINS = 128
"""Columns of a picture; a prefill's rows share what the decode steps leave of them."""
MOST_STEPS = 64
"""Decode steps that are pictured."""
MOST_LOST = 2000

Figures = npt.NDArray[np.float32]
"""[M, 4]: x_absmax, y_absmax, error over exact, lost outputs; a row with a non-finite x is NaN throughout."""


@dataclass(frozen=True)
class CallRows:
    """The rows of one call. index: place in the step's order of execution."""

    layer: str
    step: int
    index: int
    figures: Figures


@dataclass
class RowsSoFar:
    """Of one capture, in the order in which its linears were judged."""

    calls: list[CallRows] = field(default_factory=list)

    def add(self, call: CallRows, part: str) -> None:
        """Note a call; of a tensor-parallel rank's share (part) nothing, since ranks' rows do not make one picture."""
        if not part:
            self.calls.append(call)

    def map(self) -> RowMap | None:
        """All of them on one grid; None where no whole linear was judged."""
        prefill = [c for c in self.calls if c.step == 0]
        if not prefill:
            return None
        order = {c.layer: i for i, c in enumerate(sorted(prefill, key=lambda c: c.index))}
        rows: dict[int, int] = {}
        for c in self.calls:
            if c.layer in order:
                rows[c.step] = max(rows.get(c.step, 0), len(c.figures))
        bins = _bins(rows)
        place = {step: [i for i, b in enumerate(bins) if b[0] == step] for step in rows}
        grid = np.full((len(order), len(bins), 4), np.nan, np.float32)
        for c in self.calls:
            columns = place[c.step] if c.layer in order else []
            if columns and len(c.figures) == rows[c.step]:
                starts = [bins[i][1] for i in columns]
                grid[order[c.layer], columns] = np.fmax.reduceat(c.figures, starts, axis=0)
        lost = [(int(a), int(b), int(grid[a, b, 3])) for a, b in np.argwhere(grid[:, :, 3] > 0)[:MOST_LOST]]
        x, y, error = (_coded(grid[:, :, i]) for i in range(3))
        return RowMap(tuple(order), bins, x, y, error, tuple(lost))


def _bins(rows: dict[int, int]) -> tuple[tuple[int, int, int], ...]:
    """(step, first row, last row): a step's rows in equal shares, the prefill's as many as decode steps leave room."""
    steps = sorted(step for step in rows if 0 < step <= MOST_STEPS)
    room = MOST_BINS - len(steps)
    found = [(0, first, last) for first, last in _shares(rows[0], room)]
    return tuple(found + [(step, 0, rows[step] - 1) for step in steps])


def _shares(rows: int, most: int) -> Sequence[tuple[int, int]]:
    count = min(rows, most)
    edges = [rows * i // count for i in range(count + 1)]
    return [(a, b - 1) for a, b in zip(edges, edges[1:])]


def _coded(values: Figures) -> str:
    """As RowMap says."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.rint(np.log2(values.astype(np.float64)) * 256) + 32768
    codes = np.where(np.isnan(values), 0, np.clip(np.nan_to_num(logs, nan=0.0, posinf=65535, neginf=1), 1, 65535))
    return base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii")
