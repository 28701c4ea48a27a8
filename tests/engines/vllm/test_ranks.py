"""Tensor parallelism on a stand-in for vLLM whose ranks are threads: proof, taps, and captures put together."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gptq_diff.capture.run_dir import RunDir
from gptq_diff.capture.store import CaptureReader, CaptureWriter, Manifest
from gptq_diff.capture.tap import Tap
from gptq_diff.checkpoint.packed import PackedLinear
from gptq_diff.checkpoint.reader import Checkpoint, open_checkpoint
from gptq_diff.compare.align import Captured
from gptq_diff.compare.judge_run import judge_captures
from gptq_diff.engines.base import LoadSpec
from gptq_diff.engines.vllm.rank_calls import RankCalls
from gptq_diff.engines.vllm.ranks import side_by_side
from gptq_diff.engines.vllm.settings import rank_environment
from gptq_diff.engines.vllm_engine import VllmEngine
from gptq_diff.errors import BackendError, CaptureError
from gptq_diff.records import Judgement
from tests.checkpoint.build import linear_tensors, write_checkpoint
from tests.engines.vllm.fakes import AutoGPTQLinearMethod, CPUWNA16LinearKernel, FakeLinear
from tests.engines.vllm.test_engine import LOADER, VOCABULARY, EngineArgs, FakeLLM

LAYERS = ("model.attn.q_proj", "model.attn.k_proj", "model.mlp.down_proj")
RANKS = 2


def share(linear: PackedLinear, rows: slice, columns: slice) -> PackedLinear:
    """W[rows, columns] as its own packed linear, 4 bit, groups of 16 rows."""
    spec = dataclasses.replace(
        linear.spec, in_features=rows.stop - rows.start, out_features=columns.stop - columns.start
    )
    groups = slice(rows.start // spec.group_size, rows.stop // spec.group_size)
    return PackedLinear(
        spec, linear.qweight[rows.start // 8 : rows.stop // 8, columns],
        linear.qzeros[groups, columns.start // 8 : columns.stop // 8], linear.scales[groups, columns], None,
        None if linear.bias is None else linear.bias[columns],
    )  # fmt: skip


class Meeting:
    """Where the ranks' threads meet to add what they bring; `faults` change what one rank gets back."""

    def __init__(self, ranks: int) -> None:
        self.barrier = threading.Barrier(ranks)
        self.brought: dict[int, torch.Tensor] = {}
        self.fault = "none"

    def total(self, rank: int, y: torch.Tensor) -> torch.Tensor:
        self.brought[rank] = y
        self.barrier.wait(timeout=20)
        total = sum(self.brought[r].float() for r in sorted(self.brought)).to(y.dtype)  # type: ignore[union-attr]
        self.barrier.wait(timeout=20)
        if self.fault == "overflow" and rank >= 0:
            total[0, 0] = float("inf")
        if self.fault == "differs" and rank == 1:
            total[0, 0] += 1
        return y.copy_(total)  # in place, as some libraries do


class RowParallel(FakeLinear):
    """This rank's rows of down_proj; the sum over the ranks is its output."""

    def __init__(self, part: PackedLinear, method: Any, rank: int, meeting: Meeting) -> None:
        super().__init__([part], method)
        self.input_size_per_partition = part.spec.in_features
        self.rank, self.meeting = rank, meeting

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.quant_method.apply(self, x, self.bias if self.rank == 0 else None)
        return self.meeting.total(self.rank, y)


class ShardedModel(nn.Module):
    """Half of q's columns and all of k's (one head, which both ranks hold), half of down_proj's rows."""

    packed_modules_mapping = {"qk_proj": ["q_proj", "k_proj"]}

    def __init__(self, checkpoint: Checkpoint, rank: int, meeting: Meeting) -> None:
        super().__init__()
        method = AutoGPTQLinearMethod(CPUWNA16LinearKernel())
        q, k, down = (checkpoint.packed(name) for name in LAYERS)
        mine = slice(32 * rank, 32 * rank + 32)
        self.model, self.model.attn, self.model.mlp = nn.Module(), nn.Module(), nn.Module()
        self.model.attn.qk_proj = FakeLinear([share(q, slice(0, 64), mine), k], method)
        self.model.mlp.down_proj = RowParallel(share(down, mine, slice(0, 64)), method, rank, meeting)
        self.rank = rank

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        draw = torch.Generator().manual_seed(1)
        table = torch.randn((VOCABULARY, 64), generator=draw).to(torch.float16)
        hidden = self.model.attn.qk_proj(table[input_ids])[:, :32]
        return self.model.mlp.down_proj(hidden)  # type: ignore[no-any-return]

    def compute_logits(self, hidden: torch.Tensor) -> torch.Tensor | None:
        return hidden[-1:] if self.rank == 0 else None  # as a gather to the first rank leaves it


