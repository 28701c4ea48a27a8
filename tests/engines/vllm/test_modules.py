"""What vLLM fused, which kernel it really took, and what is refused rather than guessed."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.engines.vllm import proof as proof_module
from gptq_diff.engines.vllm.kernels import choose
from gptq_diff.engines.vllm.modules import FusedLinear, fused_linears
from gptq_diff.engines.vllm.proof import PLACES, Proof, prove, proving
from gptq_diff.errors import BackendError
from tests.checkpoint.build import linear_tensors, quant_config, write_checkpoint
from tests.engines.vllm.fakes import (
    AutoGPTQLinearMethod,
    CPUWNA16LinearKernel,
    ExllamaLinearKernel,
    FakeLinear,
    GPTQLinearMethod,
    MarlinLinearKernel,
    MysteryLinearKernel,
)

ATTENTION = "model.layers.0.self_attn"


@pytest.fixture(params=["float16", "bfloat16"])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Checkpoint:
    """One block: q, k and v (k and v of one size) with biases, and down_proj without."""
    dtype = getattr(torch, request.param)
    tensors = {}
    for i, (name, n) in enumerate([("q_proj", 64), ("k_proj", 32), ("v_proj", 32)]):
        tensors.update(linear_tensors(f"{ATTENTION}.{name}", 64, n, seed=i, sym=False, bias=True, dtype=dtype))
    tensors.update(linear_tensors("model.layers.0.mlp.down_proj", 96, 64, seed=9, dtype=dtype))
    return open_checkpoint(write_checkpoint(tmp_path / "model", tensors, quant_config(sym=False)))


def model_of(checkpoint: Checkpoint, order: tuple[str, ...] = ("q_proj", "k_proj", "v_proj"), **kinds: Any) -> Any:
    """vLLM's shape of it; kinds: kernel class for qkv and down."""

    def method(which: str) -> Any:
        kernel = kinds.get(which, CPUWNA16LinearKernel)
        return GPTQLinearMethod() if kernel is None else AutoGPTQLinearMethod(kernel())

    parts = [checkpoint.packed(f"{ATTENTION}.{name}") for name in order]
    model: Any = nn.Module()
    model.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    model.model = nn.Module()
    model.model.layers = nn.ModuleList([nn.Module()])
    block: Any = model.model.layers[0]
    block.self_attn, block.mlp, block.norm = nn.Module(), nn.Module(), nn.LayerNorm(4)
    block.self_attn.qkv_proj = FakeLinear(parts, method("qkv"))
    block.mlp.down_proj = FakeLinear([checkpoint.packed("model.layers.0.mlp.down_proj")], method("down"))
    return model


def linears_of(checkpoint: Checkpoint, **kinds: Any) -> list[FusedLinear]:
    return fused_linears(model_of(checkpoint, **kinds), checkpoint.layers)


def test_a_fused_module_is_its_linears_column_by_column(checkpoint: Checkpoint) -> None:
    qkv, down = linears_of(checkpoint)
    assert [(p.spec.name.rpartition(".")[2], p.first, p.last) for p in qkv.parts] == [
        ("q_proj", 0, 64), ("k_proj", 64, 96), ("v_proj", 96, 128),
    ]  # fmt: skip
    assert [(p.spec.name, p.first, p.last) for p in down.parts] == [("model.layers.0.mlp.down_proj", 0, 64)]
    assert qkv.kernel_class == "CPUWNA16LinearKernel"
    assert qkv.path == "vllm-cpu-w4a16"


def test_other_sizes_than_the_checkpoints_are_refused(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint)
    model.model.layers[0].self_attn.qkv_proj.output_partition_sizes = [32, 32, 64]
    with pytest.raises(BackendError, match=r"holds columns \[32, 32, 64\]"):
        fused_linears(model, checkpoint.layers)


def test_a_module_that_the_checkpoint_does_not_have_is_refused(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint)
    model.packed_modules_mapping = {}
    with pytest.raises(BackendError, match=r"no linear model\.layers\.0\.self_attn\.qkv_proj"):
        fused_linears(model, checkpoint.layers)


def test_a_model_without_gptq_linears_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match="without any GPTQ linear"):
        fused_linears(nn.Linear(2, 2), checkpoint.layers)


