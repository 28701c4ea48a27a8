"""Every fault of packed weights changes the weight as its words say, worked out entry by entry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.faults import (
    accumulator_overflow,
    ambiguous_zero,
    dtype,
    g_idx_ignored,
    nan_weights,
    nibble_order,
    result_overflow,
    scale_group,
    shard_order,
    unknown,
    zero_point_shift,
)
from gptq_diff.faults.checkpoint import Stored, copy_of
from gptq_diff.faults.fault import Unplantable
from gptq_diff.kernels.sim_exllama import SimExllama
from tests.benchmarks.faults.conftest import weight_of

LAYER = "model.layers.1.mlp.up_proj"
SEEDS = range(6)
SIZES = (0.1, 0.6, 0.9)


def many(site, plant, variant, layer=LAYER, **given):
    """Faults of several seeds and sizes, with the sound linear."""
    for seed in SEEDS:
        for size in SIZES:
            here = site(variant, layer, size=size, seed=seed, **given)
            try:
                yield plant(here), here.linear
            except Unplantable:
                continue


@pytest.mark.parametrize("variant", ["4bit", "4bit-asym", "3bit", "2bit-v2", "8bit"])
def test_zero_points_move_by_one(site, variant):
    """Every changed weight differs by one scale, in columns and groups as a whole."""
    for fault, sound in many(site, zero_point_shift.plant, variant):
        steps = (fault.misread[LAYER].weight() - sound.weight()) / sound.scales.astype(np.float64)[sound.g_idx]
        assert set(np.unique(np.round(steps, 6))) <= {-1.0, 0.0, 1.0} and steps.any()
        moved = fault.misread[LAYER].zeros() != sound.zeros()
        if fault.misread[LAYER].offset == sound.offset:  # else every stored zero point means another
            assert (fault.misread[LAYER].zeros()[moved] < 2**sound.bits).all()  # beyond, kernels differ
        for group in range(sound.groups):
            rows = steps[sound.g_idx == group]
            assert (rows == rows[:1]).all()


@pytest.mark.parametrize("variant", ["4bit", "4bit-asym", "4bit-act", "8bit"])
def test_scales_come_from_another_group(site, variant):
    """Every weight has the scale of a group of that column, a misread group size that group's zero point too."""
    for fault, sound in many(site, scale_group.plant, variant):
        codes, zeros, made = sound.codes(), sound.zeros(), fault.misread[LAYER].weight()
        scales = sound.scales.astype(np.float64)
        others = range(sound.groups)
        if "group size" in fault.what:
            known = np.stack([(codes - zeros[g]) * scales[g] for g in others])
        else:
            known = np.stack([sound.levels() * scales[g] for g in others])
        assert (known == made).any(axis=0).all() and (made != sound.weight()).any()


def test_g_idx_ignored_takes_groups_by_position(site):
    """Row k is taken for one of group k // group_size, its code unchanged."""
    for fault, sound in many(site, g_idx_ignored.plant, "4bit-act"):
        order = fault.prepared.get(f"{LAYER}.g_idx", sound.g_idx)
        assert (np.bincount(order) == sound.group_size).all(), "the sound one stays what kernels can take"
        if "ignored" not in fault.what:
            continue
        made, codes, zeros = fault.misread[LAYER].weight(), sound.codes(), sound.zeros()
        for k in range(0, sound.rows, 7):
            g = k // sound.group_size
            np.testing.assert_array_equal(made[k], (codes[k] - zeros[g]) * sound.scales[g].astype(np.float64))


@pytest.mark.parametrize("variant", ["4bit", "8bit", "3bit", "2bit-v2"])
def test_codes_of_a_word_change_places(site, variant):
    """Each word (three of them with 3 bits) holds the same codes as before, and some stand elsewhere."""
    for fault, sound in many(site, nibble_order.plant, variant):
        count = 32 if sound.bits == 3 else 32 // sound.bits
        before, after = (c.codes().reshape(-1, count, sound.columns) for c in (sound, fault.misread[LAYER]))
        np.testing.assert_array_equal(np.sort(before, axis=1), np.sort(after, axis=1))
        assert (before != after).any()


def test_reversed_nibbles_are_reversed(site):
    """The order called reversed is that of a big-endian reader: checked on the words themselves."""
    for fault, sound in many(site, nibble_order.plant, "4bit"):
        if "reversed," in fault.what and f"{sound.columns} of" in fault.what:
            old, new = (int(np.uint32(q.qweight[3, 5])) for q in (sound, fault.misread[LAYER]))
            assert f"{new:08x}" == f"{old:08x}"[::-1]
            return
    pytest.fail("no seed reversed all columns")


@pytest.mark.parametrize("layer", ["model.layers.2.self_attn.k_proj", "model.layers.0.mlp.gate_proj"])
def test_shards_only_move(site, layer):
    """The columns of all linears concerned are the same columns as before, or the rows the same rows."""
    for fault, sound in many(site, shard_order.plant, "4bit", layer):
        model = site("4bit", layer).model
        before = np.concatenate([model.linear(name).weight() for name in fault.layers], axis=1)
        after = np.concatenate([fault.misread[name].weight() for name in fault.layers], axis=1)
        if "rows" in fault.what:
            before, after = before.T, after.T
        assert not np.array_equal(before, after)
        assert {c.tobytes() for c in before.T.copy()} == {c.tobytes() for c in after.T.copy()}
        assert sound.name in fault.layers


