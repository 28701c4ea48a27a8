"""vLLM's fused GPTQ kernel, simulated rounding by rounding."""

from gptq_diff.kernels.fastpath.chains import CHAINS, Chain, refusal
from gptq_diff.kernels.fastpath.headroom import LaneSum, largest_lane_sum
from gptq_diff.kernels.fastpath.simulate import (
    fast_path_spread,
    run_packed,
    run_prepared,
    simulate_fast_path,
    spread_prepared,
)
from gptq_diff.kernels.fastpath.weight import PreparedWeight, prepare

__all__ = [
    "CHAINS",
    "Chain",
    "LaneSum",
    "PreparedWeight",
    "fast_path_spread",
    "largest_lane_sum",
    "prepare",
    "refusal",
    "run_packed",
    "run_prepared",
    "simulate_fast_path",
    "spread_prepared",
]
