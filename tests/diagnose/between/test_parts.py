"""Every interval against the library that engines take it from, in double precision."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from gptq_diff.diagnose.between.activation import KNOWN, gated
from gptq_diff.diagnose.between.attention import Variant, attention, queries
from gptq_diff.diagnose.between.computed import HALF, SINGLE, Computed, shares
from gptq_diff.diagnose.between.head import Hidden, logits
from gptq_diff.diagnose.between.norms import rms_norm
from gptq_diff.diagnose.between.shape import Shape, shape_of

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 96, "num_hidden_layers": 2, "num_attention_heads": 6,
    "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 5e5, "hidden_act": "silu",
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
WHOLE = [slice(0, 40)]
OTHERS = [
    Variant(scale=1.05), Variant(rotary=False), Variant(mixed_heads=True), Variant(causal=False),
    Variant(interleaved=True), Variant(window=20),
]  # fmt: skip


def shape(**changes: Any) -> Shape:
    found = shape_of({**CONFIG, **changes})
    assert isinstance(found, Shape)
    return found


def library(config: dict[str, Any], q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """transformers' rotary embedding and torch's attention in float64; q, k, v [T, heads * d]."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    made = LlamaConfig(**{k: v for k, v in config.items() if k != "model_type"})
    rows, d = q.shape[0], config["head_dim"]
    heads = [t.double().reshape(1, rows, -1, d).transpose(1, 2) for t in (q, k, v)]
    cos, sin = LlamaRotaryEmbedding(made)(heads[0], torch.arange(rows)[None])
    turned_q, turned_k = apply_rotary_pos_emb(heads[0], heads[1], cos, sin)
    out = torch.nn.functional.scaled_dot_product_attention(
        turned_q, turned_k, heads[2], is_causal=True, enable_gqa=True
    )
    return out.transpose(1, 2).reshape(rows, -1)


def drawn(rows: int = 40, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(rows, width, generator=generator) * 2 for width in (96, 32, 32))
    return q.half(), k.half(), v.half()


class TestAttention:
    @pytest.mark.parametrize("rope", [None, LLAMA3, {"rope_type": "linear", "factor": 4.0}])
    def test_it_is_the_librarys(self, rope: dict[str, Any] | None) -> None:
        """Rotary embedding with every scaling that is taken, shared kv heads, causal softmax."""
        config = {**CONFIG, "rope_scaling": rope}
        q, k, v = drawn()
        found = attention(q.float(), k.float(), v.float(), shape(rope_scaling=rope), SINGLE, queries(40))
        assert torch.allclose(found.exact_TN, library(config, q, k, v), atol=2e-6)

    def test_some_queries_of_a_long_prompt(self) -> None:
        """The first and the last are among them, and each is what it is among all."""
        q, k, v = drawn(300)
        at = queries(300, 7)
        assert len(at) == 7
        assert {0, 299} <= set(at.tolist())
        some, every = (attention(q, k, v, shape(), HALF, rows) for rows in (at, queries(300, 300)))
        assert torch.allclose(some.exact_TN, every.exact_TN[at], atol=1e-5)
        assert torch.allclose(some.variance_TN, every.variance_TN[at], rtol=1e-3)

    def test_a_lost_token_loses_those_after_it(self) -> None:
        """A NaN in k reaches every later query, and its own; the earlier ones are judged as far as they are finite."""
        q, k, v = drawn()
        k[7, 3] = float("nan")
        found = attention(q, k, v, shape(), HALF, queries(40))
        assert found.ok_T.tolist() == [i < 7 for i in range(40)]
        assert bool(found.mixed_T.all())

    @pytest.mark.parametrize("variant", OTHERS)
    def test_another_attention_is_none_of_its_rounding(self, variant: Variant) -> None:
        """Each known fault is far beyond the threshold in float16, and within it when it is expected."""
        q, k, v = drawn()
        own = attention(q, k, v, shape(), HALF, queries(40))
        other = attention(q, k, v, shape(), HALF, queries(40), variant)
        captured = other.exact_TN.half()
        assert excess(own, captured) > 2
        assert excess(other, captured) < 1

    def test_a_window_is_the_models_own(self) -> None:
        """Mistral's sliding window hides tokens from the shape itself."""
        q, k, v = drawn()
        mistral = shape(model_type="mistral", sliding_window=20)
        a = attention(q, k, v, mistral, HALF, queries(40))
        b = attention(q, k, v, replace(mistral, window=None), HALF, queries(40), Variant(window=20))
        assert torch.equal(a.exact_TN, b.exact_TN)


def excess(computed: Computed, captured: torch.Tensor) -> float:
    (found,) = shares(computed, captured, WHOLE, HALF)
    assert found.excess is not None
    return found.excess