class FakeWorker:
    """What vLLM's own worker class does: reads the model, then shuffles it."""

    def __init__(self, rank: int, config: Any, meeting: Meeting) -> None:
        self.rank, self.vllm_config, self.meeting = rank, config, meeting

    def load_model(self) -> None:
        model = ShardedModel(open_checkpoint(Path(self.vllm_config.model_config.model)), self.rank, self.meeting)
        if self.vllm_config.model_config.model.endswith("swapped") and self.rank == 1:
            model.model.attn.qk_proj.qweight = model.model.attn.qk_proj.qweight.flip(1)
        sys.modules[LOADER].process_weights_after_loading(model, None, "cpu")
        self.model_runner = SimpleNamespace(get_model=lambda: model)


class FakeRank(RankCalls, FakeWorker):  # type: ignore[misc]
    pass


class SharedLLM:
    """vllm.LLM with ranks that are threads."""

    last: SharedLLM

    def __init__(self, **arguments: Any) -> None:
        assert arguments["worker_cls"] == "gptq_diff.engines.vllm.rank_cpu.CpuRank"
        self.meeting = Meeting(arguments["tensor_parallel_size"])
        config = SimpleNamespace(
            model_config=SimpleNamespace(model=arguments["model"], trust_remote_code=False),
            parallel_config=SimpleNamespace(tensor_parallel_size=arguments["tensor_parallel_size"]),
            additional_config=arguments["additional_config"],
        )
        self.ranks = [FakeRank(rank, config, self.meeting) for rank in range(arguments["tensor_parallel_size"])]
        try:
            for rank in self.ranks:
                rank.load_model()
        except BackendError:
            raise Exception("WorkerProc initialization failed, see stack trace") from None
        SharedLLM.last = self

    def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> list[Any]:
        return [getattr(rank, method)(*args) for rank in self.ranks]

    def generate(self, prompt: dict[str, list[int]], sampling: Any, use_tqdm: bool) -> list[Any]:
        feed, tokens = prompt["prompt_token_ids"], []
        while len(tokens) < sampling.max_tokens:
            answers: dict[int, Any] = {}

            def work(rank: int, feed: list[int] = feed, answers: dict[int, Any] = answers) -> None:
                model = self.ranks[rank].model_runner.get_model()
                try:
                    answers[rank] = model.compute_logits(model(torch.tensor(feed)))
                except (CaptureError, threading.BrokenBarrierError) as e:
                    answers[rank] = e
                    self.meeting.barrier.abort()

            threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(self.ranks))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if isinstance(answers[0], CaptureError):
                raise RuntimeError(f"Worker failed with error '{answers[0]}'")
            tokens.append(int(torch.argmax(answers[0])))
            feed = tokens[-1:]
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens)])]


