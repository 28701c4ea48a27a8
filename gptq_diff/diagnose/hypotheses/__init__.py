"""One family of hypotheses a file; importing the folder enters them all."""

from gptq_diff.diagnose.hypotheses import (
    lost_slices,
    nibbles,
    precision,
    results,
    row_groups,
    scale_factor,
    scales,
    shards,
    zero_points,
)
from gptq_diff.diagnose.hypotheses.base import MAKERS, Variant

__all__ = [
    "MAKERS",
    "Variant",
    "lost_slices",
    "nibbles",
    "precision",
    "results",
    "row_groups",
    "scale_factor",
    "scales",
    "shards",
    "zero_points",
]
