"""The whole engine on a stand-in for vLLM: load, prove, check, capture, force."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.capture.store import NullSink
from gptq_diff.capture.tap import BIAS, Call, Tap
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm_engine import VllmEngine
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.vllm_gemm.paths import FAST, RECONSTRUCT, PathGuard
from tests.checkpoint.build import linear_tensors, write_checkpoint
from tests.engines.vllm.fakes import AutoGPTQLinearMethod, CPUWNA16LinearKernel, FakeLinear

VOCABULARY = 64
LAYERS = ("model.attn.q_proj", "model.attn.k_proj", "model.mlp.down_proj")
LOADER = "vllm.model_executor.model_loader.base_loader"


class FakeModel(nn.Module):
    """Embedding, a fused q and k, a down_proj; logits are the last row."""

    packed_modules_mapping = {"qk_proj": ["q_proj", "k_proj"]}

    def __init__(self, directory: str) -> None:
        super().__init__()
        checkpoint = open_checkpoint(Path(directory))
        method = AutoGPTQLinearMethod(CPUWNA16LinearKernel())
        self.model, self.model.attn, self.model.mlp = nn.Module(), nn.Module(), nn.Module()
        self.model.attn.qk_proj = FakeLinear([checkpoint.packed(name) for name in LAYERS[:2]], method)
        self.model.mlp.down_proj = FakeLinear([checkpoint.packed(LAYERS[2])], method)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        draw = torch.Generator().manual_seed(1)
        table = torch.randn((VOCABULARY, 64), generator=draw).to(torch.float16)
        hidden = self.model.attn.qk_proj(table[input_ids])[:, :64]
        return self.model.mlp.down_proj(hidden)  # type: ignore[no-any-return]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden[-1:]


class FakeLLM:
    """Runs the model once a token, as vLLM's scheduler does for one request; `pad` adds rows as a graph would."""

    pad = 0

    def __init__(self, **arguments: Any) -> None:
        if arguments["max_model_len"] > 1000:
            raise ValueError(
                "1 validation error for ModelConfig\n  Value error, The length 5001 is too large\nsee more"
            )
        self.model = FakeModel(arguments["model"])
        sys.modules[LOADER].process_weights_after_loading(self.model, None, "cpu")
        self.model(torch.zeros(7, dtype=torch.int64))  # the profile run, which no tap may see

    def apply_model(self, function: Any) -> list[Any]:
        return [function(self.model)]

    def generate(self, prompt: dict[str, list[int]], sampling: Any, use_tqdm: bool) -> list[Any]:
        feed, tokens = prompt["prompt_token_ids"] + [0] * self.pad, []
        while len(tokens) < sampling.max_tokens:
            tokens.append(int(torch.argmax(self.model.compute_logits(self.model(torch.tensor(feed))))))
            if tokens[-1] in sampling.stop_token_ids:
                break
            feed = tokens[-1:]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)])]


@dataclasses.dataclass
class EngineArgs:
    model: str = ""
    quantization: str | None = None
    dtype: str = ""
    seed: int = 0
    trust_remote_code: bool = False
    skip_tokenizer_init: bool = False
    max_model_len: int = 0
    max_num_batched_tokens: int = 0
    max_num_seqs: int = 0
    enforce_eager: bool = False
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function (route, longest) -> engine; vLLM's variables are taken out of the environment again."""
    tensors = {
        **linear_tensors(LAYERS[0], 64, 64, seed=1, bias=True),
        **linear_tensors(LAYERS[1], 64, 32, seed=2, bias=True),
        **linear_tensors(LAYERS[2], 64, 64, seed=3),
    }
    model = write_checkpoint(tmp_path / "model", tensors)
    fake: Any = ModuleType("vllm")
    fake.__version__, fake.LLM, fake.EngineArgs, fake.SamplingParams = "9.9.9", FakeLLM, EngineArgs, SimpleNamespace
    loader: Any = ModuleType(LOADER)
    loader.process_weights_after_loading = lambda model, config, device: None
    parts = LOADER.split(".")
    for end in range(2, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, LOADER, loader)
    monkeypatch.setattr(os, "environ", dict(os.environ))

    def loaded(route: str = "auto", longest: int = 20) -> VllmEngine:
        spec = LoadSpec("vllm", model, "float16", "cpu", False, 0, 0, route, longest)
        return VllmEngine(spec)

    loaded.directory = model  # type: ignore[attr-defined]
    return loaded


