from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gptq_diff.capture.products import CallProducts, call_input, kept_rows, read_input, read_products, write_products
from gptq_diff.errors import CaptureError
from gptq_diff.jobs import LinearCall

X = torch.arange(12, dtype=torch.float16).reshape(3, 4) + 1


def test_rows_come_in_the_order_asked_for_and_as_often() -> None:
    """So any number of rows can be made of those captured."""
    assert torch.equal(call_input(X, LinearCall("c", (2, 0, 2))), X[[2, 0, 2]])


def test_halving_is_exact_until_values_are_subnormal() -> None:
    """What the kernel gets is what the judge computes with: the float16 value, rounded once."""
    assert torch.equal(call_input(X, LinearCall("c", (0, 1, 2), halvings=3)), X / 8)
    tiny = torch.tensor([[2.0**-23 * 3]], dtype=torch.float16)
    assert call_input(tiny, LinearCall("c", (0,), halvings=1)).item() == 2.0**-24 * 3
    assert call_input(tiny, LinearCall("c", (0,), halvings=2)).item() == 2.0**-24 * 2  # 1.5, to even
    wide = torch.tensor([[1e30]])
    assert call_input(wide, LinearCall("c", (0,), halvings=1)).dtype == torch.float32


def test_what_is_not_kept_of_k_is_zero() -> None:
    """Spans may be several; the stored x stays as it is."""
    before = X.clone()
    found = call_input(X, LinearCall("c", (0, 1), kept=((0, 1), (3, 4))))
    assert found.tolist() == [[1, 0, 0, 4], [5, 0, 0, 8]]
    assert torch.equal(X, before)
    spoiled = X.clone()
    spoiled[0, 0] = float("inf")
    assert call_input(spoiled, LinearCall("c", (0,), kept=((1, 2),))).tolist() == [[0, 2, 0, 0]]
    assert call_input(spoiled, LinearCall("c", (0,), zero=True)).tolist() == [[0, 0, 0, 0]]


def test_all_rows_are_kept_unless_some_are_named() -> None:
    assert kept_rows(LinearCall("c", (5, 5, 5))) == (0, 1, 2)
    assert kept_rows(replace(LinearCall("c", (5, 5, 5)), keep=(2,))) == (2,)


def test_products_survive_their_file(tmp_path: Path) -> None:
    """NaN and the path included; nothing half-written is left."""
    products = {
        "a": CallProducts(torch.tensor([[[1.0, float("nan")]]], dtype=torch.float16), "exllama-fast"),
        "b/2": CallProducts(torch.ones(2, 3, 4), "exact"),
    }
    write_products(tmp_path / "y.safetensors", products)
    found = read_products(tmp_path / "y.safetensors")
    assert {name: p.path for name, p in found.items()} == {"a": "exllama-fast", "b/2": "exact"}
    assert torch.equal(found["a"].y_RMN.view(torch.int16), products["a"].y_RMN.view(torch.int16))
    assert torch.equal(found["b/2"].y_RMN, products["b/2"].y_RMN)
    assert [p.name for p in tmp_path.iterdir()] == ["y.safetensors"]


@pytest.mark.parametrize("content", [None, b"", b"no tensors", "other tensors"])
def test_a_file_that_is_not_there_or_another_is_a_sentence(tmp_path: Path, content: bytes | str | None) -> None:
    path = tmp_path / "y.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file({"z": X}, path)
    with pytest.raises(CaptureError, match=r"y\.safetensors is"):
        read_products(path)
    with pytest.raises(CaptureError, match=r"y\.safetensors is"):
        read_input(path)
