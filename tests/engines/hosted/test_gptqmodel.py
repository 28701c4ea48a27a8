"""The whole GPTQModel engine on stand-ins for GPTQModel, optimum and transformers' loader."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gptq_diff.capture.tap import Tap
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.catalogue import engine_named
from gptq_diff.engines.gptqmodel_engine import GptqModelEngine
from gptq_diff.errors import BackendError, CaptureError
from tests.capture.captures import KeepingSink
from tests.engines.hosted.fakes import DOWN, LAYERS, QUERY, FakeModel, exact, tensors_of_model, write_model

Load = Callable[..., GptqModelEngine]


class Library:
    """kind, settles: of the modules that are made; wrong: what is said instead of loading."""

    def __init__(self) -> None:
        self.kind, self.settles = "torch_aten_kernel", "inference"
        self.wrong: Exception | None = None
        self.asked: dict[str, Any] = {}

    def from_pretrained(self, directory: Path, **asked: Any) -> FakeModel:
        if self.wrong is not None:
            raise self.wrong
        self.asked = asked
        model = FakeModel(directory, self.kind)
        for linear in model.linears:
            linear.settles = self.settles
        quantizer: Any = sys.modules["optimum.gptq"].GPTQQuantizer()  # type: ignore[attr-defined]
        return quantizer.post_init_model(model)  # type: ignore[no-any-return]


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    made = Library()

    class GPTQQuantizer:
        def post_init_model(self, model: FakeModel) -> FakeModel:
            for linear in model.linears:
                linear.shuffle()
            return model

    package, optimum, gptq = ModuleType("gptqmodel"), ModuleType("optimum"), ModuleType("optimum.gptq")
    package.__version__, gptq.GPTQQuantizer = "7.7.0", GPTQQuantizer  # type: ignore[attr-defined]
    for module in (package, optimum, gptq):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    loader = SimpleNamespace(from_pretrained=made.from_pretrained)
    # A package of its own in place of transformers, which loads its names late: one that another test has made
    # transformers import anew would not be the one that is patched.
    real = importlib.import_module("transformers")
    fake: Any = ModuleType("transformers")
    fake.AutoModelForCausalLM, fake.GPTQConfig = loader, real.GPTQConfig
    fake.__version__, fake.__path__ = real.__version__, real.__path__
    monkeypatch.setitem(sys.modules, "transformers", fake)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    return made


@pytest.fixture
def load(tmp_path: Path, library: Library) -> Load:
    """A function (route) -> engine."""
    model = write_model(tmp_path / "model")

    def loaded(route: str = "auto") -> GptqModelEngine:
        return GptqModelEngine(LoadSpec("gptqmodel", model, "float16", "cpu", False, 0, 0, route))

    return loaded


def run(engine: GptqModelEngine, kernel: str = "as-chosen") -> Any:
    engine.use_kernel(kernel)
    sink = KeepingSink()
    return engine.generate((1, 2, 3), max_new_tokens=2, forced=None, tap=Tap(engine.tapped, sink)), sink


def test_every_linear_is_seen_and_its_weight_proved_before_the_shuffle(load: Load, library: Library) -> None:
    engine = load()
    _, sink = run(engine)
    assert engine_named("gptqmodel") is GptqModelEngine
    assert [(c.step, c.layer, c.path) for c in sink.calls] == [
        (step, layer, "gptqmodel-int4pack") for step in range(2) for layer in LAYERS
    ]
    tensors = tensors_of_model()
    x, y = sink.tensors[0, QUERY]
    assert torch.equal(y, (x.float() @ exact(tensors, QUERY)).to(torch.float16))
    x, _ = sink.tensors[0, DOWN]
    assert torch.equal(x, y + tensors[f"{QUERY}.bias"])
    settings = library.asked["quantization_config"]
    assert (settings.bits, settings.group_size, settings.backend, settings.format) == (4, 32, "auto", "gptq")
    assert (library.asked["dtype"], library.asked["device_map"]) == (torch.float16, {"": "cpu"})
    assert (library.asked["trust_remote_code"], library.asked["local_files_only"]) == (False, True)


@pytest.mark.parametrize("kind", ["torch_aten_kernel", "torch_fused", "torch_cpu_avx512"])
def test_a_cpu_module_that_settled_on_dequantising_is_named_so(load: Load, library: Library, kind: str) -> None:
    library.kind, library.settles = kind, "train"
    assert {call.path for call in run(load())[1].calls} == {"gptqmodel-torch"}


def test_a_product_in_bfloat16_is_no_capture(load: Load, library: Library) -> None:
    library.kind = "torch_cpu_avx512"
    with pytest.raises(CaptureError, match=f"GPTQModel multiplies {QUERY} in bfloat16 although it was given float16"):
        run(load())


@pytest.mark.parametrize(("kind", "path"), [("torch", "gptqmodel-torch"), ("marlin", "marlin"), ("machete", "machete")])
def test_a_kind_with_one_path_is_named_by_it(load: Load, library: Library, kind: str, path: str) -> None:
    library.kind = kind
    assert {call.path for call in run(load())[1].calls} == {path}


def test_exllama_is_named_by_rows(load: Load, library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    """The border is what the live kernel showed."""
    library.kind = "exllamav2"
    live = SimpleNamespace(fused_rows=2)
    monkeypatch.setattr("gptq_diff.engines.gptqmodel_engine.gptqmodel_exllamav2", lambda device: live)
    engine = load()
    calls = run(engine, "exllamav2")[1].calls
    assert [(c.rows, c.path) for c in calls if c.layer == DOWN] == [(3, "exllama-reconstruct"), (1, "exllama-fast")]
    assert engine.versions()["fused_rows_exllamav2"] == "2"


@pytest.mark.parametrize("kernel", ["torch", "marlin", "exllamav2"])
def test_another_kernel_than_asked_for_is_refused(load: Load, kernel: str) -> None:
    engine = load()
    with pytest.raises(BackendError, match=rf"GPTQModel runs {QUERY} on its kernel torch_aten_kernel, not on {kernel}"):
        engine.use_kernel(kernel)


def test_a_kernel_without_an_error_model_is_refused_by_name(load: Load, library: Library) -> None:
    library.kind = "tritonv2"
    with pytest.raises(BackendError, match="GPTQModel runs QuantLinear there, which has no error model here"):
        load().use_kernel("as-chosen")


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a GPU")
@pytest.mark.parametrize("route", ["exllamav2", "marlin"])
def test_a_gpu_kernel_is_refused_before_the_model_is_loaded(load: Load, library: Library, route: str) -> None:
    with pytest.raises(BackendError, match=f"GPTQModel's {route} kernel needs an NVIDIA GPU"):
        load(route)
    assert library.asked == {}


def test_an_unknown_route_is_refused(load: Load) -> None:
    with pytest.raises(BackendError, match="there is no way into GPTQModel called 'triton'"):
        load("triton")


def test_what_transformers_refuses_is_a_refused_backend_in_one_sentence(load: Load, library: Library) -> None:
    library.wrong = ImportError("Loading a GPTQ quantized model requires optimum\nmore")
    with pytest.raises(BackendError, match=r"GPTQModel 7\.7\.0 does not load this model: Loading a GPTQ .* optimum$"):
        load()


def test_versions_name_the_release_and_the_classes(load: Load) -> None:
    facts = load("torch").versions()
    assert (facts["GPTQModel"], facts["kernels"]) == ("7.7.0", "QuantLinear (torch_aten_kernel) x 2")
    assert "adapter" not in facts
    sys.modules["gptqmodel"].__version__ = "8.0.0"  # type: ignore[attr-defined]
    assert load().versions()["adapter"] == "untested with this GPTQModel"
