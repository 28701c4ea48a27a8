"""Models for planting, built once a session; one thread, since these models are too small for two."""

from __future__ import annotations

import pytest
import torch

from gptq_diff.models.build import build_model
from gptq_diff.models.options import BuildOptions

VARIANTS = {
    "4bit": BuildOptions(group_size=64, kv_heads=4),
    "4bit-asym": BuildOptions(group_size=32, kv_heads=4, sym=False, seed=1),
    "4bit-desc_act": BuildOptions(group_size=32, kv_heads=4, desc_act=True, seed=2),
    "8bit": BuildOptions(bits=8, group_size=32, kv_heads=4, seed=3),
    "2bit-asym-v2": BuildOptions(bits=2, group_size=32, kv_heads=4, sym=False, checkpoint_format="gptq_v2", seed=4),
}


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny")
    return {name: build_model("tiny-qwen2", options, root / name) for name, options in VARIANTS.items()}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
