"""A matmul with a float16 accumulator: the running sum of scaled products, as cuBLAS's hgemm has it."""

from __future__ import annotations

import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.diagnose.overflow.base import Lost, Reproduced, compare, first_lost
from gptq_diff.diagnose.overflow.sums import accumulator
from gptq_diff.kernels.hgemm_model import STEP, simulate_reconstruct

SAYS = "float16 accumulation of scaled products"
PATHS = frozenset({"exllama-reconstruct"})


def scaled_sums(lost: Lost) -> Reproduced | None:
    """The stated model of hgemm, rows of K in ascending order; cuBLAS may split K and take another."""
    w_KN = dequantise(lost.linear, torch.float16)
    y_MN = torch.from_numpy(simulate_reconstruct(lost.x_MK.to(torch.float16).contiguous().numpy(), w_KN.numpy()))
    row, column = first_lost(lost)
    products_K = lost.x_MK[row].double() * w_KN[:, column].double()
    running = torch.cumsum(products_K, dim=0)[STEP - 1 :: STEP]
    at = int(running.abs().argmax())
    reached, after, end = float(running[at]), at * STEP + STEP - 1, float(products_K.sum())
    short = f"the running sum over rows of K reaches {reached:,.0f}"
    evidence: tuple[str, ...] = (
        f"row {int(lost.rows_M[row])}, column {column}: {short} after row {after}, beyond what float16 holds (65,504), "
        f"before it ends at {end:,.0f}",
    )
    if abs(reached) < 65504:
        evidence = ()
    sums = accumulator("scaled products", int(lost.rows_M[row]), column, products_K.numpy(), STEP)
    return compare(lost, ~torch.isfinite(y_MN), SAYS, evidence, PATHS, short, sums)