def test_the_split_is_proved_on_the_packed_tensors(checkpoint: Checkpoint) -> None:
    proof = Proof()
    for linear in linears_of(checkpoint):
        prove(linear, checkpoint, proof)
    assert set(proof.places) == {spec.name for spec in checkpoint.layers}
    assert list(proof.biases) == [f"{ATTENTION}.qkv_proj"]
    assert proof.biases[f"{ATTENTION}.qkv_proj"].shape == (128,)


def test_k_and_v_swapped_are_noticed_although_their_sizes_agree(checkpoint: Checkpoint) -> None:
    model = model_of(checkpoint, order=("q_proj", "v_proj", "k_proj"))
    expected = r"does not hold model\.layers\.0\.self_attn\.k_proj in its columns 64 to 95"
    with pytest.raises(BackendError, match=expected):
        for linear in fused_linears(model, checkpoint.layers):
            prove(linear, checkpoint, Proof())


@pytest.mark.parametrize("what", ["qweight", "qzeros", "scales"])
def test_one_differing_value_anywhere_is_noticed(checkpoint: Checkpoint, what: str) -> None:
    linears = linears_of(checkpoint)
    tensor = getattr(linears[1].module, what)
    tensor[-1, -1] = -tensor[-1, -1]
    with pytest.raises(BackendError, match=f"{what} differs in 1 of {tensor.numel()} values"):
        prove(linears[1], checkpoint, Proof())


def test_a_nan_scale_equals_itself(tmp_path: Path) -> None:
    """A damaged checkpoint must load: it is what the tool is for."""
    tensors = linear_tensors("model.down_proj", 64, 32)
    tensors["model.down_proj.scales"][0, 3] = float("nan")
    damaged = open_checkpoint(write_checkpoint(tmp_path / "m", tensors))
    model: Any = nn.Module()
    model.model = nn.Module()
    model.model.down_proj = FakeLinear([damaged.packed("model.down_proj")], GPTQLinearMethod())
    prove(fused_linears(model, damaged.layers)[0], damaged, Proof())