def test_ambiguous_zeros_wrap_to_zero(site):
    """Where the sound checkpoint stores 2^bits - 1 the weight grows by 2^bits scales, and nowhere else."""
    for fault, sound in many(site, ambiguous_zero.plant, "4bit-asym"):
        ambiguous = replace(sound, qzeros=fault.prepared[f"{LAYER}.qzeros"])
        steps = fault.misread[LAYER].weight() - ambiguous.weight()
        steps /= sound.scales.astype(np.float64)[sound.g_idx]
        expected = np.where(ambiguous.zeros() == 16, 16.0, 0.0)[sound.g_idx]
        np.testing.assert_allclose(steps, expected, atol=1e-9)


def test_a_conversion_to_v2_is_exact_elsewhere(site, tmp_path):
    """The damaged copy is the same model but for the ambiguous zero points, as gptq_diff reads it."""
    fault = ambiguous_zero.plant(site("4bit-asym", LAYER, way="bytes", seed=1))
    model = site("4bit-asym", LAYER).model
    sound = copy_of(model, fault.prepared, {}, tmp_path / "sound", whole=False)
    copy = copy_of(Stored(sound), fault.changed, fault.settings, tmp_path / "copy", whole=False)
    differing = [n for n in model.linears if not np.array_equal(weight_of(sound, n), weight_of(copy, n))]
    assert differing == [LAYER]


def test_bfloat16_scales_are_torchs(site):
    """Rounding to bfloat16 is torch's own."""
    fault = dtype.plant(site("4bit", LAYER, way="bytes", size=0.9))
    sound = site("4bit", LAYER).linear.scales
    np.testing.assert_array_equal(fault.changed[f"{LAYER}.scales"], torch.from_numpy(sound).bfloat16().half().numpy())


def test_nan_scales_stand_where_they_are_said_to(site):
    """At least one scale is not finite, and every finite one is the sound one."""
    for fault, sound in many(site, nan_weights.plant, "4bit", way="bytes"):
        (scales,) = {**fault.prepared, **fault.changed}.values()
        finite = np.isfinite(scales)
        assert not finite.all()
        np.testing.assert_array_equal(scales[finite], sound.scales[finite])


def test_flipped_words_change_codes_alone(site):
    """What is called unknown in a checkpoint is bits of qweight."""
    for fault, _ in many(site, unknown.plant, "4bit", way="bytes"):
        assert set(fault.changed) == {f"{LAYER}.qweight"}


def test_a_result_overflows_exactly_where_it_is_said_to(site, tmp_path):
    """The exact answer in float64 passes 65520 in the columns that were grown, and in none before."""
    for seed in SEEDS:
        here = site("4bit", LAYER, way="bytes", seed=seed, size=0.3)
        fault = result_overflow.plant(here)
        copy = copy_of(here.model, fault.prepared, {}, tmp_path / str(seed), whole=False)
        x = here.inputs(LAYER).astype(np.float64)
        over = (np.abs(x @ weight_of(copy, LAYER)) >= 65520).any(axis=0)
        assert np.abs(x @ here.linear.weight()).max() < 65520
        assert f"outputs of {int(over.sum())} of" in fault.what


def test_a_moved_gain_overflows_and_changes_no_function(site, stored, tmp_path):
    """up and down are the same function in exact arithmetic, and gptq_diff's simulator overflows where ours does."""
    layer, model = "model.layers.1.mlp.down_proj", stored["4bit"]
    x = np.random.default_rng(3).standard_normal((5, 256)).astype(np.float16)
    x[0, 170] = 3000
    for seed in SEEDS:
        fault = accumulator_overflow.plant(site("4bit", layer, way="bytes", seed=seed, size=seed / 6, x=x))
        copy = copy_of(model, fault.prepared, {}, tmp_path / str(seed), whole=False)
        up = [weight_of(p, "model.layers.1.mlp.up_proj") for p in (model.path, copy)]
        down = [weight_of(p, layer) for p in (model.path, copy)]
        gain = np.abs(up[1]).sum(axis=0) / np.maximum(np.abs(up[0]).sum(axis=0), 1e-30)
        gain = np.where(np.abs(up[0]).sum(axis=0) > 0, gain, np.abs(down[0]).sum(1) / np.abs(down[1]).sum(1))
        np.testing.assert_array_equal(up[0] * gain, up[1])
        np.testing.assert_array_equal(down[0] / gain[:, None], down[1])
        grown = (x * gain).astype(np.float16)
        with open_checkpoint(copy) as checkpoint:
            y = SimExllama().multiply(torch.from_numpy(grown), checkpoint.packed(layer)).y_MN
        ours = accumulator_overflow.overflowed(grown.astype(np.float32), Stored(copy).linear(layer))
        assert ours == int((~torch.isfinite(y)).sum()) > 0


@pytest.mark.parametrize("variant", ["4bit", "4bit-act", "2bit-v2", "3bit"])
@pytest.mark.parametrize("plant", [zero_point_shift.plant, scale_group.plant, nibble_order.plant, shard_order.plant])
def test_bytes_and_engine_are_one_fault(site, plant, variant, tmp_path):
    """What gptq_diff reads from the damaged copy is what a misreading engine would multiply by."""
    for seed in SEEDS:
        try:
            misread = plant(site(variant, LAYER, seed=seed)).misread
            changed = plant(site(variant, LAYER, seed=seed, way="bytes")).changed
        except Unplantable:
            continue
        copy = copy_of(site(variant, LAYER).model, changed, {}, tmp_path / str(seed), whole=bool(seed % 2))
        for name, linear in misread.items():
            np.testing.assert_array_equal(weight_of(copy, name), linear.weight())
