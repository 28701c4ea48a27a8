"""Planted faults: the first bad layer is exact, for every seed, in checkpoint bytes and in patched kernels."""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest

from gptq_diff.compare.results import first_bad
from gptq_diff.kernels.catalogue import make_kernel
from tests.faults import plant, runner

SEEDS = range(50)
BACKENDS = ("fp16", "sim-exllama", "sim-reconstruct", "sim-gptq")
START = 510  # <|im_start|>: a first token that can be massive


@pytest.fixture(scope="module")
def healthy(tiny_models):
    """Per variant: tensors, (bits, zero offset), and one loaded engine."""
    return {
        name: (path, plant.read_tensors(path), plant.format_of(path), runner.engine(path))
        for name, path in tiny_models.items()
    }


def prompt(rng, length=None):
    return [START, *rng.integers(0, 500, length or rng.integers(4, 60)).tolist()]


def found(host, kernel, ids, model, tmp_path, loaded=None):
    reader = runner.capture(host, kernel, ids, tmp_path / "capture")
    bad = first_bad(runner.judge({("b", "p"): reader}, model, loaded)[("b", "p")])
    return (bad.layer, bad.kind) if bad else None


@pytest.mark.parametrize("fault", plant.FAULTS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_first_bad_layer_is_the_planted_one(healthy, seed, fault, tmp_path):
    """Even seeds plant two of the kinds in bytes and two in the kernel, odd seeds the other way round."""
    rng = np.random.default_rng([seed, plant.FAULTS.index(fault)])
    path, tensors, (bits, _), host = list(healthy.values())[seed % len(healthy)]
    names = plant.linears(tensors)
    changed, expected = plant.damage(tensors, fault, names[rng.integers(len(names))], bits, rng)
    kernel, ids = BACKENDS[rng.integers(len(BACKENDS))], prompt(rng)
    if (seed + plant.FAULTS.index(fault)) % 2:
        copy = plant.write_copy(path, changed, tmp_path / "damaged")
        where = found(runner.engine(copy), kernel, ids, path, tmp_path, copy)
        assert where == (expected, "nan" if fault == "nan-scale" else "diverged")
    else:
        faulty = plant.FaultyKernel(make_kernel(kernel), expected, plant.layer({**tensors, **changed}, expected))
        where = found(host, faulty, ids, path, tmp_path)
        assert where == (expected, "overflow" if fault == "nan-scale" else "diverged")


@pytest.mark.parametrize("seed", SEEDS)
def test_an_overflow_is_found_where_it_happens(healthy, seed, tmp_path):
    """Even seeds shift the gain of one group until the fast path's sums overflow, odd ones narrow in the kernel."""
    rng = np.random.default_rng([seed, 99])
    path, tensors, (bits, offset), host = list(healthy.values())[seed % len(healthy)]
    names = plant.linears(tensors)
    if seed % 2 == 0:
        path, tensors, (bits, offset), _ = healthy["4bit"]
        block = int(rng.integers(4))
        changed = plant.gain_shift(tensors, block, plant.massive_group(tensors, block, 64), 64, 8.0)
        shifted = plant.write_copy(path, changed, tmp_path / "shifted")
        where = found(runner.engine(shifted), "sim-exllama", prompt(rng), shifted, tmp_path)
        assert where == (f"model.layers.{block}.mlp.down_proj", "overflow")
        return
    name = names[rng.integers(len(names))]
    kernel = plant.FaultyKernel(make_kernel("fp16"), name, overflow=(bits, offset))
    assert found(host, kernel, prompt(rng), path, tmp_path) == (name, "overflow")


def test_the_planting_code_shares_nothing_with_the_judging_code():
    tree = ast.parse(Path(plant.__file__).read_text())
    imported = {n.module if isinstance(n, ast.ImportFrom) else a.name for n in ast.walk(tree)
                if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}  # fmt: skip
    assert not [name for name in imported if name and name.startswith("gptq_diff")]


def test_a_planted_nan_scale_is_named_as_the_checkpoints_own(healthy, tmp_path):
    path, tensors, (bits, _), _ = healthy["4bit"]
    name = "model.layers.2.self_attn.o_proj"
    changed, _ = plant.damage(tensors, "nan-scale", name, bits, np.random.default_rng(0))
    copy = plant.write_copy(path, changed, tmp_path / "damaged")
    reader = runner.capture(runner.engine(copy), "fp16", prompt(np.random.default_rng(1), 9), tmp_path / "capture")
    judged = runner.judge({("b", "p"): reader}, path, copy)[("b", "p")]
    at = next(j for j in judged if j.layer == name)
    assert (at.kind, at.cause, at.nonfinite) == ("nan", "nan-weights", 10)
    assert all(j.kind == "inherited" for j in judged if j.index > at.index)
