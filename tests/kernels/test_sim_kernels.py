"""The simulators as kernels: packed linears in, the path that vLLM would take, refusals with reasons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from gptq_diff.checkpoint.dequant import dequantise
from gptq_diff.errors import BackendError
from gptq_diff.kernels.hgemm_model import simulate_reconstruct
from gptq_diff.kernels.sim_exllama import SimExllama
from gptq_diff.kernels.sim_gptq import SimGptq
from gptq_diff.kernels.sim_reconstruct import SimReconstruct
from gptq_diff.kernels.weight_store import WeightStore
from gptq_diff.records import LayerSpec
from tests.kernels.fast_path_cases import assert_same_bits, draw

SPEC = LayerSpec("model.layers.0.mlp.down_proj", 256, 64, 4, 64, True, False, "gptq", False)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("desc_act", [False, True])
def test_packed_linear_to_scalar_bits(bits, version, desc_act):
    """From qweight, qzeros, scales and g_idx to y: the bits of the scalar implementation, cached or not."""
    rng = np.random.default_rng([bits, desc_act])
    case = draw(rng, bits, 64, "wild", m=1, k=128, n=32, version=version, desc_act=desc_act)
    if version == "gptq_v2":
        case.zeros[:] %= 2**bits
    y = case.scalar()[0]
    kernel = SimExllama()
    for _ in range(2):
        product = kernel.multiply(torch.from_numpy(case.x), case.linear())
        assert product.path == "exllama-fast"
        assert_same_bits(product.y_MN.numpy(), y)
    spread_y, rms = kernel.spread(torch.from_numpy(case.x), case.linear())
    assert_same_bits(spread_y.numpy(), y)
    assert rms.dtype == torch.float32 and rms.shape == spread_y.shape


@pytest.mark.parametrize("desc_act", [False, True])
@pytest.mark.parametrize("bits", [3, 4])
def test_reconstruct_multiplies_the_half_weight_in_its_own_order(bits, desc_act):
    """W rounded once to half, rows of W where x has them: with desc_act nothing is permuted."""
    case = draw(np.random.default_rng(bits), bits, 64, "ordinary", m=3, k=256, n=32, desc_act=desc_act)
    linear = case.linear()
    w = dequantise(linear, torch.float64).to(torch.float16).numpy()
    product = SimReconstruct().multiply(torch.from_numpy(case.x), linear)
    assert product.path == "exllama-reconstruct"
    assert_same_bits(product.y_MN.numpy(), simulate_reconstruct(case.x, w))
    exact = case.x.astype(np.float64) @ dequantise(linear, torch.float64).numpy()
    assert np.linalg.norm(product.y_MN.numpy() - exact) < 3e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize(("bits", "last_fast"), [(2, 50), (3, 50), (4, 50), (8, 24)])
def test_rows_pick_the_path(bits, last_fast):
    """The last row count of the fast path and the first of reconstruction, for each bit width."""
    case = draw(np.random.default_rng(bits), bits, 64, "ordinary", m=last_fast + 1, k=128, n=32)
    x, linear, kernel = torch.from_numpy(case.x), case.linear(), SimGptq()
    fast, slow = kernel.multiply(x[:-1], linear), kernel.multiply(x, linear)
    assert (fast.path, slow.path) == ("exllama-fast", "exllama-reconstruct")
    assert_same_bits(fast.y_MN.numpy(), SimExllama().multiply(x[:-1], linear).y_MN.numpy())
    assert_same_bits(slow.y_MN.numpy(), SimReconstruct().multiply(x, linear).y_MN.numpy())


def test_short_prompts_break_and_long_ones_do_not():
    """The reported bug in one layer: an activation of 9000 on code -8 at M = 50 is infinite, at M = 51 it is not."""
    case = draw(np.random.default_rng(3), 4, 64, "ordinary", m=51, k=256, n=64, sym=True)
    case.codes[7] = 0
    case.x[0, 7] = 9000
    case.scales[:] = 0.002
    x, kernel = torch.from_numpy(case.x), SimGptq()
    assert not kernel.multiply(x[:50], case.linear()).y_MN[0].isfinite().any()
    assert kernel.multiply(x, case.linear()).y_MN.isfinite().all()


def test_float32_input_is_rounded_to_half_first():
    """vLLM's kernel takes halves only."""
    case = draw(np.random.default_rng(4), 4, 64, "ordinary", m=2, k=128, n=32)
    x = torch.from_numpy(case.x).to(torch.float32) + 1e-6
    for kernel in (SimExllama(), SimReconstruct()):
        y, y_half = kernel.multiply(x, case.linear()).y_MN, kernel.multiply(x.half(), case.linear()).y_MN
        assert torch.equal(y, y_half)


