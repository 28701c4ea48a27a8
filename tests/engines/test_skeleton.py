from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.quant_linear import Switchboard
from gptq_diff.engines.skeleton import empty_model, fill, parameters_on_meta
from gptq_diff.errors import BackendError
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.records import SkippedLayer
from tests.engines.models import Tensors, edited

PROMPT = (5, 6, 7)


def load(model: Path) -> HfEngine:
    return HfEngine(LoadSpec("transformers", model, "float32", "cpu", False, 1, 0))


def test_parameters_are_on_meta_and_buffers_are_real() -> None:
    """A checkpoint holds the parameters; nobody else holds the buffers."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 4)
            self.register_parameter("nothing", None)
            self.register_buffer("table", torch.arange(3.0))

    with parameters_on_meta():
        model = Model()
    assert all(p.is_meta for p in model.parameters())
    assert len(list(model.parameters())) == 2
    assert model.get_buffer("table").tolist() == [0, 1, 2]


def test_the_patch_is_undone_even_after_an_error() -> None:
    """torch is as it was, whatever happens inside."""
    original = nn.Module.register_parameter
    with pytest.raises(ZeroDivisionError), parameters_on_meta():
        assert nn.Module.register_parameter is not original
        raise ZeroDivisionError
    assert nn.Module.register_parameter is original
    with parameters_on_meta(), parameters_on_meta():
        pass
    assert nn.Module.register_parameter is original
    assert not nn.Linear(2, 2).weight.is_meta


def test_a_model_that_cannot_be_built_leaves_no_patch(tiny_model: Path, tmp_path: Path) -> None:
    """transformers fails inside the patch."""
    original = nn.Module.register_parameter
    with pytest.raises(BackendError):
        empty_model(edited(tiny_model, tmp_path / "m", hidden_act="no-such"), torch.float32, trust_remote_code=False)
    assert nn.Module.register_parameter is original


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "no-such-model"}, "no-such-model"),
        ({"hidden_act": "no-such"}, "no-such"),
        ({"num_attention_heads": "four"}, "num_attention_heads"),
        ({"model_type": "vit"}, "ViTConfig"),
    ],
    ids=str,
)
def test_a_config_that_transformers_cannot_use_is_one_sentence(
    tiny_model: Path, tmp_path: Path, config: dict[str, object], said: str
) -> None:
    """Unknown type, unknown function, a word for a number, no language model: each told in one line."""
    model = edited(tiny_model, tmp_path / "m", **config)
    with pytest.raises(BackendError, match="transformers cannot build this model: ") as e:
        empty_model(model, torch.float32, trust_remote_code=False)
    assert said in str(e.value)
    assert "\n" not in str(e.value)


def drop(name: str) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.pop(name)


def replace(name: str, tensor: torch.Tensor) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({name: tensor})


def rename_layer(tensors: Tensors) -> None:
    for name in [n for n in tensors if n.startswith("model.layers.0.mlp.down_proj.")]:
        tensors[name.replace("down_proj", "fc2")] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (drop("model.norm.weight"), "the checkpoint lacks the tensor model.norm.weight"),
        (drop("model.embed_tokens.weight"), "the checkpoint lacks the tensor model.embed_tokens.weight"),
        (drop("lm_head.weight"), "the checkpoint lacks the tensor lm_head.weight"),
        (
            drop("model.layers.1.self_attn.k_proj.bias"),
            "the checkpoint lacks the tensor model.layers.1.self_attn.k_proj.bias",
        ),
        (
            replace("model.norm.weight", torch.ones(64, dtype=torch.float16)),
            "model.norm.weight has the shape [64], and config.json asks for [128]",
        ),
        (
            replace("lm_head.weight", torch.ones(500, 128, dtype=torch.float16)),
            "lm_head.weight has the shape [500, 128], and config.json asks for [512, 128]",
        ),
        (rename_layer, "the checkpoint's layer model.layers.0.mlp.fc2 has no place in transformers' Qwen2ForCausalLM"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tiny_model: Path, tmp_path: Path, change: Callable[[Tensors], object], said: str
) -> None:
    """Nothing is left at random values or silently cut: the first tensor that is missing or misshapen is told."""
    with pytest.raises(BackendError) as e:
        load(edited(tiny_model, tmp_path / "m", change))
    assert str(e.value) == said


def test_a_quantised_linear_of_another_size_is_named(tiny_model: Path, tmp_path: Path) -> None:
    """config.json and weights of different models."""
    with pytest.raises(BackendError) as e:
        load(edited(tiny_model, tmp_path / "m", intermediate_size=512))
    assert str(e.value) == "model.layers.0.mlp.down_proj is 256 x 128, and config.json asks for 512 x 128" or str(
        e.value
    ).startswith("model.layers.0.mlp.gate_proj is 128 x 256, and config.json asks for 128 x 512")


def test_a_bias_that_the_architecture_lacks_is_left_out(tiny_model: Path, tmp_path: Path) -> None:
    """AutoGPTQ stores zeros there, and engines leave them out: whatever is stored changes nothing."""
    name = "model.layers.0.mlp.down_proj.bias"
    more = edited(tiny_model, tmp_path / "m", replace(name, torch.ones(128, dtype=torch.float16)))
    both = []
    for model in (tiny_model, more):
        engine = load(model)
        engine.use_kernel("exact")
        both.append(engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=None).first_logits_V)
    assert torch.equal(*both)


@pytest.mark.parametrize("left_out", ["model.layers.2.mlp.up_proj", "model.layers.2.mlp.up_proj.5.gate_proj"])
def test_a_linear_that_the_reader_leaves_out_stops_the_model(tiny_model: Path, tmp_path: Path, left_out: str) -> None:
    """Its weights are missing for a reason that is known, and told; an expert's name lies below its module's."""

    def drop_all(tensors: Tensors) -> None:
        for name in [n for n in tensors if n.startswith("model.layers.2.mlp.up_proj.")]:
            del tensors[name]

    with open_checkpoint(edited(tiny_model, tmp_path / "m", drop_all)) as checkpoint:
        checkpoint.skipped = (SkippedLayer(left_out, "experts are not read"),)
        model = empty_model(checkpoint.path, torch.float32, trust_remote_code=False)
        with pytest.raises(BackendError) as e:
            fill(model, checkpoint, Switchboard(ExactKernel(), ExactKernel()), torch.float32)
    assert str(e.value) == f"{left_out} is left out, so the model cannot run: experts are not read"


def test_subclasses_of_torchs_modules_stay(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma scales what its embedding looks up: a plain lookup in its place would be silently wrong."""
    from transformers.models.qwen2 import modeling_qwen2

    class Scaled(nn.Embedding):
        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return super().forward(ids) * 3

    with monkeypatch.context() as patched:
        patched.setattr(modeling_qwen2.nn, "Embedding", Scaled)
        model = empty_model(tiny_model, torch.float32, trust_remote_code=False)
    with open_checkpoint(tiny_model) as checkpoint:
        fill(model, checkpoint, Switchboard(ExactKernel(), ExactKernel()), torch.float32)
        embedding = model.get_submodule("model.embed_tokens")
        assert type(embedding) is Scaled
        table = checkpoint.tensor("model.embed_tokens.weight").float()
        assert torch.equal(embedding(torch.tensor([4])), table[4:5] * 3)
    assert not any(p.is_meta for p in model.parameters())


MEASURE = """
import os, sys
from pathlib import Path
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.memory import memory_of

def run(model, ids):
    engine = HfEngine(LoadSpec("transformers", Path(model), "float32", "cpu", False, 1, 0))
    engine.use_kernel("exact")
    found = engine.generate(ids, max_new_tokens=2, forced=None, tap=None)
    return found.first_logits_V.shape[0], memory_of(os.getpid()).private

_, before = run(sys.argv[1], (5, 6, 7))  # what torch and transformers take once
rows, after = run(sys.argv[2], (5, 299_999, 7))
print(rows, after - before)
"""


def test_embeddings_are_never_copied(tiny_model: Path, tmp_path: Path) -> None:
    """Embedding and lm_head of 77 MB each stay in the file's pages: loading and running takes less than 25 MB."""
    rows = 300_000

    def enlarge(tensors: Tensors) -> None:
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name].repeat(rows // 512 + 1, 1)[:rows].contiguous()

    model = edited(tiny_model, tmp_path / "m", enlarge, vocab_size=rows)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tiny_model), str(model)], capture_output=True, text=True, check=True
    )
    ran, more = map(int, done.stdout.split())
    assert ran == rows
    assert more < 25_000_000
