"""The numba pieces that the simulators' loops are made of: decorators with types, and half rounding in hardware.

`fptrunc` and `fpext` between float and half become vcvtps2ph and vcvtph2ps on x86 with F16C (fcvt on ARM), which
LLVM vectorises; numba itself has no float16 arithmetic on CPUs. Import this module only where `available()` of
`gptq_diff.kernels.compiler` is true: without F16C the conversion would be a call of a function that is not there.
"""

from __future__ import annotations

from typing import Any, Callable, TypeVar, cast

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compile at the first call, without the interpreter lock, and keep the result beside the source if possible."""
    try:
        return cast("Function", njit(cache=True, nogil=True)(function))
    except RuntimeError:  # numba finds no folder it may write its cache to
        return cast("Function", njit(nogil=True)(function))


def inlined(function: Function) -> Function:
    """Compile into every caller, so that LLVM sees constant trip counts and can vectorise the loop around it."""
    return cast("Function", njit(forceinline=True)(function))


def _instruction(signature: Any, build: Callable[..., Any]) -> Any:
    """What numba wants of an intrinsic of that signature whose LLVM code is build(builder, *arguments)."""
    return signature, lambda _context, builder, _signature, arguments: build(builder, *arguments)


def _intrinsic(function: Callable[..., Any]) -> Any:
    return intrinsic(function)


@_intrinsic
def round_half(_typing: Any, value: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """Round a float32 once to half, ties to even, and widen it again (subnormals kept, overflow to inf)."""
    return _instruction(
        types.float32(types.float32),
        lambda builder, value: builder.fpext(builder.fptrunc(value, ir.HalfType()), ir.FloatType()),
    )


@_intrinsic
def fma(_typing: Any, a: Any, b: Any, c: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """The float32 nearest to a * b + c: one rounding."""
    return _instruction(
        types.float32(types.float32, types.float32, types.float32), lambda builder, *abc: builder.fma(*abc)
    )


@_intrinsic
def to_bits(_typing: Any, value: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """The bits of a float32 as int32."""
    return _instruction(types.int32(types.float32), lambda builder, value: builder.bitcast(value, ir.IntType(32)))


@_intrinsic
def from_bits(_typing: Any, bits: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """The float32 of these int32 bits."""
    return _instruction(types.float32(types.int32), lambda builder, bits: builder.bitcast(bits, ir.FloatType()))


@_intrinsic
def half_of_bits(_typing: Any, bits: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """The half with these uint16 bits as float32."""
    return _instruction(
        types.float32(types.uint16),
        lambda builder, bits: builder.fpext(builder.bitcast(bits, ir.HalfType()), ir.FloatType()),
    )


@inlined
def round_sum(a: Any, b: Any) -> Any:
    """The exact sum of two float32 rounded once to half.

    The float32 sum is moved to odd first (see `gptq_diff.numerics.fp16.add_to_odd`), since rounding it to nearest
    before rounding it to half would be two roundings. Infinite sums have a NaN error and stay as they are.
    """
    total = a + b
    part = total - a
    error = (a - (total - part)) + (b - part)
    bits = to_bits(total)
    toward = np.int32(error > 0) - np.int32(error < 0)
    toward = -toward if bits < 0 else toward
    return round_half(from_bits(bits + (toward if bits & np.int32(1) == 0 else np.int32(0))))


@inlined
def ulp_squared(half: Any) -> Any:
    """The square of a half's spacing (2**-24 at least) over 2**-20: the square of its power of two."""
    power = from_bits(max(to_bits(half) & np.int32(0x7F800000), np.int32(0x38800000)))  # 2**-14 is 0x38800000
    return power * power


@inlined
def sum_ulp_squared(half: Any) -> Any:
    """The same for a rounded sum of multiples of 2**-24: none where the spacing is 2**-24, since that sum is exact."""
    square = ulp_squared(half)
    return square if square > np.float32(2.0**-28) else np.float32(0)
