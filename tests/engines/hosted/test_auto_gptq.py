"""The whole auto_gptq engine on a stand-in for the library."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.reader import open_checkpoint
from gptq_diff.engines.auto_gptq.directory import basename, older_config, readable
from gptq_diff.engines.auto_gptq.routes import ROUTES, fused_rows
from gptq_diff.engines.auto_gptq_engine import AutoGptqEngine
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.catalogue import engine_named
from gptq_diff.errors import BackendError, CaptureError
from tests.capture.captures import KeepingSink
from tests.checkpoint.build import tiny
from tests.engines.hosted.fakes import DOWN, HEAD, LAYERS, QUERY, FakeModel, exact, tensors_of_model, write_model

Load = Callable[..., AutoGptqEngine]
SETTINGS = {"bits": 4, "group_size": 32, "desc_act": False, "sym": True}


class Library:
    """Stand-in for auto_gptq 0.7.1. kind: of the modules that it makes; wrong: what it says instead of loading."""

    def __init__(self) -> None:
        self.kind = "cuda-old"
        self.wrong: Exception | None = None
        self.asked: dict[str, Any] = {}
        self.model: Any = None
        self.base: Any = ModuleType("auto_gptq.modeling._base")
        self.base.autogptq_post_init = lambda model, use_act_order: model

    def from_quantized(self, directory: str, **asked: Any) -> Any:
        if self.wrong is not None:
            raise self.wrong
        self.asked = {"directory": directory, **asked}
        self.model = FakeModel(Path(directory), self.kind)
        return SimpleNamespace(model=self.base.autogptq_post_init(self.model, use_act_order=False))

    def settings(self, **given: Any) -> Any:
        return SimpleNamespace(awq_gemm_checkpoint=False, is_marlin_format=False, **given)

    def read_settings(self, directory: str) -> Any:
        stored = json.loads((Path(directory) / "quantize_config.json").read_text())
        return SimpleNamespace(awq_gemm_checkpoint=stored.get("version") == "GEMM", is_marlin_format=False, **stored)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()
    package, modeling = ModuleType("auto_gptq"), ModuleType("auto_gptq.modeling")
    fake: Any = package
    fake.__version__, fake.modeling = "0.7.1", modeling
    fake.AutoGPTQForCausalLM = SimpleNamespace(from_quantized=made.from_quantized)
    fake.BaseQuantizeConfig = type("Config", (), {"__new__": lambda cls, **given: made.settings(**given)})
    fake.BaseQuantizeConfig.from_pretrained = staticmethod(made.read_settings)
    modeling._base = made.base  # type: ignore[attr-defined]
    for module in (package, modeling, made.base):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return made


@pytest.fixture
def load(tmp_path: Path, library: Library) -> Load:
    """A function (route, model) -> engine."""
    own = write_model(tmp_path / "model")

    def loaded(route: str = "auto", model: Path = own) -> AutoGptqEngine:
        return AutoGptqEngine(LoadSpec("auto_gptq", model, "float16", "cpu", False, 0, 0, route))

    return loaded


def run(engine: AutoGptqEngine, kernel: str = "as-chosen", ids: tuple[int, ...] = (1, 2, 3), **how: Any) -> Any:
    engine.use_kernel(kernel)
    sink = KeepingSink()
    asked = {"max_new_tokens": 3, "forced": None, **how}
    return engine.generate(ids, tap=Tap(engine.tapped, sink), **asked), sink


def test_every_linear_of_every_step_is_seen_once(load: Load, library: Library) -> None:
    engine = load()
    generation, sink = run(engine)
    assert engine_named("auto_gptq") is AutoGptqEngine
    assert engine.tapped == frozenset(LAYERS)
    assert engine.skipped == {}
    assert [(c.step, c.layer, c.rows, c.path) for c in sink.calls] == [
        (step, layer, 3 if step == 0 else 1, "auto-gptq-torch") for step in range(3) for layer in LAYERS
    ]
    assert generation.steps == len(generation.tokens) == 3
    assert library.asked["model_basename"] == "model"
    assert (library.asked["device"], library.asked["torch_dtype"]) == ("cpu", torch.float16)


def test_what_is_seen_is_the_product_without_the_bias(load: Load) -> None:
    _, sink = run(load(), max_new_tokens=1)
    tensors = tensors_of_model()
    embedded = tensors["model.embed_tokens.weight"][[1, 2, 3]]
    x, y = sink.tensors[0, QUERY]
    assert torch.equal(x, embedded)
    assert torch.equal(y, (embedded.float() @ exact(tensors, QUERY)).to(torch.float16))
    x, _ = sink.tensors[0, DOWN]
    assert torch.equal(x, y + tensors[f"{QUERY}.bias"])


def test_one_row_is_run_again_with_the_modules_own_bias(load: Load) -> None:
    """Runs without and with it, in the prefill; a linear without a bias is left alone."""
    engine = load()
    _, sink = run(engine)
    assert list(sink.biases) == [QUERY]
    runs, with_bias = sink.biases[QUERY]
    assert torch.equal(runs, sink.tensors[0, QUERY][1][:1].expand(3, -1))
    assert torch.equal(with_bias, runs[:1] + tensors_of_model()[f"{QUERY}.bias"])


def test_one_linear_by_itself_gives_what_the_tap_saw(load: Load) -> None:
    """Without its bias, which is there again afterwards."""
    engine = load()
    _, sink = run(engine, max_new_tokens=1)
    x, y = sink.tensors[0, QUERY]
    product = engine.multiply(QUERY, x.float())
    assert torch.equal(product.y_MN, y)
    assert product.path == "auto-gptq-torch"
    assert torch.equal(run(engine, max_new_tokens=1)[1].tensors[0, DOWN][0], sink.tensors[0, DOWN][0])
    with pytest.raises(BackendError, match=f"auto_gptq does not run {HEAD} on a kernel that is judged"):
        engine.multiply(HEAD, x)


def test_taps_change_nothing_and_are_gone_afterwards(load: Load) -> None:
    engine = load()
    tapped, sink = run(engine)
    bare = engine.generate((1, 2, 3), max_new_tokens=3, forced=None, tap=None)
    assert (tapped.tokens, tapped.logits_finite) == (bare.tokens, bare.logits_finite)
    assert torch.equal(tapped.first_logits_V, bare.first_logits_V)
    assert len(sink.calls) == 6


def test_forced_ids_are_fed_and_the_end_token_ends(load: Load, tmp_path: Path) -> None:
    free, _ = run(load())
    other = tuple((t + 1) % 64 for t in free.tokens)
    forced, _ = run(load(), forced=other)
    assert (forced.tokens[0], forced.steps) == (free.tokens[0], 3)
    model = write_model(tmp_path / "ends")
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "eos_token_id": [free.tokens[0], 9999]}))
    assert run(load(model=model))[0].tokens == free.tokens[:1]


def test_a_module_that_is_bypassed_is_found_out(load: Load, library: Library) -> None:
    engine = load()
    library.model.model.mlp.down_proj = torch.nn.Identity()
    with pytest.raises(CaptureError, match=rf"1 of 2 quantised linears did not run in step 0, the first is {DOWN}"):
        run(engine)


@pytest.mark.parametrize(("kernel", "kind"), [("torch", "exllamav2"), ("exllama", "cuda-old"), ("exllamav2", "cuda")])
def test_another_kernel_than_asked_for_is_refused(load: Load, library: Library, kernel: str, kind: str) -> None:
    library.kind = kind
    engine = load()
    with pytest.raises(BackendError, match=rf"auto_gptq runs {QUERY} on its kernel {kind}, not on {kernel}"):
        engine.use_kernel(kernel)


def test_an_unknown_mode_or_route_is_refused(load: Load) -> None:
    with pytest.raises(BackendError, match="auto_gptq has no kernel mode called 'triton'"):
        load().use_kernel("triton")
    with pytest.raises(BackendError, match="there is no way into auto_gptq called 'qigen'"):
        load("qigen")


@pytest.mark.parametrize("kind", ["marlin", "exllama"])
def test_a_kernel_without_an_error_model_leaves_nothing_to_judge(load: Load, library: Library, kind: str) -> None:
    library.kind = kind
    with pytest.raises(BackendError, match=f"no linear of this model can be judged: auto_gptq runs its {kind} kernel"):
        load().use_kernel("as-chosen")


def test_a_linear_without_a_module_is_skipped_with_the_reason(load: Load) -> None:
    """Compared and skipped together must be all of the checkpoint's linears."""
    engine = load()
    engine._linears = engine._linears[:1]
    engine.use_kernel("as-chosen")
    assert engine.skipped == {DOWN: "auto_gptq has no quantised module for it"}


