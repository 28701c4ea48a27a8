"""The inner product of tiled multiplication, written in LLVM's vectors: what numba's own loops reach a third of.

`panel_R` multiplies R rows of x with rows of a tile of 64 columns and keeps all R x 64 sums in registers. numba cannot
say that (its small arrays live in memory), so the instructions are built with llvmlite. Vectors hold 16 floats: one
register with AVX-512, two with AVX2, four with NEON; LLVM splits them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from gptq_diff.kernels.strips import STRIP

MOST_ROWS = 6
"""Rows of x taken together: 6 x 4 sums, 4 weights and one x fill 29 of the 32 registers of AVX-512."""
_LANES = 16
_VECTORS = range(0, STRIP, _LANES)
_WIDTH = 4
"""Bytes of a float."""
_SINGLE = ir.FloatType()
_VECTOR = ir.VectorType(_SINGLE, _LANES)
_WORD = ir.IntType(64)


def _intrinsic(function: Any) -> Any:
    return intrinsic(function)


def _make_panel(rows: int) -> Any:
    """The intrinsic for that many rows of x."""

    def panel(_typing: Any, x_MK: Any, m: Any, tile_RC: Any, first: Any, last: Any, sums_RC: Any) -> Any:  # noqa: ARG001
        """sums_RC[r] = sum over k from first to last - 1 of x_MK[m + r, k] tile_RC[k], for r below `rows`.

        x_MK: float32, C order. tile_RC: float32 [>= last, 64], C order. sums_RC: float32 [>= rows, 64], C order,
        overwritten. m, first, last: int64. Every step is one fused multiply-add in float32, in ascending k.
        """
        signature = types.void(x_MK, types.int64, tile_RC, types.int64, types.int64, sums_RC)

        def build(context: Any, builder: Any, given: Any, args: Any) -> Any:
            x, tile, sums = (context.make_array(given.args[i])(context, builder, args[i]) for i in (0, 2, 5))
            stride = cgutils.unpack_tuple(builder, x.strides)[0]
            row_starts = [builder.mul(builder.add(args[1], _WORD(r)), stride) for r in range(rows)]
            totals = _loop(builder, x.data, row_starts, tile.data, args[3], args[4])
            for r, row in enumerate(totals):
                for column, total in zip(_VECTORS, row):
                    offset = _WORD((r * STRIP + column) * _WIDTH)
                    place = cgutils.pointer_add(builder, sums.data, offset, _VECTOR.as_pointer())
                    builder.store(total, place, align=_WIDTH)
            return context.get_dummy_value()

        return signature, build

    return _intrinsic(panel)


def _loop(builder: Any, x: Any, row_starts: list[Any], tile: Any, first: Any, last: Any) -> list[list[Any]]:
    """Emit the loop over k; afterwards these values hold the sums, a list of four vectors a row."""
    before, head = builder.block, builder.append_basic_block("panel.head")
    body, end = builder.append_basic_block("panel.body"), builder.append_basic_block("panel.end")
    builder.branch(head)
    builder.position_at_end(head)
    k = builder.phi(_WORD)
    k.add_incoming(first, before)
    totals = [[builder.phi(_VECTOR) for _ in _VECTORS] for _ in row_starts]
    builder.cbranch(builder.icmp_signed("<", k, last), body, end)
    builder.position_at_end(body)
    for row, added in zip(totals, _step(builder, x, row_starts, tile, k, totals)):
        for total, new in zip(row, added):
            total.add_incoming(ir.Constant(_VECTOR, [0.0] * _LANES), before)
            total.add_incoming(new, body)
    k.add_incoming(builder.add(k, _WORD(1)), body)
    builder.branch(head)
    builder.position_at_end(end)
    return totals


def _step(builder: Any, x: Any, row_starts: list[Any], tile: Any, k: Any, totals: list[list[Any]]) -> list[list[Any]]:
    """The sums with row k of the tile added: one load of it for all rows of x."""
    fused = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fma = cgutils.get_or_insert_function(builder.module, fused, f"llvm.fma.v{_LANES}f32")
    weights = []
    for column in _VECTORS:
        offset = builder.add(builder.mul(k, _WORD(STRIP * _WIDTH)), _WORD(column * _WIDTH))
        place = cgutils.pointer_add(builder, tile, offset, _VECTOR.as_pointer())
        weights.append(builder.load(place, align=_WIDTH))
    undefined = ir.Constant(_VECTOR, ir.Undefined)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES)
    added = []
    for start, row in zip(row_starts, totals):
        offset = builder.add(start, builder.mul(k, _WORD(_WIDTH)))
        value = builder.load(cgutils.pointer_add(builder, x, offset, _SINGLE.as_pointer()), align=_WIDTH)
        spread = builder.insert_element(undefined, value, ir.IntType(32)(0))
        spread = builder.shuffle_vector(spread, undefined, everywhere)
        added.append([builder.call(fma, [spread, weight, total]) for weight, total in zip(weights, row)])
    return added


panel_1, panel_2, panel_3, panel_4, panel_5, panel_6 = (_make_panel(rows) for rows in range(1, MOST_ROWS + 1))


@_intrinsic
def code_at(_typing: Any, low: Any, high: Any, shift: Any, mask: Any) -> Any:  # noqa: ARG001  numba asks for the names
    """The code that begins at bit `shift` of int32 `low` and may end in `high`, as float32: 32-bit all the way.

    numba's own integers become 64 bits wide in every operation, which halves the speed of a loop.
    """
    integer = ir.IntType(32)

    def build(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        low, high, shift, mask = args
        join = cgutils.get_or_insert_function(builder.module, ir.FunctionType(integer, [integer] * 3), "llvm.fshr.i32")
        return builder.uitofp(builder.and_(builder.call(join, [high, low, shift]), mask), _SINGLE)

    return types.float32(types.int32, types.int32, types.int32, types.int32), build
