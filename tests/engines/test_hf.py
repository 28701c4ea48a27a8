from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.hf import HfEngine
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.kernels.base import Kernel, Product
from gptq_diff.kernels.exact import ExactKernel
from gptq_diff.records import LayerSpec, Support
from tests.capture.captures import KeepingSink
from tests.engines.models import edited, plain_model, tied, unpacked

PROMPT = (509, 12, 300, 7, 7, 45, 101)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The models are tiny: two threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def engine_on(model: Path, dtype: str = "float32", kernel: str = "exact") -> HfEngine:
    engine = HfEngine(LoadSpec("transformers", model, dtype, "cpu", False, 1, 0))
    engine.use_kernel(kernel)
    return engine


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> HfEngine:
    return engine_on(tiny_model)


@pytest.fixture(scope="module")
def plain(tiny_model: Path) -> Any:
    return plain_model(tiny_model)


def next_logits(plain: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits after those ids, without a cache."""
    with torch.inference_mode():
        return plain(torch.tensor([ids])).logits[0, -1]  # type: ignore[no-any-return]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for float32 rounding, which a deep network may amplify some."""
    return bool(torch.linalg.vector_norm(a - b) <= 2e-5 * torch.linalg.vector_norm(b))


@pytest.mark.parametrize("kind", ["untied", "tied"])
def test_the_skeleton_is_transformers_own_model(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """With exact linears its logits are those of the plain model on the same dequantised weights."""
    model = tiny_model if kind == "untied" else tied(tiny_model, tmp_path / "tied")
    found = engine_on(model).generate(PROMPT, max_new_tokens=1, forced=None, tap=None)
    expected = next_logits(plain_model(model), PROMPT)
    assert close(found.first_logits_V, expected)
    assert found.tokens == (int(expected.argmax()),)


def test_a_half_precision_skeleton_is_near(tiny_model: Path, plain: Any) -> None:
    """float16 throughout: as far from float32 as rounding, not as a wrong weight."""
    found = engine_on(tiny_model, "float16", "fp16").generate(PROMPT, max_new_tokens=1, forced=None, tap=None)
    expected = next_logits(plain, PROMPT)
    distance = torch.linalg.vector_norm(found.first_logits_V - expected) / torch.linalg.vector_norm(expected)
    assert 0 < float(distance) < 0.05


def test_a_half_precision_kernel_in_a_float32_skeleton_is_tapped_on_what_it_multiplies(tiny_model: Path) -> None:
    """Its input is rounded to float16, which is no error of the kernel; q, k and v are still known to share it."""
    engine = engine_on(tiny_model, "float32", "fp16")
    sink = KeepingSink()
    engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=Tap(engine.tapped, sink))
    x_MK, y_MN = sink.tensors[0, "model.layers.1.self_attn.q_proj"]
    assert x_MK is not None
    assert y_MN is not None
    assert (x_MK.dtype, y_MN.dtype) == (torch.float16, torch.float32)
    key = next(call for call in sink.calls if call.layer == "model.layers.1.self_attn.k_proj")
    assert key.shared_input == "model.layers.1.self_attn.q_proj"


def test_greedy_decoding_with_a_cache_is_greedy_decoding(engine: HfEngine, plain: Any) -> None:
    """The tokens are those of a loop that runs the whole sequence again each time; one step each, all finite."""
    found = engine.generate(PROMPT, max_new_tokens=6, forced=None, tap=None)
    ids = PROMPT
    for _ in range(len(found.tokens)):
        ids += (int(next_logits(plain, ids).argmax()),)
    assert found.tokens == ids[len(PROMPT) :]
    assert found.steps == len(found.tokens) == len(found.logits_finite) == 6
    assert all(found.logits_finite)


def test_forced_ids_are_fed_in_place_of_its_own(engine: HfEngine, plain: Any) -> None:
    """Each step's token is the model's choice after the forced ids; it ends where they end."""
    forced = (400, 3, 77)
    found = engine.generate(PROMPT, max_new_tokens=8, forced=forced, tap=None)
    expected = [int(next_logits(plain, PROMPT + forced[:i]).argmax()) for i in range(3)]
    assert found.tokens == tuple(expected)
    assert engine.generate(PROMPT, max_new_tokens=2, forced=forced, tap=None).tokens == tuple(expected[:2])


@pytest.mark.parametrize("as_list", [False, True])
def test_it_stops_after_the_end_of_sequence(tiny_model: Path, tmp_path: Path, engine: HfEngine, as_list: bool) -> None:
    """The end token is included; forced ids go on behind it."""
    own = engine.generate(PROMPT, max_new_tokens=5, forced=None, tap=None).tokens
    end = own[0]
    stopping = engine_on(edited(tiny_model, tmp_path / "m", eos_token_id=[510, end] if as_list else end))
    assert stopping.generate(PROMPT, max_new_tokens=5, forced=None, tap=None).tokens == (end,)
    assert stopping.generate(PROMPT, max_new_tokens=5, forced=own, tap=None).tokens == own


class NanKernel(ExactKernel):
    """Everything is NaN."""

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        return Product(torch.full_like(super().multiply(x_MK, linear).y_MN, float("nan")), "nan")


def test_nan_logits_give_token_0(tiny_model: Path) -> None:
    """As the reported engines do; every step is told to have no finite logit."""
    engine = engine_on(tiny_model)
    engine.install(NanKernel())
    found = engine.generate(PROMPT, max_new_tokens=4, forced=None, tap=None)
    assert found.tokens == (0, 0, 0, 0)
    assert found.logits_finite == (False,) * 4
    engine.use_kernel("exact")
    assert all(engine.generate(PROMPT, max_new_tokens=2, forced=None, tap=None).logits_finite)


def test_the_tap_sees_the_kernel_before_the_bias(tiny_model: Path, engine: HfEngine, plain: Any) -> None:
    """y is W x, bias not added, for every linear; and x is what the plain model's own linear gets."""
    from safetensors.torch import load_file

    sink = KeepingSink()
    tap = Tap(engine.tapped, sink)
    engine.generate(PROMPT, max_new_tokens=2, forced=None, tap=tap)
    tensors = load_file(tiny_model / "model.safetensors")
    assert sorted({call.layer for call in sink.calls}) == sorted(n[:-8] for n in tensors if n.endswith(".qweight"))
    q_proj = "model.layers.0.self_attn.q_proj"
    assert float(tensors[f"{q_proj}.bias"].abs().max()) > 0.01  # otherwise this would prove nothing
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda m, args, out, name=name: seen.update({name: args[0][0]}))
        for name, module in plain.named_modules()
        if name in engine.tapped
    ]
    next_logits(plain, PROMPT)
    for hook in hooks:
        hook.remove()
    x: torch.Tensor | None = None
    for call in sink.calls[: len(engine.tapped)]:
        own_x, y = sink.tensors[0, call.layer]
        x = x if own_x is None else own_x
        assert x is not None and y is not None
        assert close(x, seen[call.layer])
        assert close(y, x @ unpacked(tensors, call.layer).t())
        assert (call.path, call.rows, call.step) == ("exact", len(PROMPT), 0)
    assert {call.step for call in sink.calls} == {0, 1}


