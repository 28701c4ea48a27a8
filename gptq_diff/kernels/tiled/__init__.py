"""Products with large packed linears, unpacked a tile at a time."""

from gptq_diff.kernels.strips import STRIP
from gptq_diff.kernels.tiled.products import (
    DEPTH,
    LargestSums,
    TiledWeight,
    Watched,
    can_tile,
    largest_sums,
    product,
    product_and_norms,
    product_of_squares,
    watched_product,
)

__all__ = [
    "DEPTH", "STRIP", "LargestSums", "TiledWeight", "Watched", "can_tile", "largest_sums", "product",
    "product_and_norms", "product_of_squares", "watched_product",
]  # fmt: skip
