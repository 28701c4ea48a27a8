"""The transformers engine with its skeleton on a GPU, which tests/engines/fake_gpu.py stands in for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from gptq_diff.capture import staging
from gptq_diff.capture.tap import Tap
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.device import find_device, gpu_peak, spare_bytes
from gptq_diff.engines.hf import HfEngine
from gptq_diff.engines.original import OriginalEngine
from gptq_diff.errors import BackendError
from tests.capture.captures import KeepingSink
from tests.engines.fake_gpu import FakeGpu, FakeLane
from tests.session.originals import original_of

PROMPT = (509, 12, 300, 7, 7, 45, 101)
EVERYTHING = 1 << 30


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int]]:
    """One GPU with that much free memory, for `torch.cuda`."""
    said = {"bytes": 2 * EVERYTHING}
    monkeypatch.setattr(staging, "lane_of", lambda _: FakeLane())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (said["bytes"], 1 << 40))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    return said


def engine_on(model: Path, dtype: str, kernel: str, device: str) -> HfEngine:
    engine = HfEngine(LoadSpec("transformers", model, dtype, device, False, 1, 0))
    engine.use_kernel(kernel)
    return engine


@pytest.mark.parametrize("room", [0, 20_000, EVERYTHING])
@pytest.mark.parametrize(
    ("kernel", "dtype"),
    [("exact", "float32"), ("fp16", "float16"), ("sim-exllama", "float16"), ("sim-gptq", "float16")],
)
def test_it_computes_there_what_it_computes_on_the_cpu(
    small_model: Path, free: dict[str, int], kernel: str, dtype: str, room: int
) -> None:
    """However much packed weight stays there: same tokens, same captures, and no tensor meets one of the CPU's."""
    free["bytes"] = 2 * room
    captured = []
    tokens = []
    for device in ("cpu", "cuda"):
        sink = KeepingSink()
        with FakeGpu() as gpu:
            engine = engine_on(small_model, dtype, kernel, device)
            found = engine.generate(PROMPT, max_new_tokens=3, forced=None, tap=Tap(engine.tapped, sink))
            assert gpu.holds(found.first_logits_V) == (device == "cuda")
            places = {gpu.holds(t) for pair in sink.tensors.values() for t in pair if t is not None}
            assert places == {device == "cuda"}  # the tap keeps what it is given where it is
            assert engine.kept_bytes <= room
        captured.append(sink.tensors)
        tokens.append(found.tokens)
    assert tokens[0] == tokens[1]
    assert captured[0].keys() == captured[1].keys()
    for key, pair in captured[0].items():
        for on_cpu, on_gpu in zip(pair, captured[1][key]):
            assert (on_cpu is None) == (on_gpu is None)
            if on_cpu is not None and on_gpu is not None:
                tolerance = 1e-4 if kernel == "exact" else 0.0  # float64 sums there, float32 ones here
                distance = torch.linalg.vector_norm(on_gpu.float() - on_cpu.float())
                assert float(distance) <= tolerance * float(torch.linalg.vector_norm(on_cpu.float()))


def test_packed_weights_travel_once_where_there_is_room_and_each_time_where_not(
    small_model: Path, free: dict[str, int]
) -> None:
    """A 32B model's 17 GB must not need 17 GB of GPU memory, and need not travel for every token on one that has it."""
    travelled = {}
    for room in (0, EVERYTHING):
        free["bytes"] = 2 * room
        with FakeGpu() as gpu:
            engine = engine_on(small_model, "float32", "exact", "cuda")
            for _ in range(2):
                gpu.moved.clear()
                engine.generate(PROMPT, max_new_tokens=1, forced=None, tap=None)
                travelled.setdefault(room, []).append(sum(gpu.moved))
    packed = sum(linear.nbytes for linear in map(engine._checkpoint.packed, sorted(engine.tapped)))
    embedded = len(PROMPT) * 128 * 4
    first, second = travelled[EVERYTHING]
    assert first == packed + embedded
    assert second == embedded
    assert travelled[0][0] == travelled[0][1] == packed + embedded + 512 * 128 * 2  # lm_head too, as stored


