"""The simulators' rates at SmolLM2's down_proj shape; compile time is not counted, nor unpacking."""

from __future__ import annotations

import numpy as np

from benchmarks.figure import Figure, median, side_by_side
from gptq_diff.kernels.fastpath import PreparedWeight, prepare, run_prepared, spread_prepared
from gptq_diff.kernels.hgemm_model import multiply_prepared, prepare_half

K, N, M, GROUP = 1536, 576, 37, 32
REPEATS = {1: 40, M: 4}
"""Products in one measurement, by M: so that it takes some 40 ms."""


def weight(bits: int, rng: np.random.Generator) -> PreparedWeight:
    """Codes over the whole range, zero in the middle, scales that give outputs of ordinary size."""
    middle = 1 << (bits - 1)
    codes_KN = rng.integers(-middle, middle, (K, N)).astype(np.int16)
    scales_GN = rng.uniform(0.002, 0.02, (K // GROUP, N)).astype(np.float16)
    return prepare(codes_KN, scales_GN, GROUP, bits)


def figures() -> list[Figure]:
    """Multiply-adds a second, by bit width and number of rows."""
    rng = np.random.default_rng(0)
    x_MK = {rows: rng.standard_normal((rows, K)).astype(np.float16) for rows in REPEATS}
    weights = {bits: weight(bits, rng) for bits in (2, 3, 4, 8)}
    half = prepare_half(rng.normal(0, 0.1, (K, N)).astype(np.float16))
    works = {(f"sim-exllama, {bits} bit", rows): _product(run_prepared, x_MK[rows], weights[bits])
             for bits in (4, 2, 3, 8) for rows in (M, 1)}  # fmt: skip
    works[("sim-exllama with its error bounds, 4 bit", M)] = _product(spread_prepared, x_MK[M], weights[4])
    for rows in (M, 1):
        works[("sim-reconstruct", rows)] = _product(multiply_prepared, x_MK[rows], half)
    times = side_by_side({f"{name}, M={rows}": work for (name, rows), work in works.items()})
    found = []
    for name, rows in works:
        what = f"{name}, M={rows}"
        rate = REPEATS[rows] * rows * K * N / median(times[what]) / 1e9
        required = 3.0 if (name, rows) == ("sim-exllama, 4 bit", M) else None
        found.append(Figure(what, rate, "G multiply-adds/s", least=required))
    return found


def _product(run, x_MK, prepared):
    return lambda: [run(x_MK, prepared) for _ in range(REPEATS[len(x_MK)])]
