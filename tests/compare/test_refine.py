"""The fast path's own rounding figures, from a packed layer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from gptq_diff.compare.refine import rounding
from tests.faults import plant

COLUMNS = torch.tensor([3, 5, 40])


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    from gptq_diff.checkpoint.reader import open_checkpoint
    from gptq_diff.models.build import build_model
    from gptq_diff.models.options import BuildOptions

    out = tmp_path_factory.mktemp("model") / "tiny"
    options = BuildOptions(group_size=32, desc_act=True, sym=False, seed=5)
    return open_checkpoint(build_model("tiny-qwen2", options, out)).packed("model.layers.1.mlp.gate_proj")


def test_with_desc_act_the_rows_are_taken_in_the_kernels_order(linear):
    """The first chain of a lane starts at the first rows of group 0: only they round where x is zero elsewhere."""
    packed = {k: getattr(linear, k).numpy() for k in ("qweight", "qzeros", "scales", "g_idx")}
    codes, scales = plant.unpack(packed, 4, 1)
    w = torch.from_numpy((codes * scales)[:, COLUMNS.numpy()])
    order = np.argsort(packed["g_idx"], kind="stable")
    apart, together = np.zeros((1, 128), np.float16), np.zeros((1, 128), np.float16)
    together[0, order[[0, 2, 4, 6]]] = apart[0, order[[0, 8, 16, 24]]] = 100.0
    figures = [rounding("exllama-fast", torch.from_numpy(x).float(), w, linear, COLUMNS) for x in (together, apart)]
    assert not torch.equal(figures[0].variance_MN, figures[1].variance_MN)
    assert figures[0].variance_MN.shape == (1, 3) and not figures[0].known2_MN.any()


def test_overflowing_sums_explain_nothing(linear):
    x = torch.full((1, 128), 60000.0)
    made = rounding("exllama-fast", x, torch.zeros(128, 3), linear, COLUMNS)
    assert torch.isfinite(made.variance_MN).all()


def test_what_the_kernel_cannot_take_has_no_figure(linear):
    x, w = torch.ones(1, 128), torch.zeros(128, 3)
    lopsided = dataclasses.replace(linear, g_idx=torch.zeros(128, dtype=torch.int32))
    odd = dataclasses.replace(linear, spec=dataclasses.replace(linear.spec, group_size=48))
    assert rounding("exllama-fast", x, w, lopsided, COLUMNS) is None
    assert rounding("exllama-fast", x, w, odd, COLUMNS) is None
    assert rounding("exllama-fast", x, w, None, COLUMNS) is None
