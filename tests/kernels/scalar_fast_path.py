"""vLLM's fused GPTQ kernel one number at a time, in exact rational arithmetic with rounding as IEEE 754 defines it.

Written from q_gemm.cu and from the definition of the formats; it shares nothing with gptq_diff. Numbers are Python
floats that hold a half or a single exactly, so that signed zeros, infinities and NaN are at hand.
"""

from __future__ import annotations

import math
from fractions import Fraction

HALF = (11, -14, 65504)  # significant bits, exponent of the smallest normal, largest finite value
SINGLE = (24, -126, 2**128 - 2**104)


def rounded(exact, form):
    """The nearest value of the format to a rational that is not zero, ties to the even one."""
    digits, lowest, largest = form
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    if Fraction(2) ** exponent > size:
        exponent -= 1
    assert Fraction(2) ** exponent <= size < Fraction(2) ** (exponent + 1)
    quantum = Fraction(2) ** (max(exponent, lowest) - digits + 1)
    value = round(size / quantum) * quantum  # Python rounds a Fraction half to even
    return math.copysign(math.inf if value > largest else float(value), exact)


def fma(a, b, c, form):
    """a * b + c rounded once."""
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact:
        return rounded(exact, form)
    return a * b + c if a == 0 or b == 0 else 0.0  # the sign of a zero sum of zeros is Python's own, else +0


def add(a, b, form):
    return fma(1.0, a, b, form)


def times(a, b, form):
    if not (math.isfinite(a) and math.isfinite(b)) or a == 0 or b == 0:
        return a * b
    return rounded(Fraction(a) * Fraction(b), form)


def lane(x, w, watch):
    total = 0.0
    for value, code in zip(x, w):
        total = fma(code, value, total, HALF)
        watch.append(total)
    return total


def word_4(x, w, scale, total, watch):
    both = add(lane(x[0::2], w[0::2], watch), lane(x[1::2], w[1::2], watch), SINGLE)
    return fma(both, scale, total, SINGLE)


def word_2_or_3(x, w, scale, total, watch):
    both = add(lane(x[0::2], w[0::2], watch), lane(x[1::2], w[1::2], watch), HALF)
    return fma(both, scale, total, HALF)


def word_8(x, w, scale, total, watch):
    products = 0.0
    for value, code in zip(x, w):
        products = fma(code, value, products, SINGLE)
        watch.append(products)
    scaled = times(products, scale, SINGLE)
    return add(to_half(scaled), total, HALF)


def to_half(value):
    return value if value == 0 or not math.isfinite(value) else rounded(Fraction(value), HALF)


WORDS = {2: (16, word_2_or_3), 3: (32, word_2_or_3), 4: (8, word_4), 8: (8, word_8)}


def output(x, codes, zeros, scales, g_idx, bits):
    """One element of y: (y, results of the blocks, largest finite or infinite |partial sum before the scale|).

    x: K halves; codes: K stored codes; zeros, scales: one a group, zeros as the kernel subtracts them;
    g_idx: the group of each row, in any order.
    """
    order = sorted(range(len(x)), key=lambda k: g_idx[k])  # Python's sort is stable
    size, word = WORDS[bits]
    y, blocks, watch = 0.0, [], []
    for start in range(0, len(x), 128):
        total = 0.0
        for k in range(start, min(start + 128, len(x)), size):
            rows = order[k : k + size]
            group = g_idx[rows[0]]
            weights = [float(codes[row] - zeros[g_idx[row]]) for row in rows]
            total = word([float(x[row]) for row in rows], weights, float(scales[group]), total, watch)
        blocks.append(to_half(total))
        y = add(y, blocks[-1], HALF)
    return y, blocks, max((abs(value) for value in watch if not math.isnan(value)), default=0.0)
