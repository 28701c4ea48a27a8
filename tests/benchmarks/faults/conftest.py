"""Tiny models for planting, and sites in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.faults.checkpoint import Stored
from gptq_diff.faults.fault import Site
from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

VARIANTS = {
    "4bit": BuildOptions(group_size=32, kv_heads=4),
    "4bit-asym": BuildOptions(group_size=32, sym=False, seed=1),
    "4bit-act": BuildOptions(group_size=32, kv_heads=4, desc_act=True, seed=2),
    "8bit": BuildOptions(bits=8, group_size=64, kv_heads=4, seed=3),
    "3bit": BuildOptions(bits=3, group_size=32, kv_heads=4, seed=4),
    "2bit-v2": BuildOptions(bits=2, group_size=64, sym=False, checkpoint_format="gptq_v2", seed=5),
}


@pytest.fixture(scope="session")
def stored(tmp_path_factory):
    root = tmp_path_factory.mktemp("sound")
    return {name: Stored(build_model("tiny-qwen2", options, root / name)) for name, options in VARIANTS.items()}


@pytest.fixture
def site(stored):
    """Makes a site: site("4bit", "model.layers.1.mlp.up_proj", size=0.5, way="engine", seed=3)."""

    def make(variant, layer, *, size=0.5, way="engine", seed=0, x=None, path="exllama-fast", calls=(9, 1)):
        model = stored[variant]
        x = np.random.default_rng(7).standard_normal((9, model.linear(layer).rows)) if x is None else x
        inputs = np.asarray(x, dtype=np.float32)
        return Site(model, layer, size, way, path, np.random.default_rng(seed), lambda _: inputs, calls)

    return make


def weight_of(path, name):
    """The exact weight as gptq_diff reads it, float64 [K, N]."""
    with open_checkpoint(path) as checkpoint:
        return dequantise(checkpoint.packed(name), torch.float64).numpy().copy()