@pytest.mark.parametrize("place", PLACES)
def test_loading_is_watched_between_reading_and_shuffling(
    checkpoint: Checkpoint, place: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hook sees the model before vLLM's own step, which still runs; afterwards it is gone."""
    module_name, name = place
    module: Any = ModuleType(module_name)
    done: list[object] = []
    setattr(module, name, lambda *a, **k: done.append((a, k)))
    original = getattr(module, name)
    for other, _ in PLACES:
        monkeypatch.setitem(sys.modules, other, module if other == module_name else None)
    parts = module_name.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    model = model_of(checkpoint)
    with proving(checkpoint) as proof:
        getattr(module, name)(model, "config", target="cpu")
        assert len(proof.places) == 4
    assert done == [((model, "config"), {"target": "cpu"})]
    assert getattr(module, name) is original


@pytest.mark.parametrize(
    ("mode", "kernel", "path"),
    [
        ("as-chosen", CPUWNA16LinearKernel, "vllm-cpu-w4a16"),
        ("as-chosen", None, "gptq_gemm"),
        ("as-chosen", MarlinLinearKernel, "marlin"),
        ("gptq-by-rows", None, "gptq_gemm"),
        ("exllama-fast", ExllamaLinearKernel, "gptq_gemm"),
        ("marlin", MarlinLinearKernel, "marlin"),
    ],
)
def test_a_mode_takes_the_kernel_it_asks_for(checkpoint: Checkpoint, mode: str, kernel: Any, path: str) -> None:
    choice = choose(mode, linears_of(checkpoint, qkv=kernel, down=kernel))
    assert {linear.path for linear in choice.judged} == {path}
    assert choice.skipped == {}


@pytest.mark.parametrize(
    ("mode", "kernel"),
    [
        ("gptq-by-rows", MarlinLinearKernel),
        ("exllama-reconstruct", CPUWNA16LinearKernel),
        ("marlin", None),
        ("machete", MarlinLinearKernel),
        ("marlin", MysteryLinearKernel),
    ],
)
def test_one_module_on_another_kernel_is_a_refusal(checkpoint: Checkpoint, mode: str, kernel: Any) -> None:
    wanted = {"marlin": MarlinLinearKernel, "machete": type("MacheteLinearKernel", (CPUWNA16LinearKernel,), {})}
    with pytest.raises(BackendError, match=r"vLLM runs model\.layers\.0\.mlp\.down_proj on"):
        choose(mode, linears_of(checkpoint, qkv=wanted.get(mode), down=kernel))


def test_an_unknown_kernel_is_skipped_with_its_name_where_vllm_may_choose(checkpoint: Checkpoint) -> None:
    choice = choose("as-chosen", linears_of(checkpoint, down=MysteryLinearKernel))
    assert list(choice.skipped) == ["model.layers.0.mlp.down_proj"]
    assert "MysteryLinearKernel" in choice.skipped["model.layers.0.mlp.down_proj"]


def marlin_that_says(answer: tuple[bool, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put vLLM's MarlinLinearKernel class where newer releases keep it."""
    home = "vllm.model_executor.kernels.linear.mixed_precision"
    module: Any = ModuleType(home)
    module.MarlinLinearKernel = type("MarlinLinearKernel", (), {"can_implement": staticmethod(lambda config: answer)})
    parts = home.split(".")
    for end in range(1, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, home, module)


def test_what_marlin_itself_refuses_is_skipped_with_its_words(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    marlin_that_says((False, "K = 96 is not divisible by 128"), monkeypatch)
    choice = choose("marlin", linears_of(checkpoint, qkv=MarlinLinearKernel, down=ExllamaLinearKernel))
    assert choice.skipped == {
        "model.layers.0.mlp.down_proj": "MarlinLinearKernel refuses it: K = 96 is not divisible by 128"
    }
    with pytest.raises(BackendError, match="no linear of this model runs on marlin: MarlinLinearKernel refuses it"):
        choose("marlin", linears_of(checkpoint, qkv=ExllamaLinearKernel, down=ExllamaLinearKernel))


def test_a_stand_in_without_need_is_a_refusal(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """VLLM may fall back without a word: if Marlin could have run, something is wrong."""
    marlin_that_says((True, ""), monkeypatch)
    with pytest.raises(BackendError, match="on ExllamaLinearKernel, not on what marlin asks for"):
        choose("marlin", linears_of(checkpoint, qkv=MarlinLinearKernel, down=ExllamaLinearKernel))


def test_an_unknown_mode_is_refused(checkpoint: Checkpoint) -> None:
    with pytest.raises(BackendError, match="no kernel mode called 'turbo'"):
        choose("turbo", linears_of(checkpoint))


class TestAllAtOnce:
    """On a GPU: every module compared where it is expected, looked at once."""

    @pytest.fixture(autouse=True)
    def there(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The fake one: what is brought counts as sent; the names of modules that were looked for one by one."""
        alone: list[str] = []
        real = proof_module.prove
        monkeypatch.setattr(
            proof_module, "brought", lambda ckpt, specs, device: [(s, ckpt.packed(s.name)) for s in specs]
        )
        monkeypatch.setattr(
            proof_module, "prove", lambda linear, *rest: (alone.append(linear.name), real(linear, *rest))
        )
        return alone

    def proved(self, checkpoint: Checkpoint, model: Any) -> Proof:
        proof = Proof()
        proof_module.prove_all(fused_linears(model, checkpoint.layers), checkpoint, proof)
        return proof

    @pytest.fixture(autouse=True)
    def on_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(proof_module, "device_of", lambda linears: torch.device("cuda"))

    def test_what_lies_as_expected_is_proved_as_one_by_one(self, checkpoint: Checkpoint, there: list[str]) -> None:
        model = model_of(checkpoint)
        proof, alone = self.proved(checkpoint, model), Proof()
        assert there == []
        for linear in fused_linears(model, checkpoint.layers):
            prove(linear, checkpoint, alone)
        assert proof.places == alone.places
        assert len(proof.places) == 4
        assert proof.biases.keys() == alone.biases.keys()

    @pytest.mark.parametrize("what", ["qweight", "qzeros", "scales"])
    def test_one_differing_value_is_told_as_one_by_one(
        self, checkpoint: Checkpoint, there: list[str], what: str
    ) -> None:
        """In the same words, by the search that looks closer."""
        model = model_of(checkpoint)
        getattr(model.model.layers[0].self_attn.qkv_proj, what).view(-1)[-1] += 1
        with pytest.raises(BackendError, match=rf"does not hold {ATTENTION}.v_proj .*: {what} differs in 1 of"):
            self.proved(checkpoint, model)
        assert there == ["model.layers.0.self_attn.qkv_proj"]

    def test_a_tensor_that_is_not_there_is_told(self, checkpoint: Checkpoint) -> None:
        model = model_of(checkpoint)
        model.model.layers[0].mlp.down_proj.qzeros = None
        with pytest.raises(BackendError, match="qzeros is not there"):
            self.proved(checkpoint, model)
