"""Dequantisation against a plain loop over Python numbers, for both implementations."""

from __future__ import annotations

import functools
import random
import sys
import threading
from collections.abc import Callable
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gptq_diff.checkpoint
from gptq_diff.checkpoint import dequant
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.records import LayerSpec
from tests.checkpoint.build import pack_columns, pack_lines

BACKENDS = ["numba", "torch"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "torch":
        monkeypatch.setattr(dequant, "_compiled", lambda: None)
    else:
        pytest.importorskip("numba")
    assert dequant.dequant_backend() == request.param
    return str(request.param)


class Case:
    """One random linear, as lists of Python numbers and packed."""

    def __init__(
        self,
        bits: int,
        groups: int,
        per_group: int,
        n: int,
        fmt: str,
        act_order: bool,
        dtype: torch.dtype,
        seed: int,
    ) -> None:
        rng = random.Random(seed)
        self.k, self.n = groups * per_group, n
        offset = 1 if fmt == "gptq" else 0
        self.codes = [[rng.randrange(2**bits) for _ in range(n)] for _ in range(self.k)]
        stored = [[rng.randrange(2**bits) for _ in range(n)] for _ in range(groups)]
        self.zeros = [[zero + offset for zero in row] for row in stored]
        scales = torch.tensor(
            [[rng.uniform(-1, 1) * 2.0 ** rng.randint(-20, 10) for _ in range(n)] for _ in range(groups)]
        )
        self.groups = [row // per_group for row in range(self.k)]
        if act_order:
            rng.shuffle(self.groups)
        self.linear = PackedLinear(
            spec=LayerSpec("x", self.k, n, bits, per_group, False, act_order, fmt, False),
            qweight=pack_columns(self.codes, bits),
            qzeros=pack_lines(stored, bits),
            scales=scales.to(dtype),
            g_idx=torch.tensor(self.groups, dtype=torch.int32) if act_order else None,
            bias=None,
        )
        self.scales = self.linear.scales.tolist()

    def unscaled(self) -> list[list[int]]:
        return [[self.codes[k][n] - self.zeros[self.groups[k]][n] for n in range(self.n)] for k in range(self.k)]

    def exact(self) -> list[list[Fraction]]:
        unscaled = self.unscaled()
        return [
            [unscaled[k][n] * Fraction(self.scales[self.groups[k]][n]) for n in range(self.n)] for k in range(self.k)
        ]


cases = st.builds(
    Case,
    bits=st.sampled_from([2, 3, 4, 8]),
    groups=st.integers(1, 3),
    per_group=st.sampled_from([32, 64]),
    n=st.sampled_from([32, 64]),
    fmt=st.sampled_from(["gptq", "gptq_v2"]),
    act_order=st.booleans(),
    dtype=st.sampled_from([torch.float16, torch.bfloat16]),
    seed=st.integers(0, 2**31),
)


@pytest.mark.parametrize("plain", [False, True])
@given(case=cases)
@settings(max_examples=12, deadline=None)
def test_every_weight_is_exact(plain: bool, case: Case) -> None:
    """float32 holds (code - zero) * scale without rounding: equal as fractions, not merely close."""
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(dequant, "_compiled", lambda: None)
        w_KN = dequant.dequantise(case.linear)
        codes_KN = dequant.unscaled_codes(case.linear)
    assert (w_KN.dtype, codes_KN.dtype) == (torch.float32, torch.int16)
    assert codes_KN.tolist() == case.unscaled()
    assert [[Fraction(value) for value in row] for row in w_KN.tolist()] == case.exact()
    assert dequant.group_of_row(case.linear).tolist() == case.groups


def random_linear(
    k: int, n: int, bits: int, group_size: int, scales_GN: torch.Tensor, fmt: str = "gptq"
) -> PackedLinear:
    generator = torch.Generator().manual_seed(k + n + bits)
    groups = -(-k // group_size)
    words = torch.randint(-(2**31), 2**31, (k * bits // 32, n), dtype=torch.int64, generator=generator)
    zeros = torch.randint(-(2**31), 2**31, (groups, n * bits // 32), dtype=torch.int64, generator=generator)
    spec = LayerSpec("x", k, n, bits, group_size, False, False, fmt, False)
    return PackedLinear(spec, words.to(torch.int32), zeros.to(torch.int32), scales_GN, None, None)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_both_implementations_give_the_same_bits(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All float16 patterns as scales, NaN, infinities, subnormals and negative zeros included."""
    pytest.importorskip("numba")
    scales_GN = (
        torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16).view(32, 2048)
    )  # 32 groups of 8 rows
    linear = random_linear(32 * 8, 2048, bits, 8, scales_GN)
    compiled, codes = dequant.dequantise(linear), dequant.unscaled_codes(linear)
    monkeypatch.setattr(dequant, "_compiled", lambda: None)
    plain = dequant.dequantise(linear)
    assert torch.equal(compiled.isnan(), plain.isnan())
    same = compiled.view(torch.int32) == plain.view(torch.int32)
    assert bool((same | compiled.isnan()).all())
    assert torch.equal(codes, dequant.unscaled_codes(linear))


def test_a_large_layer_split_over_threads_is_the_small_ones_put_together(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No row is lost or written twice at the borders between threads."""
    linear = random_linear(96, 64, 3, 32, torch.rand(3, 64).half())
    whole = dequant.dequantise(linear)
    monkeypatch.setattr(dequant, "_WEIGHTS_PER_THREAD", 7)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert torch.equal(dequant.dequantise(linear), whole)


def test_two_threads_may_dequantise_at_once(backend: str) -> None:
    """A prefetching thread and the main one do not disturb each other."""
    linear = random_linear(512, 256, 4, 64, torch.rand(8, 256).half())
    whole = dequant.dequantise(linear)
    results: list[torch.Tensor] = []
    threads = [threading.Thread(target=lambda: results.append(dequant.dequantise(linear))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [torch.equal(result, whole) for result in results] == [True] * 4


def test_other_dtypes_are_rounded_once(backend: str) -> None:
    """float16 weights are the exact ones rounded to nearest, what an engine's own half arithmetic gives."""
    linear = random_linear(64, 64, 4, 32, (torch.rand(2, 64) * 0.1).half())
    exact = dequant.dequantise(linear, torch.float64)
    assert torch.equal(exact, dequant.dequantise(linear).double())
    assert torch.equal(dequant.dequantise(linear, torch.float16), exact.half())


def test_out_is_reused(backend: str) -> None:
    """With `out` no memory is taken: the weight is a view of the buffer, which may be larger."""
    linear = random_linear(64, 32, 4, 32, torch.rand(2, 32).half())
    buffer = torch.full((5000,), 7.0)
    w_KN = dequant.dequantise(linear, out=buffer)
    assert w_KN.data_ptr() == buffer.data_ptr()
    assert torch.equal(w_KN, dequant.dequantise(linear))
    assert bool((buffer[64 * 32 :] == 7.0).all())


def test_without_numba_the_plain_loops_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine's interpreter may lack numba: the import fails once, and torch takes over."""
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "gptq_diff.checkpoint.dequant_numba", raising=False)
    monkeypatch.delattr(gptq_diff.checkpoint, "dequant_numba", raising=False)
    monkeypatch.setattr(dequant, "_compiled", functools.lru_cache(dequant._compiled.__wrapped__))
    assert dequant.dequant_backend() == "torch"


def test_compiles_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """numba raises RuntimeError when it finds no place for its cache; the loops are then compiled for this run only."""
    numba = pytest.importorskip("numba")
    from gptq_diff.checkpoint import dequant_numba

    def njit(*, nogil: bool, cache: bool = False) -> Callable[[object], object]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: function

    monkeypatch.setattr(numba, "njit", njit)
    assert dequant_numba.compile_loops()["zeros"] is dequant_numba._zeros
