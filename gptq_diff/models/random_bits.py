"""Seeded random numbers whose bits never change.

Only the raw stream of a bit generator is used: NumPy promises it for good, and does not promise the streams of
`Generator`'s distributions (NEP 19, https://numpy.org/neps/nep-0019-rng-policy.html).
"""

from __future__ import annotations

import zlib

import numpy as np
import numpy.typing as npt


def random_words(seed: int, name: str, count: int) -> npt.NDArray[np.uint32]:
    """`count` random 32-bit words of the stream that belongs to this seed and name."""
    stream = np.random.SFC64(np.random.SeedSequence([seed, zlib.crc32(name.encode())]))
    raw: npt.NDArray[np.uint64] = stream.random_raw(-(-count // 2))
    return raw.astype("<u8", copy=False).view("<u4")[:count]
