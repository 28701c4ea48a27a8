"""Modules, proof and taps of hosted models, on stand-ins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.hosted.modules import HostedLinear, hosted_linears
from gptq_diff.engines.hosted.proof import Proof, proving
from gptq_diff.engines.hosted.rest import prove_rest
from gptq_diff.engines.hosted.taps import tapped
from gptq_diff.errors import BackendError
from tests.checkpoint.build import write_checkpoint
from tests.engines.hosted.fakes import DOWN, LAYERS, QUERY, FakeModel, exact, tensors_of_model, write_model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path / "model"))


@pytest.fixture
def model(checkpoint: Checkpoint) -> FakeModel:
    return FakeModel(checkpoint.path, "torch")


def linears_of(model: nn.Module, checkpoint: Checkpoint) -> list[HostedLinear]:
    return hosted_linears(model, checkpoint.layers, "lib")


def proof_of(model: nn.Module, checkpoint: Checkpoint, step: Any = lambda model: None) -> Proof:
    """What is proved when the library's step is called on that model."""
    holder = SimpleNamespace(post_init=step)
    with proving(holder, "post_init", checkpoint, "lib") as proof:
        holder.post_init(model)
    assert holder.post_init is step
    return proof


def test_every_linear_is_found_in_the_checkpoints_order(model: FakeModel, checkpoint: Checkpoint) -> None:
    found = linears_of(model, checkpoint)
    assert [linear.spec.name for linear in found] == list(LAYERS)
    assert [linear.module for linear in found] == model.linears
    assert {linear.kind for linear in found} == {"torch"}


def test_a_packed_module_that_the_checkpoint_does_not_know_is_refused(model: FakeModel, checkpoint: Checkpoint) -> None:
    model.model.extra = model.model.mlp.down_proj
    del model.model.mlp.down_proj
    with pytest.raises(BackendError, match=r"lib's quantised module model\.extra is no quantised linear"):
        linears_of(model, checkpoint)


def test_a_model_without_packed_modules_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match="lib runs this model without any GPTQ linear"):
        linears_of(nn.Linear(2, 2), checkpoint)


def test_the_proof_is_made_before_the_library_shuffles(model: FakeModel, checkpoint: Checkpoint) -> None:
    def shuffle(model: FakeModel) -> str:
        for linear in model.linears:
            linear.shuffle()
        return "done"

    holder = SimpleNamespace(post_init=shuffle)
    with proving(holder, "post_init", checkpoint, "lib") as proof:
        assert holder.post_init(model=model) == "done"
    assert proof.proved == set(LAYERS)
    assert torch.equal(proof.biases[QUERY], tensors_of_model()[f"{QUERY}.bias"])
    proof.check(linears_of(model, checkpoint), "lib")


@pytest.mark.parametrize("what", ["qweight", "qzeros", "scales", "g_idx"])
def test_one_changed_value_is_refused_by_name(model: FakeModel, checkpoint: Checkpoint, what: str) -> None:
    held = getattr(model.model.mlp.down_proj, what)
    held.view(-1)[3] += 1
    with pytest.raises(BackendError, match=rf"lib's {DOWN} does not hold the checkpoint's {what}: it differs in 1 of"):
        proof_of(model, checkpoint)


def test_nan_scales_are_equal_to_themselves(tmp_path: Path) -> None:
    """The bits are compared: a checkpoint with a NaN scale is proved like any other, and not taken for another NaN."""
    tensors = tensors_of_model()
    tensors[f"{DOWN}.scales"][1, 2] = float("nan")
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "nan", tensors))
    model = FakeModel(checkpoint.path, "torch")
    assert proof_of(model, checkpoint).proved == set(LAYERS)
    model.model.mlp.down_proj.scales.view(torch.int16)[1, 2] += 1
    with pytest.raises(BackendError, match="scales: it differs in 1 of"):
        proof_of(model, checkpoint)