def test_exllama_is_named_by_rows(load: Load) -> None:
    """Fused up to the border that was found, reconstructed above."""
    engine = load()
    x_MK = torch.zeros((8, 64))
    for kind, rows, path in [("exllama", 7, "exllama-v1"), ("exllamav2", 50, "exllama-fast")]:
        for linear in engine._linears:
            linear.module.QUANT_TYPE = kind  # type: ignore[assignment]
        engine._fused_rows = {kind: rows}
        engine.use_kernel(kind)
        assert engine.path(engine._linears[0], x_MK[:7]) == path
        assert engine.path(engine._linears[0], torch.zeros((rows + 1, 64))) == "exllama-reconstruct"
        assert engine.versions()[f"fused_rows_{kind}"] == str(rows)


def test_the_old_cuda_kernel_has_no_error_model(load: Load) -> None:
    """On a GPU calls of few rows take it: the torch route switches it off, the others say so."""
    engine = load()

    class OnGpu:
        device = torch.device("cuda", 0)

    linear = engine._linears[0]
    object.__setattr__(
        linear, "module", SimpleNamespace(QUANT_TYPE="cuda-old", qweight=OnGpu(), autogptq_cuda_available=True)
    )
    assert "old CUDA kernel" in engine.unknown(linear)
    linear.module.autogptq_cuda_available = False  # type: ignore[assignment]
    assert engine.unknown(linear) == ""


