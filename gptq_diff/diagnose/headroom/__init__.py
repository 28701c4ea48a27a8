"""Headroom: how far the sums of a layer's kernels are from the largest float16."""

from gptq_diff.diagnose.headroom.arithmetics import arithmetics_of, bits_left, every_arithmetic
from gptq_diff.diagnose.headroom.measure import measure
from gptq_diff.diagnose.headroom.nearest import Nearest
from gptq_diff.diagnose.headroom.share import Share, share_of

__all__ = ["Nearest", "Share", "arithmetics_of", "bits_left", "every_arithmetic", "measure", "share_of"]
