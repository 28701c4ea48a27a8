"""Headroom in words: a line for every backend."""

from __future__ import annotations

from dataclasses import replace

from gptq_diff.records import Headroom
from gptq_diff.report.headroom import headroom_lines
from tests.report.build import LAYERS, a_report, a_result

LANE = Headroom("sim-exllama", True, "lane", -0.31, LAYERS[5], "short", 0, 3, 7, 1229, 11600.0, -8.0, -81203.5, 4)


def lines(*rows: Headroom) -> list[str]:
    return headroom_lines(replace(a_report(a_result()), headroom=rows))


def test_the_smallest_of_what_ran() -> None:
    """One line a backend, with all it takes to find the product; a negative one is said to overflow."""
    result = replace(LANE, arithmetic="result", bits=4.2)
    assert lines(result, LANE) == [
        "sim-exllama: smallest headroom -0.3 bits: it overflows at model.layers.1.mlp.down_proj (unscaled fp16 chain "
        "of the fast path, prompt short, row 3, channel 1229: 11,600 x -8)"
    ]


def test_the_reference_speaks_of_other_kernels() -> None:
    """Lanes and accumulator in a line each; what every kernel has alike is not told of it."""
    rows = [replace(LANE, backend="hf-fp32", ran=False, arithmetic=name, bits=1.5, step=2)
            for name in ("lane", "block", "accumulator", "result")]  # fmt: skip
    told = lines(*rows)
    assert [line.partition("(")[2].partition(",")[0] for line in told] == [
        "unscaled fp16 chain of the fast path",
        "fp16 accumulator of the reconstruct path",
    ]
    assert all(line.startswith("on another kernel hf-fp32's inputs would leave 1.5 bits at") for line in told)
    assert all("step 2, row 3" in line for line in told)


def test_nothing_measured_nothing_said() -> None:
    assert lines() == []