@dataclasses.dataclass
class SharedArgs(EngineArgs):
    tensor_parallel_size: int = 1
    distributed_executor_backend: str = ""
    worker_cls: str = "auto"
    additional_config: Any = None


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """A rank that fails in the middle of a prompt ends with its process, not here: its collector is put back."""
    yield
    gc.enable()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    tensors = {
        **linear_tensors(LAYERS[0], 64, 64, group_size=16, seed=1, bias=True),
        **linear_tensors(LAYERS[1], 64, 32, group_size=16, seed=2, bias=True),
        **linear_tensors(LAYERS[2], 64, 64, group_size=16, seed=3, bias=True),
    }
    from tests.checkpoint.build import quant_config

    return write_checkpoint(tmp_path / "model", tensors, quant_config(group_size=16))


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A stand-in for the package; the working directory is a private one, as a worker's is."""
    fake: Any = ModuleType("vllm")
    fake.__version__, fake.LLM, fake.EngineArgs, fake.SamplingParams = "9.9.9", SharedLLM, SharedArgs, SimpleNamespace
    loader: Any = ModuleType(LOADER)
    loader.process_weights_after_loading = lambda model, config, device: None
    parts = LOADER.split(".")
    for end in range(2, len(parts)):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(".".join(parts[:end])))
    monkeypatch.setitem(sys.modules, "vllm", fake)
    monkeypatch.setitem(sys.modules, LOADER, loader)
    monkeypatch.setattr("os.environ", dict(__import__("os").environ))
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    yield fake


def loaded(model: Path, ranks: int) -> VllmEngine:
    engine = VllmEngine(
        LoadSpec(
            "vllm",
            model,
            "float16",
            "cpu",
            trust_remote_code=False,
            threads=0,
            seed=0,
            route="auto",
            longest=20,
            tensor_parallel=ranks,
        )
    )
    engine.use_kernel("as-chosen")
    return engine


def captured(engine: VllmEngine, place: Path, forced: tuple[int, ...] | None = None) -> CaptureReader:
    writer = CaptureWriter(place)
    tap = Tap(engine.tapped, writer)
    made = engine.generate((1, 2, 3), max_new_tokens=3, forced=forced, tap=tap)
    writer.close()
    writer.finish(
        Manifest("vllm", "p1", tuple(tap.order), writer.kernels, {}, made.steps, made.tokens, made.logits_finite, 0,
                 False, writer.where, 0, {}),
        made.first_logits_V,
    )  # fmt: skip
    return CaptureReader(place)


def judged(model: Path, reader: CaptureReader) -> list[Judgement]:
    checkpoint = open_checkpoint(model)
    return judge_captures({("vllm", "p1"): Captured(reader, None)}, checkpoint, checkpoint, lambda *_: None)[
        "vllm", "p1"
    ]


def test_two_ranks_give_the_capture_of_one_process(vllm: Any, model: Path, tmp_path: Path) -> None:
    """Columns put side by side, rows each with its own offset, the sum beside them: all as one process computes it."""
    two = captured(loaded(model, RANKS), tmp_path / "two")
    vllm.LLM, vllm.EngineArgs = FakeLLM, EngineArgs
    one = captured(loaded(model, 1), tmp_path / "one")
    assert two.manifest.order == one.manifest.order == LAYERS
    assert two.manifest.tokens == one.manifest.tokens
    assert torch.allclose(two.first_logits(), one.first_logits(), atol=2e-2)
    for step in range(3):
        for name in LAYERS[:2]:
            for side in ("in", "out"):
                assert torch.allclose(two.tensor(step, name, side), one.tensor(step, name, side), atol=2e-2)
        shares = torch.cat([two.tensor(step, f"{LAYERS[2]}@{rank}", "in") for rank in range(RANKS)], dim=1)
        assert torch.allclose(shares, one.tensor(step, LAYERS[2], "in"), atol=2e-2)
        summands = two.tensor(step, f"{LAYERS[2]}@all-reduce", "in").reshape(RANKS, -1, 64).float()
        bias = open_checkpoint(model).packed(LAYERS[2]).bias
        whole = one.tensor(step, LAYERS[2], "out").float() + bias.float()
        assert torch.allclose(summands.sum(dim=0), whole, atol=5e-2)
    assert not (tmp_path / "cwd" / "ranks").exists()


