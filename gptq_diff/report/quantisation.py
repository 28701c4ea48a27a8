"""What the unquantised model says about quantisation, for people."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from gptq_diff.records import Result
from gptq_diff.text import one_line


def quantisation_line(result: Result) -> str | None:
    """How far quantisation moves a linear's output, and the first token; None for any other backend."""
    error = result.quantization_error
    if error is None:
        return None
    said = f"{result.backend}, {result.prompt}: "
    if error.median_l2_rel is None or error.worst_l2_rel is None:
        said += "no linear's error of quantisation could be measured"
    else:
        said += (
            f"quantisation itself changes a linear's output by {error.median_l2_rel:.1e} (the middle one), at most "
            f"{error.worst_l2_rel:.1e} ({error.worst_layer})"
        )
    if result.first_token_kl is not None:
        said += f"; the first token's distribution by {result.first_token_kl:.1e} nats"
    if result.first_different_token is not None:
        said += f"; token {result.first_different_token + 1} is the first that differs"
    return said


def quantisation_table(result: Result, style: dict[str, Any]) -> Table:
    """Every linear: what quantising it changes, and what it inherits from those before it."""
    error = result.quantization_error
    assert error is not None
    title = Text(f"{result.backend}, prompt {result.prompt}: what quantisation changes (relative l2, prefill)")
    table = Table(**style, title=title)
    for name in ("linear", "its own", "inherited"):
        table.add_column(name, no_wrap=True)
    for layer, sizes in error.layers.items():
        cells = ("-" if v is None else f"{v:.1e}" for v in (sizes.local_l2_rel, sizes.inherited_l2_rel))
        table.add_row(Text(one_line(layer)), *map(Text, cells))
    return table