def test_every_skeleton_tensor_but_the_embedding_is_there(small_model: Path, free: dict[str, int]) -> None:
    """Norms, rotary tables and biases are moved once; the embedding's table stays mapped and sends rows."""
    with FakeGpu() as gpu:
        engine = engine_on(small_model, "float16", "fp16", "cuda:0")
        assert all(gpu.holds(p) for p in engine._model.parameters())
        assert all(gpu.holds(b) for b in engine._model.buffers())
        assert len(list(engine._model.parameters())) == 5
        assert not gpu.holds(engine._model.get_submodule("model.embed_tokens").weight)
        q_proj = engine._model.get_submodule("model.layers.0.self_attn.q_proj")
        assert gpu.holds(q_proj._linear.bias)
        assert not gpu.holds(q_proj._linear.qweight)
        assert engine.versions()["gpu"] == "a GPU"


@pytest.mark.parametrize("room", [0, EVERYTHING])
def test_the_unquantised_model_runs_there_too(
    small_model: Path, tmp_path: Path, free: dict[str, int], room: int
) -> None:
    """Its weights stay on the GPU where there is room; what the tap sees is the CPU's, before the bias."""
    free["bytes"] = 2 * room
    original = original_of(small_model, tmp_path / "original")
    seen = []
    for device in ("cpu", "cuda"):
        sink = KeepingSink()
        with FakeGpu() as gpu:
            spec = LoadSpec("transformers", small_model, "float32", device, False, 1, 0, original=original)
            engine = OriginalEngine(spec)
            engine.use_kernel("original")
            found = engine.generate(PROMPT, max_new_tokens=2, forced=None, tap=Tap(engine.tapped, sink))
            assert gpu.holds(found.first_logits_V) == (device == "cuda")
            if device == "cuda":
                assert (engine.kept_bytes > 0) == (room > 0)
        seen.append((found.tokens, sink.tensors))
        assert {call.path for call in sink.calls} == {"original"}
        assert len(sink.tensors) == 2 * 14
    assert seen[0][0] == seen[1][0]
    y, y_there = (tensors[0, "model.layers.0.self_attn.q_proj"][1] for _, tensors in seen)
    x = seen[0][1][0, "model.layers.0.self_attn.q_proj"][0]
    assert x is not None and y is not None and y_there is not None
    assert torch.equal(y, y_there)
    weight = load_file(original / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    assert torch.allclose(y, x @ weight.t(), rtol=1e-4, atol=1e-4)
    with pytest.raises(BackendError, match="no kernel called 'exact'"):
        engine.use_kernel("exact")


def test_mixing_devices_is_an_error_on_the_fake_gpu_as_on_a_real_one() -> None:
    """Otherwise the tests above would prove nothing."""
    with FakeGpu() as gpu:
        there = torch.ones(3).to("cuda")
        assert (there.device.type, torch.ones(3).device.type) == ("cuda", "cpu")
        assert gpu.holds(there[1:].float() * 2)
        for broken in (lambda: there + torch.ones(3), lambda: torch.ones(2, 3) @ there):
            with pytest.raises(RuntimeError, match="same device"):
                broken()
        with pytest.raises(TypeError, match="numpy"):
            there.numpy()
        assert (there.cpu() + torch.ones(3)).tolist() == [2, 2, 2]


class TestDevices:
    def test_the_cpu_is_always_there(self) -> None:
        assert find_device("cpu") == torch.device("cpu")
        assert spare_bytes(torch.device("cpu")) == 0

    def test_auto_takes_the_gpu_that_torch_sees(self, free: dict[str, int]) -> None:
        assert find_device("auto").type == "cuda"

    def test_auto_takes_the_cpu_where_there_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert find_device("auto").type == "cpu"

    @pytest.mark.parametrize(("asked", "seen"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:8", 2)])
    def test_a_gpu_that_is_not_there_is_refused(self, monkeypatch: pytest.MonkeyPatch, asked: str, seen: int) -> None:
        """By the worker, whose interpreter may have a torch without CUDA."""
        monkeypatch.setattr(torch.cuda, "is_available", lambda: seen > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: seen)
        with pytest.raises(BackendError, match=f"there is no {asked} for torch .*: it sees {seen} GPUs"):
            find_device(asked)

    def test_half_of_the_free_memory_may_be_kept(self, free: dict[str, int]) -> None:
        free["bytes"] = 1001
        assert spare_bytes(torch.device("cuda")) == 500

    def test_the_peak_is_the_sum_over_gpus_and_starts_anew(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """None before a GPU is used: a GPU that is merely there is no figure."""
        peaks = {0: 70, 1: 7}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
        assert gpu_peak() is None
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", peaks.__getitem__)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda index: peaks.update({index: 5}))
        assert gpu_peak() == 77
        assert gpu_peak() == 10