def test_the_torch_route_switches_the_old_cuda_kernel_off(load: Load, library: Library) -> None:
    engine = load("torch")
    engine.use_kernel("torch")
    assert [module.autogptq_cuda_available for module in library.model.linears] == [False, False]
    assert (library.asked["disable_exllama"], library.asked["disable_exllamav2"]) == (True, True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("route", ["exllama", "exllamav2"])
def test_an_exllama_kernel_needs_a_gpu(load: Load, route: str) -> None:
    with pytest.raises(BackendError, match=f"auto_gptq's {route} kernel needs an NVIDIA GPU"):
        load(route)


def test_a_cuda_part_that_is_not_there_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "exllamav2_kernels", None)
    with pytest.raises(
        BackendError, match="auto_gptq's exllamav2 kernel cannot be loaded: import of exllamav2_kernels"
    ):
        fused_rows(ROUTES["exllamav2"], "cuda:0")
    assert fused_rows(ROUTES["auto"], "cuda:0") == {}
    assert fused_rows(ROUTES["torch"], "cuda:0") == {}


def test_what_the_library_refuses_is_a_refused_backend_in_one_sentence(load: Load, library: Library) -> None:
    library.wrong = TypeError("tiny isn't supported yet.\nand more")
    with pytest.raises(BackendError, match=r"auto_gptq 0\.7\.1 does not load this model: tiny isn't supported yet\.$"):
        load()


def test_versions_name_classes_and_what_was_filled_in(load: Load, library: Library, tmp_path: Path) -> None:
    engine = load(model=write_model(tmp_path / "tied", head=False))
    facts = engine.versions()
    assert facts["auto_gptq"] == "0.7.1"
    assert facts["kernels"] == "QuantLinear (cuda-old) x 2"
    assert not {"filled_in", "adapter"} & facts.keys()
    library.base.autogptq_post_init = lambda model, use_act_order: zeroed(model)
    facts = load(model=tmp_path / "tied").versions()
    assert facts["filled_in"] == "model.embed_tokens.weight: auto_gptq leaves tied weights unread"
    sys.modules["auto_gptq"].__version__ = "0.8.0"  # type: ignore[attr-defined]
    assert load(model=tmp_path / "tied").versions()["adapter"] == "untested with this auto_gptq"


def zeroed(model: FakeModel) -> FakeModel:
    with torch.no_grad():
        model.lm_head.weight.zero_()
    return model


def test_settings_come_from_quantize_config_json_where_there_is_one(
    load: Load, library: Library, tmp_path: Path
) -> None:
    model = write_model(tmp_path / "own")
    load(model=model)
    assert vars(library.asked["quantize_config"]).items() >= SETTINGS.items()
    (model / "quantize_config.json").write_text(json.dumps({**SETTINGS, "desc_act": True}))
    load(model=model)
    assert library.asked["quantize_config"].desc_act is True
    (model / "quantize_config.json").write_text(json.dumps({**SETTINGS, "version": "GEMM"}))
    with pytest.raises(BackendError, match=r"quantize_config\.json calls the weights AWQ or Marlin"):
        load(model=model)


def test_the_basename_is_that_of_the_file_the_checkpoint_is_read_from(tmp_path: Path) -> None:
    assert basename(tiny(tmp_path / "one")) == "model"
    assert basename(tiny(tmp_path / "shards", shards=2)) == "model"
    named = tiny(tmp_path / "named")
    (named / "model.safetensors").rename(named / "gptq_model-4bit-32g.safetensors")
    assert basename(named) == "gptq_model-4bit-32g"
    indexed = tiny(tmp_path / "indexed", shards=2)
    (indexed / "model.safetensors.index.json").rename(indexed / "other.safetensors.index.json")
    assert basename(indexed) == "other"


def test_an_older_transformers_is_given_rotary_settings_that_it_understands(tmp_path: Path) -> None:
    """In a private directory of links; the checkpoint itself is not touched, and the directory is gone afterwards."""
    model = tiny(tmp_path / "new")
    config = json.loads((model / "config.json").read_text())
    rope = {"rope_theta": 100000.0, "rope_type": "default"}
    (model / "config.json").write_text(json.dumps({**config, "rope_parameters": rope}))
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    with readable(open_checkpoint(model)) as directory:
        assert directory != model
        given = json.loads((directory / "config.json").read_text())
        assert (given["rope_theta"], given["rope_scaling"]) == (100000.0, None)
        assert (directory / "model.safetensors").resolve() == (model / "model.safetensors").resolve()
    assert not directory.exists()
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_a_config_that_is_understood_is_given_as_it_is(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny(tmp_path / "plain"))
    with readable(checkpoint) as directory:
        assert directory == checkpoint.path
    assert older_config({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e4}}) is None


def test_scaled_rotary_settings_keep_their_scaling() -> None:
    rope = {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}
    assert older_config({"rope_parameters": rope}) == {
        "rope_parameters": rope, "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0},
    }  # fmt: skip
    with pytest.raises(BackendError, match="without one rope_theta"):
        older_config({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}})
