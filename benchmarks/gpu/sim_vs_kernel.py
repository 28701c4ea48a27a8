"""`sim-exllama` against vLLM's live kernel, bit by bit: python -m benchmarks.gpu.sim_vs_kernel --out FILE.json

One 128-row block of K at a time: x is zero outside it, so every other block adds zero to the output and the order of
the atomics does not matter. Zeros of both signs are equal (the output starts at +0), and so are all NaNs.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from gptq_diff.checkpoint.packing import pack_rows
from gptq_diff.kernels.fastpath import CHAINS, PreparedWeight, prepare, run_prepared
from gptq_diff.kernels.fastpath.chains import BLOCK_ROWS
from gptq_diff.kernels.vllm_gemm.op import GemmWeight, multiply, shuffle, vllm_ops
from gptq_diff.kernels.vllm_gemm.paths import FAST, PathGuard

K = 3 * BLOCK_ROWS
COLUMNS = (4096, 1056)
ROWS = (50, 37, 50, 8, 50, 1, 50, 13)
GROUPS = (32, 64, 128, K)
ORDINARY, LARGE, TINY, SPECIAL = range(4)
KINDS = (ORDINARY, LARGE, TINY, LARGE, ORDINARY, TINY, LARGE, TINY, ORDINARY, SPECIAL)
SPECIALS = (0.0, -0.0, 6e-8, -6e-5, 1.0, 65504.0, -65504.0, float("inf"), float("-inf"), float("nan"))
EXAMPLES = 10


@dataclass
class Counts:
    """What was compared for one bit width.

    large: values from block rows with a lane sum above 60000. stored_zeros: how many of the 2^bits occurred.
    """

    bits: int
    values: int = 0
    differing: int = 0
    nonfinite: int = 0
    large: int = 0
    subnormal: int = 0
    stored_zeros: int = 0
    shapes: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Case:
    """One random weight: codes minus zeros in the kernel's row order, and the live kernel's own tensors.

    codes_KN: int16 [K, N]. scales_GN: float16. order_K: row of x that each of these rows multiplies.
    """

    codes_KN: torch.Tensor
    scales_GN: torch.Tensor
    order_K: torch.Tensor
    group_size: int
    stored: frozenset[int]
    weight: GemmWeight
    prepared: PreparedWeight


def make_case(ops: ModuleType, bits: int, columns: int, group: int, device: str, seed: int, **how: bool) -> Case:
    """how: desc_act, v2."""
    draw = torch.Generator().manual_seed(seed)
    groups = K // group
    codes = torch.randint(0, 2**bits, (K, columns), generator=draw, dtype=torch.int16)
    stored = torch.randint(0, 2**bits, (groups, columns), generator=draw, dtype=torch.int16)
    scales = (0.002 + 0.02 * torch.rand((groups, columns), generator=draw)).to(torch.float16)
    order = torch.empty(0, dtype=torch.int32)
    row_order = torch.arange(K)
    if how["desc_act"]:
        g_idx = (torch.arange(K) // group)[torch.randperm(K, generator=draw)]
        order = torch.argsort(g_idx).to(torch.int32)
        row_order = order.long()
    qweight = pack_rows(codes, bits).to(device)
    order = order.to(device)
    shuffle(ops, qweight, order, bits)
    qzeros = pack_rows(stored.T.contiguous(), bits).T.contiguous().to(device)
    weight = GemmWeight(qweight, qzeros, scales.to(device), order, bits, v2=how["v2"])
    zeros = (stored + (0 if how["v2"] else 1)).repeat_interleave(group, dim=0)
    ours = codes[row_order] - zeros
    prepared = prepare(ours.numpy(), scales.numpy(), group, bits)
    return Case(ours, scales, row_order, group, frozenset(torch.unique(stored).tolist()), weight, prepared)


def lane_sums(x_MK: torch.Tensor, codes_KN: torch.Tensor, bits: int) -> torch.Tensor:
    """[blocks, M]: largest |sum| of a lane of each block, before the scale; of a word for 8 bit, which has no lanes."""
    word = CHAINS[bits].word
    x = x_MK.float().view(-1, K // word, word).transpose(0, 1)
    codes = codes_KN.float().view(K // word, word, -1)
    lanes = [slice(None)] if CHAINS[bits].lane == 0 else [slice(0, None, 2), slice(1, None, 2)]
    sums = torch.stack([torch.bmm(x[:, :, lane], codes[:, lane]).abs().amax(dim=2) for lane in lanes]).amax(dim=0)
    return sums.view(K // BLOCK_ROWS, -1, sums.shape[1]).amax(dim=1)


def make_x(case: Case, rows: int, seed: int) -> torch.Tensor:
    """float16 [M, K] in the kernel's row order, rows of every kind."""
    draw = torch.Generator().manual_seed(seed)
    device = case.weight.qweight.device
    kinds = torch.tensor([KINDS[i % len(KINDS)] for i in torch.randperm(rows, generator=draw).tolist()])
    x = torch.randn((rows, K), generator=draw)
    x *= torch.exp2(torch.rand((rows, 1), generator=draw) * 12 - 6)
    sums = lane_sums(x.to(device), case.codes_KN.to(device), case.weight.bits).cpu()
    wanted = 60500 + 25000 * torch.rand(sums.shape, generator=draw)
    factor = (wanted / sums).T.repeat_interleave(BLOCK_ROWS, dim=1)
    large = (x * factor).clamp(-65504, 65504)
    rms = float(case.codes_KN.float().square().mean().sqrt() * case.scales_GN.float().mean()) * BLOCK_ROWS**0.5
    tiny = x / x.square().mean(dim=1, keepdim=True).sqrt() * torch.exp2(-15 - 3 * torch.rand((rows, 1), generator=draw))
    choice = torch.randint(0, len(SPECIALS), x.shape, generator=draw)
    rare = torch.rand(x.shape, generator=draw) < 0.004
    special = torch.where(rare, torch.tensor(SPECIALS)[choice], x)
    kind = kinds[:, None]
    mixed = torch.where(kind == LARGE, large, torch.where(kind == TINY, tiny / rms, x))
    return torch.where(kind == SPECIAL, special, mixed).to(torch.float16)


