"""Faults of products and of what lies between linears: what comes out is what an independent computation says."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.faults.draw import Drawn, Run
from benchmarks.faults.lab import capture, load, planted
from benchmarks.faults.models import ModelChoice
from gptq_diff.faults import all_reduce, bias, clamp, dtype, nan_input, outside, race, row_path, unknown
from gptq_diff.faults.fault import Unplantable
from gptq_diff.faults.kernel import PlantedKernel
from gptq_diff.faults.narrow import bfloat16
from gptq_diff.jobs import Job
from gptq_diff.kernels.catalogue import make_kernel
from gptq_diff.kernels.sim_exllama import SimExllama

LAYER = "model.layers.1.self_attn.k_proj"
IDS = (510, *range(40, 60))


def spoiled(fault, here, x=None):
    """(y before, y after) of one call."""
    x = here.inputs(LAYER) if x is None else x
    y = (x.astype(np.float64) @ here.linear.weight()).astype(np.float16).astype(np.float32)
    return y, np.asarray(fault.spoil[LAYER](x, y))


def test_bfloat16_is_torchs():
    """Ties, subnormals, infinities and NaN included."""
    values = np.concatenate(
        [np.random.default_rng(0).standard_normal(1000), [0.0, np.inf, -np.inf, np.nan, 1.00390625]]
    )
    values = values.astype(np.float32)
    np.testing.assert_array_equal(bfloat16(values), torch.from_numpy(values).bfloat16().float().numpy())


@pytest.mark.parametrize("seed", range(12))
def test_dtype_rounds_what_it_says(site, seed):
    """Output, input or weights rounded by torch give the same, in the columns that are named."""
    here = site("4bit", LAYER, seed=seed, size=0.9)
    fault = dtype.plant(here)
    if not fault.spoil:
        pytest.skip("this seed rounds the scales")
    y, after = spoiled(fault, here)
    x, w = torch.from_numpy(here.inputs(LAYER)).double(), torch.from_numpy(here.linear.weight())
    if "output" in fault.what:
        expected = torch.from_numpy(y).bfloat16().double()
    elif "input" in fault.what:
        expected = torch.from_numpy(y).double() + x.bfloat16().double() @ w - x @ w
    else:
        expected = torch.from_numpy(y).double() + x @ w.float().bfloat16().double() - x @ w
    np.testing.assert_allclose(after, expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_clamped_values_stop_at_the_limit(site, seed):
    """Nothing passes the limit, everything below it stays."""
    here = site("4bit", LAYER, seed=seed, size=seed / 3)
    y, after = spoiled(clamp.plant(here), here)
    limit = np.abs(after).max()
    assert limit < np.abs(y).max()
    np.testing.assert_array_equal(after[np.abs(y) < limit], y[np.abs(y) < limit])


@pytest.mark.parametrize("seed", range(8))
def test_a_race_differs_from_call_to_call_in_whole_tiles(site, seed):
    """Two calls on the same input differ, each in tiles of 32 columns."""
    here = site("4bit", LAYER, seed=seed, size=0.5)
    fault = race.plant(here)
    seen = [spoiled(fault, here) for _ in range(6)]
    changed = [(after != y).any(axis=0) for y, after in seen]
    assert all(c.any() for c in changed)
    assert any((a[1] != b[1]).any() for a, b in zip(seen, seen[1:]))
    tiles = 1 if "1 of" in fault.what else 2
    assert all(len(set(np.flatnonzero(c) // 32)) <= tiles for c in changed)


@pytest.mark.parametrize("seed", range(6))
def test_a_row_path_is_right_on_one_side_of_a_border(site, seed):
    """Of calls with few and with many rows one kind comes out untouched, the other does not."""
    here = site("4bit", LAYER, seed=seed, calls=(9, 1, 1))
    fault = row_path.plant(here)
    one = here.inputs(LAYER)[:1]
    hit = [bool((after != y).any()) for y, after in (spoiled(fault, here), spoiled(fault, here, one))]
    assert sorted(hit) == [False, True]


def test_unknown_factors_are_as_large_as_they_say(site):
    """The factor in the words is the one in the numbers."""
    for seed in range(10):
        here = site("4bit", LAYER, seed=seed, size=1.0)
        fault = unknown.plant(here)
        y, after = spoiled(fault, here)
        if fault.what.startswith("factor"):
            ratios = {round(float(r), 3) for r in (after[y != 0] / y[y != 0])}
            assert ratios <= {1.0, 1.316}, "10^-0.5 is 0.316"
            return
    pytest.fail("no seed drew a factor")


def test_a_kernel_that_adds_the_bias_adds_it(site):
    """The product is off by the bias, row by row."""
    for seed in range(10):
        here = site("4bit", LAYER, seed=seed)
        fault = bias.plant(here)
        if fault.spoil:
            y, after = spoiled(fault, here)
            np.testing.assert_allclose(
                after - y, np.broadcast_to(here.linear.bias.astype(np.float32), y.shape), atol=1e-5
            )
            return
    pytest.fail("no seed had the kernel add it")


def test_the_planted_kernel_changes_nothing_else(stored, tmp_path):
    """Other linears keep their bits, and the planted one gives what the fault says, rounded to float16."""
    here_model = stored["4bit"]
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).half()
    from gptq_diff.checkpoint.reader import open_checkpoint
    from gptq_diff.faults.fault import Fault

    fault = Fault("unknown", "", (LAYER,), spoil={LAYER: lambda x, y: y + 1})
    kernel = PlantedKernel(make_kernel("fp16"), lambda: make_kernel("fp16"), [fault])
    with open_checkpoint(here_model.path) as checkpoint:
        other = checkpoint.packed("model.layers.0.self_attn.k_proj")
        sound = make_kernel("fp16")
        assert torch.equal(kernel.multiply(x, other).y_MN, sound.multiply(x, other).y_MN)
        linear = checkpoint.packed(LAYER)
        y = sound.multiply(x, linear).y_MN
        assert torch.equal(kernel.multiply(x, linear).y_MN, (y.float() + 1).half())
    np.testing.assert_array_equal(fault.changes[LAYER][0], 1.0)


def run_with(stored, faults, out, kernel="fp16"):
    """The capture of a prompt on the tiny model with these faults in the engine."""
    engine = load(stored.path, "float16", 1)
    run = Run("process", ModelChoice("4bit-g64"), kernel, "float16", 1, IDS, 1, False, 1)
    out.mkdir(parents=True)
    with planted(engine, kernel, make_kernel(kernel), Drawn(run, "engine", "x", tuple(faults)), 0):
        reader = capture(engine, Job("b", kernel, "p", IDS, 1, None, str(out / "capture")), out)
    healthy = engine.generate(IDS, max_new_tokens=1, forced=None, tap=None)
    return reader, healthy


@pytest.mark.parametrize("seed", range(8))
def test_a_fault_between_linears_shows_first_where_it_says(site, stored, tmp_path, seed):
    """Inputs are bit for bit the healthy ones up to the linear after the interval, and others there."""
    here = site("4bit", "model.layers.1.mlp.up_proj", seed=seed, size=0.9)
    fault = outside.plant(here)
    sound, healthy = run_with(stored["4bit"], [], tmp_path / "sound")
    broken, undone = run_with(stored["4bit"], [fault], tmp_path / "broken")
    differing = [
        n for n in sound.manifest.order if not torch.equal(sound.tensor(0, n, "in"), broken.tensor(0, n, "in"))
    ]
    assert differing[0] == fault.between.after
    assert torch.equal(healthy.first_logits_V, undone.first_logits_V), "the engine is whole again afterwards"


def test_a_nan_activation_reaches_down_proj_first(site, stored, tmp_path):
    """The first input that is not finite is that of the linear after the activation."""
    fault = nan_input.plant(site("4bit", "model.layers.2.mlp.up_proj", seed=1))
    broken, _ = run_with(stored["4bit"], [fault], tmp_path / "broken")
    bad = [n for n in broken.manifest.order if not torch.isfinite(broken.tensor(0, n, "in")).all()]
    assert bad[0] == fault.between.after == "model.layers.2.mlp.down_proj"


@pytest.mark.parametrize("seed", range(4))
def test_a_rank_is_left_out_of_the_sum_or_added_twice(site, stored, tmp_path, seed):
    """The summands are the two halves' own products, and the sum has one of them 0 or 2 times in some columns."""
    layer = "model.layers.1.mlp.down_proj"
    here = site("4bit", layer, seed=seed)
    fault = all_reduce.plant(here)
    reader, _ = run_with(stored["4bit"], [fault], tmp_path / "run", "fp16")
    x = [reader.tensor(0, f"{layer}@{rank}", "in").double().numpy() for rank in (0, 1)]
    y = [reader.tensor(0, f"{layer}@{rank}", "out").double().numpy() for rank in (0, 1)]
    half = here.linear.rows // 2
    for rank in (0, 1):
        exact = x[rank] @ here.linear.weight()[rank * half : (rank + 1) * half]
        assert np.linalg.norm(y[rank] - exact) < 2e-3 * np.linalg.norm(exact)
    total = reader.tensor(0, f"{layer}@all-reduce", "out").double().numpy()
    change = total - (y[0] + y[1])
    np.testing.assert_allclose(change, fault.changes[layer][0], atol=2e-3 * np.abs(total).max())
    assert reader.tensor(0, f"{layer}@all-reduce", "in").shape[0] == 2 * len(IDS)


def test_all_reduce_needs_shared_rows(site):
    """q, k, v, gate and up are shared out by columns: nothing is summed there."""
    with pytest.raises(Unplantable):
        all_reduce.plant(site("4bit", LAYER))


def test_split_k_noise_is_within_the_fast_paths_rounding(stored):
    """The healthy kernel with another order of its slices gives other bits, and no other answer."""
    from benchmarks.faults.healthy import SplitK
    from gptq_diff.checkpoint.reader import open_checkpoint

    x = torch.randn(3, 256, generator=torch.Generator().manual_seed(1)).half()
    layer = "model.layers.0.mlp.down_proj"
    with open_checkpoint(stored["4bit"].path) as checkpoint:
        linear = checkpoint.packed(layer)
        once = SimExllama().multiply(x, linear).y_MN.double()
        again = SplitK(SimExllama(), np.random.default_rng(0)).multiply(x, linear).y_MN.double()
    assert float((once - again).norm() / once.norm()) < 2e-3