class TestNorm:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
    def test_the_librarys_own_rounding_is_explained(self, dtype: torch.dtype) -> None:
        """LlamaRMSNorm in that dtype stays below half of the threshold; a weight that is 1 % off in one channel does
        not."""
        from transformers.models.llama.modeling_llama import LlamaRMSNorm

        precision = HALF if dtype == torch.float16 else SINGLE
        generator = torch.Generator().manual_seed(1)
        stream = (torch.randn(40, 96, generator=generator) * 5).to(dtype)
        stream[0, 7] = 3000.0
        weight = torch.rand(96, generator=generator).to(dtype) + 0.5
        norm = LlamaRMSNorm(96, 1e-5)
        norm.weight.data = weight.clone()
        with torch.no_grad():
            right = norm(stream)
            norm.weight.data[11] *= 1.01
            wrong = norm(stream)
        computed = rms_norm(stream, weight.to(precision.wide), 1e-5, precision)
        assert torch.allclose(
            computed.exact_TN.double(), torch.nn.functional.rms_norm(stream.double(), (96,), weight.double(), 1e-5),
            rtol=1e-6,
        )  # fmt: skip
        (good,), (bad,) = (shares(computed, t, WHOLE, precision) for t in (right, wrong))
        assert good.excess is not None
        assert bad.excess is not None
        assert good.excess < 0.6
        assert bad.excess > 2


class TestActivation:
    def test_the_rounding_of_silu_and_product_is_explained(self) -> None:
        """float16 silu(gate) * up is within the threshold; gelu is not."""
        gate, up = (torch.randn(40, 200, generator=torch.Generator().manual_seed(s)).half() * 4 for s in (1, 2))
        computed = gated(gate, up, KNOWN["silu"], HALF)
        assert excess(computed, torch.nn.functional.silu(gate) * up) < 0.6
        assert excess(computed, torch.nn.functional.gelu(gate) * up) > 5

    def test_a_product_beyond_float16(self) -> None:
        """An infinite value is the format's limit where the exact product is beyond it, and lost where it is not."""
        gate, up = torch.full((2, 3), 300.0).half(), torch.full((2, 3), 300.0).half()
        up[1, 1] = 2.0
        computed = gated(gate, up, KNOWN["silu"], HALF)
        captured = torch.nn.functional.silu(gate) * up
        captured[1, 1] = float("inf")
        (found,) = shares(computed, captured, [slice(0, 2)], HALF)
        assert (found.lost.beyond, found.lost.within, found.lost.first_index) == (5, 1, (0, 0))


class TestHead:
    def test_logits_and_one_wrong_row(self) -> None:
        """The product rounded to float16 is within the threshold; one row of the head 30 % larger is not."""
        generator = torch.Generator().manual_seed(3)
        weight = (torch.randn(5000, 96, generator=generator) / 10).half()
        stream = torch.randn(1, 96, generator=generator).half()
        normed = rms_norm(stream, torch.ones(96), 1e-5, HALF)
        (found,) = logits([Hidden(normed, HALF)], weight)
        exact = torch.nn.functional.rms_norm(stream.double(), (96,), None, 1e-5) @ weight.double().T
        assert torch.allclose(found.exact_TN, exact, atol=1e-5)
        captured = (normed.exact_TN.half().float() @ weight.float().T).half()
        (good,) = shares(found, captured, [slice(0, 1)], HALF)
        captured[0, int(exact.abs().argmax())] *= 1.3
        (bad,) = shares(found, captured, [slice(0, 1)], HALF)
        assert good.excess is not None
        assert bad.excess is not None
        assert good.excess < 0.7
        assert bad.excess > 2


class TestShape:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"model_type": "gpt2"}, "of a gpt2 is not known"),
            ({"hidden_act": "swiglu-oai"}, "activation swiglu-oai"),
            ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "'yarn'"),
            ({"partial_rotary_factor": 0.5}, "a part 0.5"),
            ({"model_type": "qwen2", "use_sliding_window": True}, "Qwen2 with a sliding window"),
            ({"num_hidden_layers": None}, "num_hidden_layers is None"),
        ],
    )
    def test_what_is_not_known_is_said(self, changes: dict[str, Any], reason: str) -> None:
        """A model whose arithmetic is not understood is not judged, with the reason."""
        found = shape_of({**CONFIG, **changes})
        assert isinstance(found, str)
        assert reason in found

    def test_biases_by_architecture(self) -> None:
        """Only those that the architecture adds: AutoGPTQ stores zeros for the others."""
        assert shape(model_type="qwen2").biased == {"q_proj", "k_proj", "v_proj"}
        assert shape().biased == frozenset()
        assert "o_proj" in shape(attention_bias=True).biased

    def test_both_spellings_of_the_rotary_settings(self) -> None:
        """transformers 5 writes rope_parameters, older releases rope_theta and rope_scaling."""
        new = shape(rope_theta=None, rope_parameters={"rope_theta": 7e4, "rope_type": "default"})
        assert (new.theta, shape(rope_theta=7e4).theta) == (7e4, 7e4)