class Kept(NullSink):
    """Keeps the tensors as well."""

    wants_tensors = True

    def __init__(self) -> None:
        super().__init__()
        self.biases: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self.y: dict[tuple[int, str], torch.Tensor] = {}

    def take(self, call: Call, x_MK: torch.Tensor | None, y_MN: torch.Tensor | None) -> None:
        assert y_MN is not None
        if call.part == BIAS:
            assert x_MK is not None
            self.biases[call.layer] = (x_MK, y_MN)
            return
        super().take(call, x_MK, y_MN)
        self.y[call.step, call.layer] = y_MN


def run(engine: VllmEngine, ids: tuple[int, ...] = (1, 2, 3), **how: Any) -> tuple[Any, Kept, Tap]:
    engine.use_kernel("as-chosen")
    sink = Kept()
    tap = Tap(engine.tapped, sink)
    asked = {"max_new_tokens": 3, "forced": None, **how}
    return engine.generate(ids, tap=tap, **asked), sink, tap


def test_every_linear_of_every_step_is_seen_once_and_the_profile_run_is_not(load: Any) -> None:
    engine = load()
    generation, sink, tap = run(engine)
    assert engine.tapped == frozenset(LAYERS)
    assert engine.skipped == {}
    assert tap.order == list(LAYERS)
    assert [(c.step, c.layer, c.rows, c.path) for c in sink.calls] == [
        (step, layer, 3 if step == 0 else 1, "vllm-cpu-w4a16") for step in range(3) for layer in LAYERS
    ]
    assert generation.steps == len(generation.tokens) == len(generation.logits_finite) == 3
    assert generation.first_logits_V.shape == (64,)
    assert [c.shared_input for c in sink.calls[:3]] == [None, LAYERS[0], None]


def test_taps_change_nothing_and_are_gone_afterwards(load: Any) -> None:
    """The same tokens and logits with and without, down to the bit."""
    engine = load()
    tapped, sink, _ = run(engine)
    bare = engine.generate((1, 2, 3), max_new_tokens=3, forced=None, tap=None)
    assert tapped.tokens == bare.tokens
    assert torch.equal(tapped.first_logits_V, bare.first_logits_V)
    assert len(sink.calls) == 9


def test_the_bias_is_not_in_what_the_tap_sees(load: Any) -> None:
    engine = load()
    _, sink, _ = run(engine)
    table = torch.randn((VOCABULARY, 64), generator=torch.Generator().manual_seed(1)).to(torch.float16)
    with open_checkpoint(load.directory) as checkpoint:
        from gptq_diff.checkpoint.dequant import dequantise

        expected = (table[[1, 2, 3]].float() @ dequantise(checkpoint.packed(LAYERS[1]))).to(torch.float16)
    torch.testing.assert_close(sink.y[0, LAYERS[1]], expected, rtol=2e-3, atol=2e-3)


