"""Products that cancel: the exact answer stays small while one product alone is beyond float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gptq_diff.faults import cancelling
from gptq_diff.faults.catalogue import KINDS, planter
from gptq_diff.faults.fault import Unplantable
from tests.benchmarks.faults.conftest import site, stored  # noqa: F401  fixtures

DOWN = "model.layers.1.mlp.down_proj"
X = np.full((3, 256), 0.5)
X[0, 170] = 3000.0


def test_two_channels_compute_one_thing_and_their_weights_are_opposite(site):  # noqa: F811
    """Twins in gate and up, gain in up alone; 3.5 and -3.5 in the chosen columns, nothing in the others."""
    here = site("4bit", DOWN, size=0.5, way="bytes", x=X, path="exllama-reconstruct")
    fault = cancelling.plant(here)
    down, up = here.model.linear(DOWN), here.model.linear("model.layers.1.mlp.up_proj")
    made = {k: v.astype(np.float64) for k, v in fault.prepared.items() if k.endswith("scales")}
    assert not fault.changed
    after = replace(down, qweight=fault.prepared[f"{DOWN}.qweight"], scales=fault.prepared[f"{DOWN}.scales"])
    rows = after.weight()
    first, chosen = 170, rows[170] == 3.5
    (second,) = np.flatnonzero((rows == -rows[first]).all(axis=1))
    assert down.g_idx[first] == down.g_idx[second]
    assert abs(first - second) >= cancelling.APART
    assert 1 <= chosen.sum() < len(chosen)
    assert not rows[first, ~chosen].any()
    scales = made["model.layers.1.mlp.up_proj.scales"]
    np.testing.assert_array_equal(scales[:, first], scales[:, second])
    gain = scales[0, first] / float(up.scales[0, first])
    assert gain in 2.0 ** np.arange(1, 8)
    assert 3000 * gain * 3.5 > 65504


@pytest.mark.parametrize(
    ("variant", "layer", "way", "x"),
    [("8bit", DOWN, "bytes", X), ("4bit-act", DOWN, "bytes", X), ("4bit", DOWN, "engine", X),
     ("4bit", "model.layers.1.mlp.up_proj", "bytes", X[:, :128]), ("4bit", DOWN, "bytes", 0 * X)],
)  # fmt: skip
def test_where_it_has_no_place(site, variant, layer, way, x):  # noqa: F811
    """Other widths, other linears, an engine's way, no activation."""
    with pytest.raises(Unplantable):
        cancelling.plant(site(variant, layer, way=way, x=x))


def test_it_stands_for_the_reconstruct_path_alone():
    """Draws of the benchmark go by KINDS, which it is not in."""
    assert planter("accumulator-overflow", "exllama-reconstruct") is cancelling.plant
    assert planter("accumulator-overflow", "exllama-fast") is KINDS["accumulator-overflow"]
    assert planter("bias", "exllama-reconstruct") is KINDS["bias"]
    assert cancelling.plant not in KINDS.values()
