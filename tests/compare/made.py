# ruff: noqa: C408  keywords read as they do where the records are made
"""Layers and captures for the tests of comparing, made by hand."""

from __future__ import annotations

import torch

from gptq_diff.capture.store import Manifest
from gptq_diff.compare.judge import CapturedCall, Weight
from gptq_diff.records import FirstBad, Judgement, LayerCount, LayerSpec, Result

K, N = 64, 32


def spec(k=K, n=N, name="model.layers.0.mlp.down_proj"):
    return LayerSpec(name, k, n, 4, 32, sym=True, desc_act=False, format="gptq", has_bias=False)


def weight(w_KN=None, bad=(), loaded_bad=()):
    """Exact weight with codes times scales; bad: columns spoiled by non-finite scales."""
    if w_KN is None:
        codes = torch.randint(-8, 8, (K, N), generator=torch.Generator().manual_seed(1))
        w_KN = codes.float() * 0.013671875
    masks = []
    for columns in (bad, (*bad, *loaded_bad)):
        mask = torch.zeros(w_KN.shape[1], dtype=torch.bool)
        mask[list(columns)] = True
        masks.append(mask)
    return Weight(spec(*w_KN.shape), w_KN, *masks)


def x_of(rows, seed=0, dtype=torch.float16):
    return torch.randn(rows, K, generator=torch.Generator().manual_seed(seed)).to(dtype)


def call(x_MK, y_MN, *, step=0, index=0, path="fp16", reference_x=None):
    return CapturedCall(step, index, path, x_MK, y_MN, reference_x)


def sound(layer, x_MK, **more):
    """The call of a kernel that makes no error but its last rounding."""
    y = (x_MK.double() @ layer.w_KN.double()).to(x_MK.dtype)
    return call(x_MK, y, **more)


def manifest(tokens=(1, 2, 3), finite=None, forced=False, **more):
    values = dict(
        backend="b", prompt="p", order=(), kernels={}, skipped={}, steps=len(tokens), tokens=tuple(tokens),
        logits_finite=tuple(finite if finite is not None else [True] * len(tokens)), cached_rows=0, forced=forced,
        where={}, bytes_written=0, seconds={},
    )  # fmt: skip
    return Manifest(**{**values, **more})


def judgement(layer="a", kind="ok", *, index=0, step=0, excess=0.3, **more):
    values = dict(
        layer=layer, index=index, step=step, rank=0, path="fp16", rows=3, elements=12, kind=kind, cause=None,
        nonfinite=0, first_index=None, inherited_rows=0, local_l2_rel=1e-4, noise_floor=2e-4, excess=excess,
        worst_row=0, inherited_l2_rel=None, input_absmax=1.0, exact_absmax=1.0, output_absmax=1.0, max_abs=0.1,
    )  # fmt: skip
    return Judgement(**{**values, **more})


def result(status="agree", *, backend="b", prompt="p", bad=None, compared=4, skipped=(), collapsed=False, token=None):
    return Result(
        backend=backend, prompt=prompt, engine="transformers", kernel={"*": "fp16"}, versions={}, status=status,
        first_bad=bad, tokens=(token,) * 4 if collapsed else (1, 2), text=None, collapsed=collapsed,
        collapse_token=token, first_token_kl=0.0, first_different_token=None, cached_rows=0,
        layers=LayerCount(compared, tuple(skipped)), steps=2, bad_layers=0,
        worst_excess=0.3, findings=(), workarounds=(), headroom_bits={}, seconds={}, peak_rss_bytes=None,
        peak_private_bytes=None, peak_gpu_bytes=None,
    )  # fmt: skip


def bad(kind="overflow", layer="model.layers.1.mlp.down_proj", step=0, nonfinite=2):
    return FirstBad(
        layer=layer, index=9, step=step, kind=kind, nonfinite=nonfinite, elements=12, first_index=(0, 1),
        local_l2_rel=0.5, noise_floor=2e-4, inherited_l2_rel=None, input_absmax=1.0, exact_absmax=1234.0, excess=9.0,
        path="fp16", rows=3,
    )  # fmt: skip