def test_gpu_memory_is_the_sum_over_the_ranks(vllm: Any, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a GPU of its own, and the engine's process none; None on a CPU."""
    engine = loaded(model, RANKS)
    assert engine.gpu_peak() is None
    peaks = iter([300, 50])
    monkeypatch.setattr("gptq_diff.engines.vllm.rank_calls.gpu_peak", lambda: next(peaks))
    assert engine.gpu_peak() == 350
    vllm.LLM, vllm.EngineArgs = FakeLLM, EngineArgs
    monkeypatch.setattr("gptq_diff.engines.vllm.rank.gpu_peak", lambda: 7)
    assert loaded(model, 1).gpu_peak() == 7


def test_one_linear_by_itself_is_refused(vllm: Any, model: Path) -> None:
    """No process holds the whole of it."""
    engine = loaded(model, RANKS)
    with pytest.raises(BackendError, match="is shared out among tensor-parallel ranks"):
        engine.multiply(LAYERS[2], torch.zeros(1, 64))


def test_every_rank_is_judged_on_its_own_share(vllm: Any, model: Path, tmp_path: Path) -> None:
    """Each share against its rows of W, the all-reduce against the sum of what was brought to it."""
    rows = judged(model, captured(loaded(model, RANKS), tmp_path / "two"))
    first = [j for j in rows if j.step == 0]
    assert [(j.layer, j.part, j.rank) for j in first] == [
        (LAYERS[0], "", 0), (LAYERS[1], "", 0), (LAYERS[2], "0", 0), (LAYERS[2], "1", 1), (LAYERS[2], "all-reduce", 0),
    ]  # fmt: skip
    assert {j.kind for j in rows} == {"ok"}
    assert {j.index for j in first} == {0, 1, 2}
    assert all(j.local_l2_rel is not None and j.local_l2_rel < 1e-3 for j in rows)


def test_an_overflow_in_the_sum_is_the_all_reduces(vllm: Any, model: Path, tmp_path: Path) -> None:
    """Every share is finite and right; the sum is not: no kernel is to blame."""
    engine = loaded(model, RANKS)
    SharedLLM.last.meeting.fault = "overflow"
    bad = [j for j in judged(model, captured(engine, tmp_path / "two", forced=(5, 6, 7))) if j.kind != "ok"]
    assert (bad[0].layer, bad[0].path, bad[0].kind, bad[0].cause) == (LAYERS[2], "all-reduce", "overflow", "all-reduce")
    assert (bad[0].nonfinite, bad[0].first_index) == (1, (0, 0))


def test_ranks_that_hold_different_sums_are_reported(vllm: Any, model: Path, tmp_path: Path) -> None:
    """What every rank should hold alike is compared bit for bit."""
    engine = loaded(model, RANKS)
    SharedLLM.last.meeting.fault = "differs"
    bad = [j for j in judged(model, captured(engine, tmp_path / "two")) if j.kind != "ok"]
    assert (bad[0].layer, bad[0].path, bad[0].kind, bad[0].cause) == (
        LAYERS[2], "replicated", "diverged", "all-reduce",
    )  # fmt: skip


def test_taps_and_hooks_are_gone_afterwards(vllm: Any, model: Path, tmp_path: Path) -> None:
    """Nothing of ours is left on any rank's modules, and a second prompt is captured like the first."""
    engine = loaded(model, RANKS)
    captured(engine, tmp_path / "first")
    for rank in SharedLLM.last.ranks:
        held = rank.model_runner.get_model()
        assert "compute_logits" not in vars(held)
        for module in held.modules():
            assert not module._forward_hooks
            assert "apply" not in vars(getattr(module, "quant_method", SimpleNamespace()))
    assert captured(engine, tmp_path / "second").manifest.order == LAYERS


def test_a_rank_that_cannot_prove_its_share_is_a_refusal_in_its_own_words(vllm: Any, model: Path) -> None:
    """vLLM says only that a worker failed; the rank's own sentence is told."""
    swapped = model.rename(model.with_name("swapped"))
    with pytest.raises(BackendError, match=r"vLLM's model.attn.qk_proj does not hold model.attn.q_proj in its columns"):
        loaded(swapped, RANKS)


def test_a_release_that_cannot_share_says_so(vllm: Any, model: Path) -> None:
    """No worker class of ours, no taps in the ranks."""
    vllm.EngineArgs = EngineArgs
    with pytest.raises(BackendError, match="this vLLM has no engine argument"):
        loaded(model, RANKS)


def test_a_failing_rank_ends_the_prompt_with_what_it_said(vllm: Any, model: Path, tmp_path: Path) -> None:
    """vLLM wraps a rank's error in a RuntimeError; the sentence inside comes through."""
    engine = loaded(model, RANKS)
    held = SharedLLM.last.ranks[0].model_runner.get_model()
    held.forward = lambda ids: (held.model.attn.qk_proj(torch.zeros(5, 64, dtype=torch.float16)), None)[1]
    tap = Tap(engine.tapped, CaptureWriter(tmp_path / "capture"))
    with pytest.raises(CaptureError, match=r"vLLM's ranks failed: Worker failed with error 'vLLM gave model.attn"):
        engine.generate((1, 2, 3), max_new_tokens=1, forced=None, tap=tap)


def test_shares_of_columns_lie_side_by_side_and_copies_count_once() -> None:
    """By the column each was proved to start at."""
    a, b = torch.full((1, 2), 1.0), torch.full((1, 2), 2.0)
    assert side_by_side([b, a], [2, 0]).tolist() == [[1.0, 1.0, 2.0, 2.0]]
    assert side_by_side([a, a], [0, 0]).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("cores", "bound"), [({0, 1}, "0|1"), ({3, 4, 5, 6}, "3,5|4,6"), ({7}, "7|7")], ids=["two", "four", "one"]
)
def test_ranks_on_a_cpu_get_cores_of_their_own(cores: set[int], bound: str) -> None:
    """As far as there are enough."""
    assert rank_environment(2, cores) == {"VLLM_CPU_OMP_THREADS_BIND": bound}


