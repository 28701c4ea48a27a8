from __future__ import annotations

import pytest
import torch

from gptq_diff.engines import mapped
from gptq_diff.engines.mapped import MappedEmbedding, MappedLinear, Scratch


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_the_embedding_looks_up_and_converts(dtype: torch.dtype) -> None:
    """Rows of the table, in the skeleton's dtype; the table itself is no parameter and stays as it is."""
    table = torch.randn(10, 4).to(torch.bfloat16)
    module = MappedEmbedding(table, dtype)
    ids = torch.tensor([[3, 3, 9], [0, 1, 2]])
    found = module(ids)
    assert found.dtype == dtype
    assert torch.equal(found, table.float()[ids].to(dtype))
    assert module.weight.data_ptr() == table.data_ptr()
    assert list(module.parameters()) == []
    module.to(torch.float64)
    assert module.weight is table


@pytest.mark.parametrize("rows", [1, 3, 4, 9])
@pytest.mark.parametrize("bias", [False, True])
def test_the_linear_rounds_once(monkeypatch: pytest.MonkeyPatch, rows: int, bias: bool) -> None:
    """However many chunks: float64's answer rounded to the input's dtype, but for a last bit of float32's."""
    monkeypatch.setattr(mapped, "CHUNK_ROWS", 4)
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(rows, 16, generator=generator).half()
    bias_N = torch.randn(rows, generator=generator).half() if bias else None
    x = torch.randn(2, 3, 16, generator=generator).half()
    exact = x.double() @ weight.double().t() + (bias_N.double() if bias_N is not None else 0)
    found = MappedLinear(weight, bias_N)(x)
    assert found.shape == (2, 3, rows)
    assert found.dtype == torch.float16
    assert torch.allclose(found.double(), exact, rtol=2**-11 * 1.01, atol=1e-6)
    wide = MappedLinear(weight, bias_N)(x.float())
    assert torch.allclose(wide.double(), exact, rtol=1e-5, atol=1e-5)


def test_linears_may_share_what_they_widen_into() -> None:
    """In and out of inference mode, larger after smaller: nobody's result changes with the next one's weight."""
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(n, 16, generator=generator).half() for n in (3, 9, 5)]
    scratch = Scratch()
    linears = [MappedLinear(weight, None, scratch) for weight in weights]
    x = torch.randn(4, 16, generator=generator)
    with torch.inference_mode():
        inside = [linear(x) for linear in linears]
    outside = [linear(x) for linear in linears]
    for weight, one, other in zip(weights, inside, outside):
        assert torch.allclose(one, x @ weight.float().t(), rtol=1e-5, atol=1e-5)
        assert torch.equal(one, other)
    assert scratch._memory.numel() == 9 * 16
