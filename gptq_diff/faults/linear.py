"""A packed linear as numpy arrays, and what its bits mean, worked out here a second time, bit by bit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Linear:
    """One quantised linear.

    name: its path. bits: of a code. offset: what is added to a stored zero point (1 in v1, 0 in v2).
    group_size: rows of K that share a scale. sym, desc_act: as the configuration says.
    qweight: int32 [K * bits / 32, N]. qzeros: int32 [G, N * bits / 32]. scales: float16 [G, N].
    g_idx: int32 [K]. bias: float16 [N], or None.
    """

    name: str
    bits: int
    offset: int
    group_size: int
    sym: bool
    desc_act: bool
    qweight: Array
    qzeros: Array
    scales: Array
    g_idx: Array
    bias: Array | None

    @property
    def rows(self) -> int:
        """K."""
        return int(self.qweight.shape[0]) * 32 // self.bits

    @property
    def columns(self) -> int:
        """N."""
        return int(self.qweight.shape[1])

    @property
    def groups(self) -> int:
        """G."""
        return int(self.scales.shape[0])

    def codes(self) -> npt.NDArray[np.int64]:
        """[K, N], 0 to 2^bits - 1."""
        codes: npt.NDArray[np.int64] = unpacked(self.qweight.T, self.bits).T
        return codes

    def zeros(self) -> npt.NDArray[np.int64]:
        """[G, N]: true zero points."""
        zeros: npt.NDArray[np.int64] = unpacked(self.qzeros, self.bits) + self.offset
        return zeros

    def levels(self) -> npt.NDArray[np.int64]:
        """[K, N]: code minus zero point."""
        levels: npt.NDArray[np.int64] = self.codes() - self.zeros()[self.g_idx]
        return levels

    def weight(self) -> npt.NDArray[np.float64]:
        """[K, N]: the exact weight."""
        with np.errstate(invalid="ignore"):  # an infinite scale times a level of zero
            weight: npt.NDArray[np.float64] = self.levels() * self.scales.astype(np.float64)[self.g_idx]
        return weight

    def with_codes(self, codes_KN: Array) -> Linear:
        """The same with other codes."""
        return replace(self, qweight=packed(codes_KN.T, self.bits).T.copy())

    def with_zeros(self, zeros_GN: Array) -> Linear:
        """The same with other true zero points, each of which this format must be able to store."""
        stored = zeros_GN.astype(np.int64) - self.offset
        assert stored.min() >= 0 and stored.max() < 2**self.bits, "a zero point that cannot be stored"
        return replace(self, qzeros=packed(stored, self.bits))

    def tensors(self) -> dict[str, Array]:
        """By their names in a checkpoint."""
        parts = {"qweight": self.qweight, "qzeros": self.qzeros, "scales": self.scales, "g_idx": self.g_idx}
        if self.bias is not None:
            parts["bias"] = self.bias
        return {f"{self.name}.{part}": np.ascontiguousarray(array) for part, array in parts.items()}


def unpacked(words_RW: Array, bits: int) -> npt.NDArray[np.int64]:
    """[R, W * 32 / bits]: the codes of each row's little-endian bit stream."""
    stream = np.unpackbits(np.ascontiguousarray(words_RW).view(np.uint8), axis=1, bitorder="little")
    weights = 1 << np.arange(bits, dtype=np.int64)
    found: npt.NDArray[np.int64] = stream.reshape(stream.shape[0], -1, bits).astype(np.int64) @ weights
    return found


def packed(codes_RC: Array, bits: int) -> npt.NDArray[np.int32]:
    """The inverse: int32 [R, C * bits / 32]."""
    codes = codes_RC.astype(np.int64)
    stream = (codes[:, :, None] >> np.arange(bits)) & 1
    filled = np.packbits(stream.reshape(len(codes), -1).astype(np.uint8), axis=1, bitorder="little")
    return np.ascontiguousarray(filled).view(np.int32)