def test_the_tap_is_taken_off_again(engine: HfEngine) -> None:
    """After a run, and after one that failed: the next prompt's calls do not go to the last one's tap."""

    class Full(KeepingSink):
        def take(self, *_: object) -> None:
            raise CaptureError("full")

    with pytest.raises(CaptureError, match="full"):
        engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=Tap(engine.tapped, Full()))
    assert engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=None).steps == 1


class Picky(ExactKernel):
    """Refuses what Marlin would refuse of K."""

    def supports(self, spec: LayerSpec) -> Support:
        if spec.in_features == 256:
            return Support(ok=False, reason="K = 256 is refused")
        return Support(ok=True)

    def multiply(self, x_MK: torch.Tensor, linear: PackedLinear) -> Product:
        assert linear.spec.in_features != 256, "a refused layer came"
        return super().multiply(x_MK, linear)


def test_refused_layers_run_untapped_and_are_told(tiny_model: Path) -> None:
    """They are skipped with the kernel's reason, the others are all captured, and the model still works."""
    engine = engine_on(tiny_model)
    every = engine.tapped
    plain_run = engine.generate(PROMPT, max_new_tokens=3, forced=None, tap=None)
    engine.install(Picky())
    down = {name for name in every if name.endswith("down_proj")}
    assert engine.skipped == dict.fromkeys(down, "K = 256 is refused")
    assert engine.tapped == every - down
    sink = KeepingSink()
    found = engine.generate(PROMPT, max_new_tokens=3, forced=None, tap=Tap(engine.tapped, sink))
    assert {call.layer for call in sink.calls} == every - down
    difference = torch.linalg.vector_norm(found.first_logits_V - plain_run.first_logits_V)
    assert float(difference) < 0.01 * float(torch.linalg.vector_norm(plain_run.first_logits_V))
    engine.use_kernel("exact")
    assert engine.skipped == {}


def test_one_row_is_seen_with_its_bias(tiny_model: Path, engine: HfEngine) -> None:
    """Of every linear that has a bias, in the prefill: the first row before the addition and after it."""
    from safetensors.torch import load_file

    sink = KeepingSink()
    engine.generate(PROMPT, max_new_tokens=2, forced=None, tap=Tap(engine.tapped, sink))
    tensors = load_file(tiny_model / "model.safetensors")
    assert set(sink.biases) == {n[:-5] for n in tensors if n.endswith("_proj.bias")}
    for name, (product, with_bias) in sink.biases.items():
        _, y = sink.tensors[0, name]
        assert y is not None
        assert torch.equal(product, y[:1])
        assert torch.equal(with_bias, product + tensors[f"{name}.bias"].to(product.dtype))


def test_kernels_follow_each_other_in_one_load(tiny_model: Path) -> None:
    """A load is shared by backends: the second kernel's result is not the first one's."""
    engine = engine_on(tiny_model, "float16", "fp16")
    paths: list[set[str]] = []
    for kernel in ("fp16", "exact"):
        engine.use_kernel(kernel)
        sink = KeepingSink()
        engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=Tap(engine.tapped, sink))
        paths.append({call.path for call in sink.calls})
        assert all(y is not None and y.dtype == torch.float16 for _, y in sink.tensors.values())
    assert paths == [{"fp16"}, {"exact"}]


def test_an_unknown_kernel_is_an_error(engine: HfEngine) -> None:
    """Named; and the kernel in force stays."""
    with pytest.raises(BackendError, match="there is no kernel called 'marlin'"):
        engine.use_kernel("marlin")
    assert isinstance(engine._board.kernel, Kernel)


def test_versions_name_what_computed(engine: HfEngine) -> None:
    """For the report."""
    assert engine.versions()["torch"] == torch.__version__
    assert set(engine.versions()) == {"python", "torch", "transformers", "numpy"}