def compare(case: Case, guard: PathGuard, x_MK: torch.Tensor, counts: Counts) -> None:
    """All blocks of one x; x comes in the kernel's row order and goes to the kernel in the checkpoint's."""
    bits, device = case.weight.bits, case.weight.qweight.device
    simulated = torch.from_numpy(run_prepared(x_MK.numpy(), case.prepared, per_block=True)).to(device)
    sums = lane_sums(torch.nan_to_num(x_MK.float()).to(device), case.codes_KN.to(device), bits)
    for block in range(K // BLOCK_ROWS):
        part = torch.zeros_like(x_MK)
        rows = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
        part[:, case.order_K[rows]] = x_MK[:, rows]
        live = multiply(guard, part.to(device), case.weight)
        count_block(counts, simulated[block], live, sums[block] > 60000, f"group {case.group_size} block {block}")


def count_block(counts: Counts, ours: torch.Tensor, live: torch.Tensor, large_M: torch.Tensor, where: str) -> None:
    """Add one block's figures; the first differing values are kept as words."""
    same = (ours == live) | (torch.isnan(ours) & torch.isnan(live))
    counts.values += live.numel()
    counts.differing += int((~same).sum())
    counts.nonfinite += int((~torch.isfinite(live)).sum())
    counts.large += int(large_M.sum()) * live.shape[1]
    magnitude = live.float().abs()
    counts.subnormal += int(((magnitude > 0) & (magnitude < 2.0**-14)).sum())
    for row, column in torch.nonzero(~same)[: max(0, EXAMPLES - len(counts.examples))].tolist():
        pair = [float(t[row, column]) for t in (ours, live)]
        counts.examples.append(f"{where} [{row}, {column}]: simulated {pair[0]!r}, kernel {pair[1]!r}")


def run_bits(ops: ModuleType, guard: PathGuard, bits: int, device: str, target: int) -> Counts:
    """Cases over all groups, widths, orders and formats until `target` values have been compared."""
    counts, started = Counts(bits), time.perf_counter()
    stored: set[int] = set()
    step = CHAINS[bits].group_step
    grid = [
        (n, g, d, v) for n in COLUMNS for g in GROUPS if g % step == 0 for d in (False, True) for v in (False, True)
    ]
    for seed, (columns, group, desc_act, v2) in enumerate(itertools.cycle(grid)):
        if counts.values >= target and seed >= len(grid):
            break
        case = make_case(ops, bits, columns, group, device, seed, desc_act=desc_act, v2=v2)
        stored.update(case.stored)
        for i, rows in enumerate(ROWS):
            compare(case, guard, make_x(case, rows, 1000 * seed + i), counts)
        shape = f"N {columns}, group {group}{', desc_act' if desc_act else ''}{', v2' if v2 else ''}"
        counts.shapes += [shape] if shape not in counts.shapes else []
    counts.stored_zeros = len(stored)
    counts.seconds = round(time.perf_counter() - started, 1)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--bits", type=int, nargs="*", default=[4, 3, 2, 8])
    parser.add_argument("--values", type=int, default=105_000_000, help="for each bit width")
    parser.add_argument("--device", default="cuda:0")
    asked = parser.parse_args()
    import vllm

    ops = vllm_ops()
    guard = PathGuard(ops, asked.device)
    report = {"vllm": vllm.__version__, "torch": torch.__version__, "numpy": np.__version__, "rows": list(ROWS), "k": K}
    report["gpu"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    results = []
    for bits in asked.bits:
        guard.force = None
        boundary = guard.boundary(bits)
        guard.force = FAST
        counts = run_bits(ops, guard, bits, asked.device, asked.values)
        results.append({"fast_path_rows": boundary, **asdict(counts)})
        print(json.dumps({k: v for k, v in results[-1].items() if k != "shapes"}), flush=True)
        asked.out.write_text(json.dumps({**report, "results": results}, indent=1))


if __name__ == "__main__":
    main()
