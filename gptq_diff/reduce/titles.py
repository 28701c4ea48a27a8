"""The line that a script opens with: what is wrong, by the path that ran and the kind of fault."""

from __future__ import annotations

_OVERFLOW = {
    "exllama-fast": "float16 overflow in exllama's fused GPTQ kernel: unscaled products are summed in float16",
    "exllama-reconstruct": "float16 overflow in the sums of the GEMM behind gptq_gemm's reconstruct path",
    "marlin": "float16 overflow in Marlin with one scale a column: the unscaled sum is narrowed to float16",
}


def title_of(path: str, kind: str) -> str:
    """In words; every path has some."""
    if kind == "overflow" and path in _OVERFLOW:
        return _OVERFLOW[path]
    what = {"overflow": "infinite or NaN outputs", "nan": "NaN outputs"}.get(kind, "wrong outputs")
    return f"{what} on the path {path}, where the exact answer is finite"
