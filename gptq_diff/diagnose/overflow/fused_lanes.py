"""The fused exllama kernel: a few unscaled products in a float16 lane (gptq_diff.kernels.fastpath.chains)."""

from __future__ import annotations

import numpy as np
import torch

from gptq_diff.checkpoint.dequant import group_of_row, unscaled_codes
from gptq_diff.diagnose.overflow.base import Lost, Reproduced, compare, first_lost
from gptq_diff.diagnose.overflow.sums import lane as grown_lane
from gptq_diff.kernels.fastpath import CHAINS, refusal, simulate_fast_path
from gptq_diff.records import PartialSums

SAYS = "float16 accumulation of unscaled weights"
PATHS = frozenset({"exllama-fast", "exllama-v1"})


def fused_lanes(lost: Lost) -> Reproduced | None:
    """Simulate the fused kernel on these rows; None where it cannot multiply such a weight."""
    linear, spec = lost.linear, lost.linear.spec
    if refusal(spec.bits, spec.in_features, spec.group_size) or not CHAINS[spec.bits].lane:
        return None
    group_K = group_of_row(linear)
    counts = torch.bincount(group_K, minlength=spec.groups)
    if spec.group_size < spec.in_features and int(counts.max()) != int(counts.min()):
        return None
    order_K = torch.argsort(group_K, stable=True)
    columns = _columns(lost)
    codes_KC = unscaled_codes(linear)[:, columns][order_K].contiguous()
    scales_GC = linear.scales[:, columns].to(torch.float16).contiguous()
    x_MK = lost.x_MK[:, order_K].to(torch.float16).contiguous()
    group_size = min(spec.group_size, spec.in_features)
    y_MC = simulate_fast_path(x_MK.numpy(), codes_KC.numpy(), scales_GC.numpy(), group_size, spec.bits)
    here_MN = torch.zeros_like(lost.lost_MN)
    here_MN[:, columns] = ~torch.isfinite(torch.from_numpy(y_MC))
    row, column = first_lost(lost)
    at = int((columns == column).nonzero()[0])
    evidence, short, sums = lane_evidence(
        x_MK[row].double().numpy(), codes_KC[:, at].double().numpy(), order_K.numpy(), CHAINS[spec.bits].word,
        int(lost.rows_M[row]), column,
    )  # fmt: skip
    return compare(lost, here_MN, SAYS, evidence, PATHS, short, sums)


def _columns(lost: Lost) -> torch.Tensor:
    """Columns with a lost output, and as many others again: an arithmetic that loses those too is not the one."""
    lost_N = lost.lost_MN.any(dim=0)
    columns = torch.nonzero(lost_N).flatten()[:2048]
    others = torch.nonzero(~lost_N).flatten()
    step = max(1, len(others) // max(len(columns), 256))
    return torch.cat([columns, others[::step]]).sort().values


def lane_evidence(
    x_K: np.ndarray, codes_K: np.ndarray, order_K: np.ndarray, word: int, row: int, column: int
) -> tuple[tuple[str, ...], str, PartialSums | None]:
    """The lane of one output whose partial sum is largest: its sum, the product that carries it, and how it grows."""
    lanes = x_K.reshape(-1, word // 2, 2) * codes_K.reshape(-1, word // 2, 2)  # [words, products, lane]
    sums = np.cumsum(lanes, axis=1)
    index, step, lane = np.unravel_index(int(np.abs(sums).argmax()), sums.shape)
    terms = lanes[index, : step + 1, lane]
    k = int(index) * word + 2 * int(np.abs(terms).argmax()) + int(lane)
    total = float(sums[index, step, lane])
    one = (
        f"row {row}, column {column}: channel {int(order_K[k])} holds an activation of {x_K[k]:,.0f}, and times its "
        f"code of {codes_K[k]:g} (minus the zero point, not yet scaled) it is {x_K[k] * codes_K[k]:,.0f}"
    )
    beyond = "beyond what float16 holds (65,504)" if abs(total) >= 65520 else "of what float16 holds, 65,504"
    two = f"the lane's sum of {int(step) + 1} such products reaches {total:,.0f}, {beyond}"
    channels = [int(order_K[int(index) * word + 2 * i + int(lane)]) for i in range(word // 2)]
    grown = grown_lane("activations times codes, not yet scaled", row, column, channels, lanes[index, :, lane])
    return (one, two), f"an activation of {x_K[k]:,.0f} times a code of {codes_K[k]:g} passes 65,504", grown