def test_another_shape_or_none_is_refused(model: FakeModel, checkpoint: Checkpoint) -> None:
    model.model.attn.q_proj.qzeros = torch.zeros((1, 8), dtype=torch.int32)
    with pytest.raises(BackendError, match=r"qzeros: it has the shape \[1, 8\], not \[2, 8\]"):
        proof_of(model, checkpoint)
    model.model.attn.q_proj.qzeros = None
    with pytest.raises(BackendError, match="qzeros: it is not there"):
        proof_of(model, checkpoint)


def test_what_was_never_shown_is_not_proved(model: FakeModel, checkpoint: Checkpoint) -> None:
    with proving(SimpleNamespace(), "post_init", checkpoint, "lib") as proof:
        pass
    with pytest.raises(BackendError, match=rf"could not be proved that lib's {QUERY} holds"):
        proof.check(linears_of(model, checkpoint), "lib")


def test_the_step_is_put_back_when_the_proof_fails(model: FakeModel, checkpoint: Checkpoint) -> None:
    def step(model: nn.Module) -> None:
        raise AssertionError("must not be reached")

    model.model.mlp.down_proj.qweight[0, 0] += 1
    holder = SimpleNamespace(post_init=step)
    with pytest.raises(BackendError), proving(holder, "post_init", checkpoint, "lib"):
        holder.post_init(model)
    assert holder.post_init is step


def test_the_tap_sees_the_product_without_the_bias_and_is_gone_afterwards(
    model: FakeModel, checkpoint: Checkpoint
) -> None:
    module, tensors = model.model.attn.q_proj, tensors_of_model()
    bias, seen = tensors[f"{QUERY}.bias"], []
    x = torch.randn((2, 3, 64), generator=torch.Generator().manual_seed(3)).to(torch.float16)
    bare = module(x)
    linears = linears_of(model, checkpoint)[:1]
    module.bias = bias.flip(0)  # a kernel permuted it: the bias as read is added
    with tapped(linears, {QUERY: bias}, lambda linear, x, y: seen.append((linear.spec.name, x, y))):
        with_tap = module(x)
        assert torch.equal(module.bias, bias.flip(0))
    assert "forward" not in vars(module)
    assert torch.equal(with_tap, bare)
    (name, x_MK, y_MN), *rest = seen
    assert (name, tuple(x_MK.shape), tuple(y_MN.shape), rest) == (QUERY, (6, 64), (6, 64), [])
    assert torch.equal(y_MN, (x.reshape(6, 64).float() @ exact(tensors, QUERY)).to(torch.float16))


def test_a_forward_that_something_else_put_there_is_put_back(model: FakeModel, checkpoint: Checkpoint) -> None:
    """Accelerate's hooks replace a module's forward in the same way."""
    module = model.model.mlp.down_proj
    own = module.forward
    module.forward = other = lambda x: own(x) * 2
    with tapped(linears_of(model, checkpoint)[1:], {}, lambda *_: None):
        assert module.forward is not other
    assert module.forward is other


def test_what_lies_between_the_linears_is_compared_too(model: FakeModel, checkpoint: Checkpoint) -> None:
    assert prove_rest(model, checkpoint, "lib") == []
    with torch.no_grad():
        model.model.norm.weight[5] = 7
    with pytest.raises(BackendError, match=r"lib's model\.norm\.weight is not the checkpoint's: it differs in 1 of 64"):
        prove_rest(model, checkpoint, "lib")


def test_a_tied_embedding_left_unread_is_filled_in_and_said(tmp_path: Path) -> None:
    """As auto_gptq leaves it: the embedding tied to an lm_head that no file brought."""
    checkpoint = open_checkpoint(write_model(tmp_path / "tied", head=False))
    model = FakeModel(checkpoint.path, "torch")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    assert prove_rest(model, checkpoint, "lib") == ["model.embed_tokens.weight"]
    assert torch.equal(model.lm_head.weight, checkpoint.tensor("model.embed_tokens.weight"))


def test_an_untied_embedding_is_not_filled_in(model: FakeModel, checkpoint: Checkpoint) -> None:
    with torch.no_grad():
        model.model.embed_tokens.weight.zero_()
    with pytest.raises(BackendError, match="embed_tokens"):
        prove_rest(model, checkpoint, "lib")
