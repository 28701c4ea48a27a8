"""Products with large packed linears, unpacked a tile at a time."""

from gptq_diff.kernels.strips import STRIP
from gptq_diff.kernels.tiled.products import (
    DEPTH,
    LargestSums,
    TiledWeight,
    can_tile,
    largest_sums,
    product,
    product_and_norms,
    product_of_squares,
)

__all__ = [
    "DEPTH", "STRIP", "LargestSums", "TiledWeight", "can_tile", "largest_sums", "product", "product_and_norms",
    "product_of_squares",
]  # fmt: skip
