"""Figures of single rows: right by an independent computation, bounded in size, whole or absent."""

from __future__ import annotations

import base64
import struct

import numpy as np
import pytest
import torch

from gptq_diff.compare.judge import judge_layer
from gptq_diff.compare.rows import MOST_BINS, CallRows, Figures, RowsSoFar
from gptq_diff.errors import CaptureError
from gptq_diff.rows_file import read_rows, rows_file, write_rows
from tests.compare.made import call, sound, weight, x_of

INF = float("inf")


def values(text: str, columns: int) -> list[list[float | None]]:
    """What the page reads: [layer][bin]."""
    raw = base64.b64decode(text)
    codes = struct.unpack(f"<{len(raw) // 2}H", raw)
    found = [None if c == 0 else 2 ** ((c - 32768) / 256) for c in codes]
    return [found[i : i + columns] for i in range(0, len(found), columns)]


def figures(*rows: tuple[float, float, float, float]) -> Figures:
    return np.array(rows, np.float32)


def of(*calls: CallRows) -> RowsSoFar:
    so_far = RowsSoFar()
    for one in calls:
        so_far.add(one, "")
    return so_far


def test_a_rows_figures_are_those_of_numpy() -> None:
    """Sizes and the error against a float64 product, row by row; call by call as they were given."""
    layer = weight()
    calls = [sound(layer, x_of(5, seed=1)), sound(layer, x_of(1, seed=2), step=1)]
    calls[0].y_MN[3] *= 1.25
    kept: list[Figures] = []
    judge_layer(layer, calls, kept)
    assert [len(k) for k in kept] == [5, 1]
    for captured, found in zip(calls, kept):
        x, y = captured.x_MK.double().numpy(), captured.y_MN.double().numpy()
        exact = x @ layer.w_KN.double().numpy()
        assert found[:, 0] == pytest.approx(np.abs(x).max(axis=1), rel=1e-3)
        assert found[:, 1] == pytest.approx(np.abs(y).max(axis=1), rel=1e-3)
        error = np.linalg.norm(y - exact, axis=1) / np.linalg.norm(exact, axis=1)
        assert found[:, 2] == pytest.approx(error, rel=2e-2)
        assert not found[:, 3].any()


def test_lost_outputs_and_rows_without_a_finite_input() -> None:
    """The first are counted, the second have no figures."""
    layer, x = weight(), x_of(4)
    captured = sound(layer, x)
    captured.y_MN[1, :2] = INF
    x[2, 0] = INF
    kept: list[Figures] = []
    judge_layer(layer, [call(x, captured.y_MN)], kept)
    assert kept[0][:2, 3].tolist() == [0, 2]
    assert np.isnan(kept[0][2]).all()


def test_an_error_where_the_exact_answer_is_zero_has_no_size() -> None:
    layer = weight()
    kept: list[Figures] = []
    judge_layer(layer, [call(torch.zeros(2, 64).half(), torch.tensor([[0.0] * 32, [1.0] * 32]).half())], kept)
    assert kept[0][0, 2] == 0 and np.isnan(kept[0][1, 2])


def test_the_map_has_a_row_a_linear_and_a_column_a_token() -> None:
    """In order of execution, whatever order they were judged in; None where there is nothing."""
    so_far = of(
        CallRows("b", 0, 1, figures((1, 2, 0.5, 0), (8, 2, 0.25, 3))), CallRows("b", 1, 1, figures((3, 2, 1e-4, 0))),
        CallRows("a", 0, 0, figures((4, 2, 0, 0), (np.nan,) * 4)),
    )  # fmt: skip
    rows = so_far.map()
    assert rows is not None
    assert rows.layers == ("a", "b")
    assert rows.bins == ((0, 0, 0), (0, 1, 1), (1, 0, 0))
    assert values(rows.x, 3) == [[pytest.approx(4, rel=2e-3), None, None], pytest.approx([1, 8, 3], rel=2e-3)]
    assert values(rows.error, 3)[1] == pytest.approx([0.5, 0.25, 1e-4], rel=2e-3)
    smallest = values(rows.error, 3)[0][0]
    assert smallest is not None and smallest < 1e-30  # a zero: below all others, and not "none"
    assert rows.lost == ((1, 1, 3),)


def test_a_long_prompt_is_binned_by_its_largest_rows() -> None:
    """Its size is bounded, every row is in one bin, and an outlier is not lost between them."""
    long = np.ones((5000, 4), np.float32)
    long[:, 3] = 0
    long[3333, 0] = 11600
    calls = [CallRows("a", 0, 0, long), *(CallRows("a", s, 0, figures((1, 1, 1, 0))) for s in range(1, 200))]
    rows = of(*calls).map()
    assert rows is not None
    assert len(rows.bins) == MOST_BINS
    prefill = [b for b in rows.bins if b[0] == 0]
    assert [b[1] for b in prefill[1:]] == [b[2] + 1 for b in prefill[:-1]]
    assert (prefill[0][1], prefill[-1][2]) == (0, 4999)
    (there,) = [i for i, b in enumerate(prefill) if b[1] <= 3333 <= b[2]]
    (x,) = values(rows.x, MOST_BINS)
    assert x[there] == pytest.approx(11600, rel=2e-3) and max(v for v in x if v is not None) == x[there]


def test_shares_of_ranks_make_no_map() -> None:
    so_far = RowsSoFar()
    so_far.add(CallRows("a", 0, 0, figures((1, 1, 1, 0))), "0")
    assert so_far.map() is None


def test_the_file(tmp_path) -> None:
    """What is written is read again; damage is said."""
    rows = of(CallRows("a", 0, 0, figures((1, 1, 1, 2)))).map()
    assert rows is not None
    path = rows_file(tmp_path, "b", "p")
    assert read_rows(path) is None
    write_rows(path, rows)
    assert read_rows(path) == rows
    for text in ('{"layers": 3}', path.read_text().replace('"a"', '"a", "b"')):
        path.write_text(text)
        with pytest.raises(CaptureError, match="damaged"):
            read_rows(path)