def test_one_row_is_run_again_with_the_bias(load: Any) -> None:
    """vLLM's own call with its bias, in the prefill, of every linear that has one: runs without, and with it."""
    _, sink, _ = run(load())
    with open_checkpoint(load.directory) as checkpoint:
        biases = {name: checkpoint.packed(name).bias for name in LAYERS[:2]}
    assert tuple(sink.biases) == LAYERS[:2]
    for name, (runs, with_bias) in sink.biases.items():
        torch.testing.assert_close(runs, sink.y[0, name][:1].expand(3, -1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(with_bias, runs[:1] + biases[name], rtol=2e-3, atol=2e-3)


def test_one_linear_by_itself_gives_what_the_tap_saw(load: Any) -> None:
    """Of a fused module its own columns, without the bias; no other linear is run."""
    engine = load()
    _, sink, _ = run(engine)
    table = torch.randn((VOCABULARY, 64), generator=torch.Generator().manual_seed(1)).to(torch.float16)
    for layer in LAYERS[:2]:
        product = engine.multiply(layer, table[[1, 2, 3]])
        assert torch.equal(product.y_MN, sink.y[0, layer])
        assert product.path == "vllm-cpu-w4a16"
    with pytest.raises(BackendError, match="vLLM does not run lm_head on a kernel that is judged"):
        engine.multiply("lm_head", table)


def test_a_forced_path_holds_for_one_linear_too(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """gptq_gemm is called through the guard, which says what ran; the original is put back."""
    engine = load()
    rank = engine._model
    calls: list[int] = []

    def gptq_gemm(a: torch.Tensor, use_exllama: bool, bit: int) -> torch.Tensor:
        calls.append(len(a))
        return a

    ops: Any = SimpleNamespace(gptq_gemm=gptq_gemm)
    guard = PathGuard(ops, "cpu")
    guard._boundaries[4] = 50
    rank.use_kernel("as-chosen")
    rank._guard = guard
    monkeypatch.setattr("gptq_diff.engines.vllm.modules.FusedLinear.path", "gptq_gemm")
    monkeypatch.setattr(AutoGPTQLinearMethod, "apply", lambda self, layer, x, bias: ops.gptq_gemm(x, True, 4))
    for force, rows, path, called in (
        (None, 50, FAST, [50]), (None, 51, RECONSTRUCT, [51]),
        (RECONSTRUCT, 3, RECONSTRUCT, [51]), (FAST, 70, FAST, [50, 20]),
    ):  # fmt: skip
        guard.force = force
        calls.clear()
        assert engine.multiply(LAYERS[2], torch.zeros(rows, 64)).path == path
        assert calls == called
    assert ops.gptq_gemm is gptq_gemm


def test_forced_ids_are_fed_and_the_own_choices_reported(load: Any) -> None:
    engine = load()
    free, _, _ = run(engine)
    other = tuple((t + 1) % VOCABULARY for t in free.tokens)
    forced, _, _ = run(engine, forced=other)
    assert forced.tokens[0] == free.tokens[0]
    assert forced.steps == 3
    again, _, _ = run(engine, ids=(1, 2, 3), forced=other[:2], max_new_tokens=8)
    assert again.steps == 2
    assert again.tokens == forced.tokens[:2]


def test_it_stops_at_the_end_token_of_config_json(load: Any) -> None:
    first = run(load())[0].tokens[0]
    config = load.directory / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": [first, 9999]}))
    assert run(load())[0].tokens == (first,)


def test_a_padded_batch_is_refused(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    monkeypatch.setattr(FakeLLM, "pad", 5)
    with pytest.raises(CaptureError, match="8 rows in step 0, not 3"):
        run(engine)


def test_what_vllm_refuses_is_a_refused_backend_in_one_sentence(load: Any) -> None:
    with pytest.raises(BackendError, match=r"vLLM 9\.9\.9 does not load this model: The length 5001 is too large$"):
        load(longest=5000)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
def test_a_gpu_kernel_is_refused_before_the_model_is_loaded(load: Any) -> None:
    with pytest.raises(BackendError, match="the route marlin of vLLM needs an NVIDIA GPU"):
        load(route="marlin")


def test_a_release_that_nobody_ran_says_so(load: Any) -> None:
    assert load().versions()["adapter"] == "untested with this vLLM"


def test_without_a_proof_of_the_columns_there_is_no_backend(load: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[LOADER], "process_weights_after_loading", lambda *_: None)
    monkeypatch.setattr("gptq_diff.engines.vllm.proof.PLACES", ())
    with pytest.raises(BackendError, match="it could not be proved which columns"):
        load()


def test_a_linear_without_a_module_is_skipped_with_the_reason(load: Any) -> None:
    """Compared and skipped together must be all of the checkpoint's linears."""
    engine = load()
    engine._model._linears = engine._model._linears[:1]
    engine.use_kernel("as-chosen")
    assert engine.skipped == {LAYERS[2]: "vLLM has no quantised module for it"}