def test_the_run_directory_keeps_a_bad_share_whole(vllm: Any, model: Path, tmp_path: Path) -> None:
    """Pruning goes by layer: all parts of a kept linear stay."""
    from gptq_diff.capture.prune import keep_only

    place = RunDir(tmp_path / "run").capture("vllm", "p1")
    captured(loaded(model, RANKS), place).close()
    keep_only(place, frozenset({LAYERS[2]}))
    kept = CaptureReader(place)
    assert all(kept.has(0, f"{LAYERS[2]}@{part}", "out") for part in ("0", "1", "all-reduce"))
    assert not kept.has(0, LAYERS[0], "out")


def test_a_decode_step_keeps_its_own_path(
    vllm: Any, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel that changes its path with the number of rows is named by what ran in that step, not in the prefill."""
    fused = Tap.record_fused

    def by_rows(self: Tap, parts: Any, x_MK: torch.Tensor, y_MN: torch.Tensor, path: str) -> None:
        fused(self, parts, x_MK, y_MN, "few-rows" if len(x_MK) == 1 else path)

    monkeypatch.setattr(Tap, "record_fused", by_rows)
    lines = list(captured(loaded(model, RANKS), tmp_path / "two").stats())
    assert {line["path"] for line in lines if line["step"] == 0} == {"vllm-cpu-w4a16", "all-reduce"}
    assert {line["path"] for line in lines if line["step"] > 0} == {"few-rows", "all-reduce"}


def test_rows_of_the_prefix_cache_are_counted_on_every_rank(model: Path, vllm: Any, tmp_path: Path) -> None:
    """Each rank sees one row less and says so; the joined capture has the computed rows alone. A rank that is not told
    that there is a cache would refuse them."""

    class Caching(SharedLLM):
        def generate(self, prompt: dict[str, list[int]], sampling: Any, use_tqdm: bool) -> list[Any]:
            (output,) = super().generate({"prompt_token_ids": prompt["prompt_token_ids"][1:]}, sampling, use_tqdm)
            output.num_cached_tokens = 1
            return [output]

    vllm.LLM = Caching
    spec = LoadSpec("vllm", model, "float16", "cpu", False, 0, 0, "auto", 20, tensor_parallel=RANKS)
    engine = VllmEngine(dataclasses.replace(spec, prefix_cache=True))
    engine.use_kernel("as-chosen")
    reader = captured(engine, tmp_path / "capture")
    assert {line["rows"] for line in reader.stats() if line["step"] == 0 and not line["part"]} == {2}
    engine = VllmEngine(spec)
    engine.use_kernel("as-chosen")
    with pytest.raises(CaptureError, match="2 rows in step 0, not 3"):
        captured(engine, tmp_path / "other")
