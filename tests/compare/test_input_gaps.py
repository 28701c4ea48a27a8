"""Inputs against the reference's: the plain figure bit for bit, however many are compared at once."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.compare import input_gaps
from gptq_diff.compare.input_gaps import gap, gaps

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def made(rows: int, columns: int, dtype: torch.dtype = torch.float16, seed: int = 0) -> input_gaps.Pair:
    generator = torch.Generator().manual_seed(seed)
    x_MK = torch.randn(rows, columns, generator=generator) * 10 ** (seed % 5 - 2)
    return x_MK.to(dtype), x_MK + 1e-3 * torch.randn(rows, columns, generator=generator)


def plainly(x_MK: torch.Tensor, reference_x: torch.Tensor) -> float:
    """As one would write it down, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wide = torch.promote_types(x_MK.dtype, torch.float32)
        difference = x_MK.to(wide) - reference_x.to(wide)
        return float(torch.linalg.vector_norm(difference)) / float(torch.linalg.vector_norm(reference_x))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (4, 7), (37, 576), (5, 27648)])
def test_a_gap_is_the_plain_figure(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """In whatever dtype the input was captured; and nothing that was captured is written to."""
    x_MK, reference_x = made(*shape, dtype)
    before = x_MK.clone(), reference_x.clone()
    (found,) = gaps([(x_MK, reference_x)])
    assert found == plainly(x_MK, reference_x)
    assert torch.equal(x_MK, before[0]) and torch.equal(reference_x, before[1])


@pytest.mark.parametrize("share", [1, 5000, 1 << 25])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_many_at_once_are_each_as_alone(threads: int, share: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, in their order, in one thread and in several, memory being used again by one shape and another."""
    monkeypatch.setattr(input_gaps, "SHARE", share)
    pairs = [made(3 + i % 4, 100 + 50 * (i % 3), DTYPES[i % 4], seed=i) for i in range(23)]
    expected = [plainly(*pair) for pair in pairs]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert gaps(pairs) == expected
        assert torch.get_num_threads() == threads, "what follows has all threads again"
    finally:
        torch.set_num_threads(before)
    assert gaps([]) == []


def test_what_has_no_size_has_no_gap() -> None:
    """Other shapes, a NaN or an infinity on either side; and its neighbours are none the worse for it."""
    good = made(4, 8)
    wrong = [(good[0], good[1][:3])]
    for value in (float("nan"), float("inf")):
        for side in range(2):
            pair = [t.clone() for t in good]
            pair[side][1, 2] = value
            wrong.append((pair[0], pair[1]))
    assert gaps([good, *wrong, good]) == [plainly(*good), *[None] * 5, plainly(*good)]
    assert [gap(*pair) for pair in wrong] == [None] * 5


def test_a_reference_of_zeros_does_not_divide_by_zero() -> None:
    """Equal zeros differ by nothing."""
    zeros = torch.zeros(4, 8)
    assert gaps([(zeros.half(), zeros)]) == [0.0]


def test_threads_are_given_back_when_comparing_fails() -> None:
    """The judge goes on with all of them."""
    before = torch.get_num_threads()
    x_MK, reference_x = made(4, 8)
    with pytest.raises(RuntimeError):
        gaps([(x_MK, reference_x.to("meta"))])
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_every_thread_gets_neighbours_of_about_as_many_bytes(threads: int) -> None:
    """None is left out, none comes twice, none has twice its share."""
    pairs = [made(4, 40 + i) for i in range(50)]
    size = sum(a.nbytes + b.nbytes for a, b in pairs)
    shares = list(input_gaps._shares(pairs, size / threads))
    assert [id(a) for share in shares for a, _ in share] == [id(a) for a, _ in pairs]
    assert len(shares) in (threads, threads + 1)
    assert max(sum(a.nbytes + b.nbytes for a, b in share) for share in shares) < 2 * size / threads