def test_stored_order_without_desc_act_is_dropped_as_vllm_does():
    """vLLM reads g_idx only if the config says desc_act."""
    case = draw(np.random.default_rng(5), 4, 64, "ordinary", m=2, k=128, n=32)
    plain = case.linear()
    shuffled = replace(plain, g_idx=torch.arange(127, -1, -1, dtype=torch.int32) // 64)
    x = torch.from_numpy(case.x)
    for kernel_class in (SimExllama, SimReconstruct):
        assert torch.equal(kernel_class().multiply(x, plain).y_MN, kernel_class().multiply(x, shuffled).y_MN)


def test_groups_of_unequal_size_are_refused():
    """The kernel counts rows where g_idx says something else."""
    linear = draw(np.random.default_rng(6), 4, 64, "ordinary", m=1, k=128, n=32, desc_act=True).linear()
    g_idx = linear.g_idx.clone()
    g_idx[g_idx == 1] = torch.cat([torch.zeros(1), torch.ones(63)]).to(torch.int32)
    with pytest.raises(BackendError, match="not every group in g_idx has 64 rows"):
        SimExllama().multiply(torch.zeros(1, 128, dtype=torch.float16), replace(linear, g_idx=g_idx))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"bits": 5}, "5 bit"),
        ({"group_size": 96, "in_features": 192}, "neither divides"),
        ({"group_size": 48, "in_features": 192}, "not a multiple of 32"),
        ({"group_size": 100}, "not a multiple of group_size"),
        ({"in_features": 72, "group_size": 72}, "not a multiple of 32"),
        ({"out_features": 60}, "not a multiple of 8"),
        ({"out_features": 48, "bits": 3}, "not a multiple of 32"),
    ],
)
def test_refusals_say_why(change, words):
    """Every shape that vLLM or its kernel cannot do, by both paths and by their union."""
    for kernel in (SimExllama(), SimReconstruct(), SimGptq()):
        support = kernel.supports(replace(SPEC, **change))
        assert not support.ok and words in support.reason


def test_two_bit_groups_of_sixteen_are_fast_path_only():
    """2 bit looks for the next group every 16 rows in the fused kernel, every 32 when it reconstructs."""
    spec = replace(SPEC, bits=2, group_size=16)
    assert SimExllama().supports(spec).ok
    assert not SimReconstruct().supports(spec).ok and not SimGptq().supports(spec).ok


@pytest.mark.parametrize("group_size", [32, 64, 128, 256])
def test_usual_layers_are_supported(group_size):
    """Nothing to refuse, and no reason given."""
    for kernel in (SimExllama(), SimReconstruct(), SimGptq()):
        support = kernel.supports(replace(SPEC, group_size=group_size))
        assert support.ok and not support.reason


def test_store_keeps_what_fits():
    """The first weights stay, later ones are built again; a budget of 0 keeps none."""
    built = []

    def build(size):
        built.append(size)
        return np.zeros(size, np.int8)

    store: WeightStore[np.ndarray] = WeightStore(100)
    for _ in range(2):
        store.get("a", lambda: build(60))
        store.get("b", lambda: build(50))
    assert built == [60, 50, 50] and store.used == 60
    empty: WeightStore[np.ndarray] = WeightStore(0)
    empty.get("a", lambda: build(1))
    empty.get("a", lambda: build(1))
    assert built[3:] == [1, 1]
